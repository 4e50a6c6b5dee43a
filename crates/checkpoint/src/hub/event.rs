use std::fmt;
use std::ops::ControlFlow;

use super::error::HubError;

/// An event of a download, passed to the caller's callback, which can cancel with [`ControlFlow::Break`].
///
/// Its `Display` is a one-line message without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Bytes of a file arrived.
    Progress(Download),
    /// Another thread or process is downloading the same file. Sent several times a second until it is done.
    Waiting {
        /// Name in the repository.
        file: String,
    },
    /// An attempt failed and will be retried after a pause. Sent several times a second until then.
    Retry {
        /// Name in the repository, or the repository's name while its files are listed.
        file: String,
        /// Cause of the failure.
        reason: String,
    },
    /// A warning: the hub cannot be used, so files of a cached commit are used, which may be outdated.
    CacheOnly {
        /// Name of the model.
        id: String,
        /// The cached commit.
        commit: String,
        /// Cause of the failure.
        reason: String,
    },
    /// Any other warning that does not fail the download.
    Warning(String),
}

/// Progress of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Download {
    /// Name in the repository.
    pub file: String,
    /// Number of bytes on disk.
    pub done: u64,
    /// Number of bytes of the complete file.
    pub size: u64,
}

impl Event {
    /// Returns whether a program should show the event to its user even if it shows no progress.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::CacheOnly { .. } | Self::Warning(_))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Progress(Download { file, done, size }) => {
                write!(f, "{file}: {done} of {size} bytes")
            }
            Self::Waiting { file } => {
                write!(
                    f,
                    "waiting for {file}, which another process is downloading"
                )
            }
            Self::Retry { file, reason } => write!(f, "retrying {file}: {reason}"),
            Self::CacheOnly { id, commit, reason } => {
                write!(f, "{id}: {reason}; using commit {commit} from the cache")
            }
            Self::Warning(message) => f.write_str(message),
        }
    }
}

/// The caller's callback.
pub(super) type Watch<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// Sends an event.
///
/// # Errors
///
/// [`HubError::Cancelled`] if the callback breaks.
pub(super) fn send(watch: &mut Watch<'_>, event: Event) -> Result<(), HubError> {
    match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(HubError::Cancelled),
    }
}
