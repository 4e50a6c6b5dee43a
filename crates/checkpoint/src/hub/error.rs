use std::path::PathBuf;

use crate::error::Error;

/// Reason why a model of the Hugging Face hub cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name breaks the hub's rules.
    #[error("expected owner/name or owner/name@revision")]
    Name,
    /// An environment variable has an invalid value.
    #[error("expected {expected}, found {found:?}")]
    Environment {
        /// Form of valid values.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// The endpoint is no http or https URL.
    #[error(
        "endpoint {0:?}: expected https://host, without user name and query; check HF_ENDPOINT"
    )]
    Endpoint(String),
    /// The token has characters that an HTTP header cannot carry. The value is not shown.
    #[error("the token contains a character other than visible ASCII; check HF_TOKEN")]
    Token,
    /// The server knows no such model, or hides it from the sender of this token.
    #[error("{endpoint} answered {status}: no such model, or a private one; check the name{}{}",
        match has_token { true => " and whether the token (HF_TOKEN) may read it", false => ", or set HF_TOKEN if it is private" },
        moved(*mirror))]
    NotFound {
        /// The server.
        endpoint: String,
        /// HTTP status: 401 or 404.
        status: u16,
        /// True if a token was sent.
        has_token: bool,
        /// A known copy under another name. It is not used unless it is requested by that name.
        mirror: Option<&'static str>,
    },
    /// The model's licence has to be accepted first.
    #[error(
        "{endpoint} answered {status}: access is restricted; accept the licence at {endpoint}/{id} and set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The server.
        endpoint: String,
        /// The model.
        id: String,
        /// HTTP status: 401 or 403.
        status: u16,
    },
    /// The model has no such branch, tag or commit.
    #[error("no revision {revision:?}; expected a branch, a tag or a commit of the model")]
    NoRevision {
        /// The requested revision.
        revision: String,
    },
    /// The model has no such file, or no weights for a component.
    #[error("no {missing} at commit {commit}")]
    NoFile {
        /// The file, or a description of the files.
        missing: String,
        /// The commit.
        commit: String,
    },
    /// The cache lacks a file and nothing can be downloaded.
    #[error("{why}, and the cache {} has no {missing}", cache.display())]
    NotCached {
        /// The file, or a description of the files.
        missing: String,
        /// The cache.
        cache: PathBuf,
        /// Reason why it is not downloaded.
        why: String,
    },
    /// The connection broke off more often than the number of retries; the bytes received are kept.
    #[error("{file}: the download broke off ({reason}); run again to resume it")]
    Interrupted {
        /// Name in the repository.
        file: String,
        /// Cause of the last failure.
        reason: String,
    },
    /// A download has another length or hash than the server announced; it was deleted.
    #[error(
        "{file} arrived damaged and was deleted: expected {expected}, found {found}; try again"
    )]
    Damaged {
        /// Name in the repository.
        file: String,
        /// Length or hash that the server announced.
        expected: String,
        /// Length or hash of the file.
        found: String,
    },
    /// A name, usually sent by the server, could be a path outside the cache.
    #[error("unsafe {kind} {name:?}: it {reason}")]
    UnsafeName {
        /// Kind of the name: "file name", "ETag".
        kind: &'static str,
        /// The name.
        name: String,
        /// Rule that it breaks.
        reason: &'static str,
    },
    /// The server does not speak the hub's protocol.
    #[error("unexpected answer of {endpoint}: {reason}; check HF_ENDPOINT, proxies and firewalls")]
    Answer {
        /// The server.
        endpoint: String,
        /// Deviation from the protocol.
        reason: String,
    },
    /// The callback cancelled. The bytes received are kept.
    #[error("the download was cancelled")]
    Cancelled,
}

fn moved(mirror: Option<&str>) -> String {
    mirror.map_or_else(String::new, |mirror| {
        format!("; {mirror} publishes a copy, which is used only when requested by that name")
    })
}

impl HubError {
    /// The error of a model.
    pub(super) fn of(self, id: &str) -> Error {
        Error::Hub {
            id: id.to_owned(),
            reason: self,
        }
    }
}
