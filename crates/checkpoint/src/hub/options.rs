use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::event::Event;
use super::name::is_hub_name;
use super::session::{Session, pinned};
use crate::error::Error;
use crate::model::Model;

/// The public hub.
pub(super) const ENDPOINT: &str = "https://huggingface.co";
/// Time without data after which a connection is dropped, as in `huggingface_hub`.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Files of a diffusers folder that are read besides configurations and weights.
const SHARED_FILES: [&str; 6] = [
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
];

/// The Hugging Face hub, or a server with the same protocol, together with a cache.
///
/// [`from_env`](Self::from_env) reads the environment variables of Python's `huggingface_hub`; [`new`](Self::new) reads
/// nothing. Downloads block the calling thread; `Hub` is `Send` and `Sync`, and any number of threads and processes can
/// share a cache.
///
/// # Examples
///
/// Not run as a test, because it downloads gigabytes:
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use swiftbrush_checkpoint::{Event, Hub};
///
/// let hub = Hub::new("cache").with_token("hf_...");
/// let model = hub.model("stabilityai/sd-turbo", &["unet", "vae", "text_encoder"], Some("fp16"), &mut |event| {
///     if event.is_warning() {
///         eprintln!("{event}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// # Ok::<(), swiftbrush_checkpoint::Error>(())
/// ```
#[derive(Clone)]
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) token: Option<String>,
    pub(super) offline: bool,
    pub(super) symlinks: bool,
    pub(super) retries: usize,
    pub(super) metadata_timeout: Duration,
    pub(super) download_timeout: Duration,
    pub(super) proxy: Option<ureq::Proxy>,
}

impl Hub {
    /// Creates a client of the public hub with this cache folder and without a token.
    pub fn new(cache: impl AsRef<Path>) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache: cache.as_ref().to_owned(),
            token: None,
            offline: false,
            symlinks: true,
            retries: 5,
            metadata_timeout: TIMEOUT,
            download_timeout: TIMEOUT,
            proxy: None,
        }
    }

    /// Sets the server [default: `https://huggingface.co`].
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        let endpoint = endpoint.into();
        endpoint
            .trim_end_matches('/')
            .clone_into(&mut self.endpoint);
        self
    }

    /// Sets the access token, which is sent only to the endpoint.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends no requests and uses only cached files [default: false].
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Symlinks files of a snapshot to their blobs instead of copying them [default: true]. Files are always copied where
    /// symlinks are unsupported.
    pub fn with_symlinks(mut self, symlinks: bool) -> Self {
        self.symlinks = symlinks;
        self
    }

    /// Sets the number of consecutive attempts without a new byte after which a download fails [default: 5].
    pub fn with_retries(mut self, retries: usize) -> Self {
        self.retries = retries;
        self
    }

    /// Sets the timeout for connecting and for the response to a query [default: 10 s].
    pub fn with_metadata_timeout(mut self, timeout: Duration) -> Self {
        self.metadata_timeout = timeout;
        self
    }

    /// Sets the timeout for connecting and for the next bytes of a file [default: 10 s].
    pub fn with_download_timeout(mut self, timeout: Duration) -> Self {
        self.download_timeout = timeout;
        self
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Downloads the named components of a model in diffusers' layout, with its tokenizer and scheduler.
    ///
    /// `id` is `owner/name` or `owner/name@revision`, where the revision is a branch, a tag or a commit [default: `main`].
    /// For each component, this downloads the configuration and one set of weights, the one that [`Model::weights`] opens
    /// for this variant. Cached files are not downloaded again.
    ///
    /// # Errors
    ///
    /// If the model or a component does not exist, access is denied, a downloaded file is damaged, the hub cannot be
    /// reached and the cache is incomplete, or the callback cancels.
    pub fn model(
        &self,
        id: &str,
        components: &[&str],
        variant: Option<&str>,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Model, Error> {
        let mut session = Session::open(self, id, watch)?;
        for component in components {
            session.component(&format!("{component}/"), variant)?;
        }
        for file in SHARED_FILES {
            if session.has(file) {
                session.file(file)?;
            }
        }
        let model = Model::open(session.finish()?)?;
        Ok(match variant {
            Some(variant) => model.with_variant(variant),
            None => model,
        })
    }

    /// Downloads a repository that is a single component, such as `madebyollin/taesd`, and returns its folder.
    ///
    /// # Errors
    ///
    /// Same as [`model`](Self::model).
    pub fn component(
        &self,
        id: &str,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<PathBuf, Error> {
        let mut session = Session::open(self, id, watch)?;
        session.component("", None)?;
        session.finish()
    }

    /// Downloads a file of a repository and returns its path. No request is sent if `id` contains a commit and that file
    /// is cached.
    ///
    /// # Errors
    ///
    /// Same as [`model`](Self::model).
    pub fn file(
        &self,
        id: &str,
        file: &str,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<PathBuf, Error> {
        if let Some(path) = pinned(self, id, file) {
            return Ok(path);
        }
        let mut session = Session::open(self, id, watch)?;
        let path = session.file(file)?;
        session.finish()?;
        Ok(path)
    }
}

impl Model {
    /// Opens a model by path or by name on the Hugging Face hub: a folder, a file, `owner/name` or `owner/name@revision`
    /// [default: `main`]. An existing path takes precedence.
    ///
    /// From the hub, the named components are downloaded by [`Hub::model`] with [`Hub::from_env`].
    ///
    /// # Errors
    ///
    /// Same as [`Model::open`] for paths and [`Hub::model`] for names.
    ///
    /// # Examples
    ///
    /// Not run as a test, because it downloads gigabytes:
    ///
    /// ```no_run
    /// use std::ops::ControlFlow;
    /// use swiftbrush_checkpoint::Model;
    ///
    /// let components = ["unet", "vae", "text_encoder"];
    /// let model = Model::find("stabilityai/sd-turbo", &components, None, &mut |event| {
    ///     eprintln!("{event}");
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok::<(), swiftbrush_checkpoint::Error>(())
    /// ```
    pub fn find(
        name: &str,
        components: &[&str],
        variant: Option<&str>,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        if !Path::new(name).exists() && is_hub_name(name) {
            return Hub::from_env()?.model(name, components, variant, watch);
        }
        let model = Self::open(name)?;
        Ok(match variant {
            Some(variant) => model.with_variant(variant),
            None => model,
        })
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("symlinks", &self.symlinks)
            .field("retries", &self.retries)
            .field("metadata_timeout", &self.metadata_timeout)
            .field("download_timeout", &self.download_timeout)
            .field("has_proxy", &self.proxy.is_some())
            .finish()
    }
}
