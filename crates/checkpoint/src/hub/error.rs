use std::path::PathBuf;

use crate::error::Error;

/// The reason why a model on the Hugging Face hub cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name violates the hub's rules.
    #[error("expected owner/name or owner/name@revision")]
    Name,
    /// An environment variable has an invalid value.
    #[error("expected {expected}, found {found:?}")]
    Environment {
        /// Description of valid values.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// The endpoint is not an http or https URL.
    #[error(
        "endpoint {0:?}: expected https://host, without user name and query; check HF_ENDPOINT"
    )]
    Endpoint(String),
    /// The token has characters that are invalid in an HTTP header. The value is not shown.
    #[error("the token contains a character other than visible ASCII; check HF_TOKEN")]
    Token,
    /// The server has no such model, or hides it from the owner of this token.
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
        /// A known copy under another name, which is used only when requested by that name.
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
        /// The reason why it is not downloaded.
        why: String,
    },
    /// The download was interrupted more often than the number of retries. The bytes received are kept.
    #[error("{file}: the download was interrupted ({reason}); run again to resume it")]
    Interrupted {
        /// Name in the repository.
        file: String,
        /// Cause of the last failure.
        reason: String,
    },
    /// The length or hash of a download differs from what the server announced; the file was deleted.
    #[error(
        "{file} arrived damaged and was deleted: expected {expected}, found {found}; try again"
    )]
    Damaged {
        /// Name in the repository.
        file: String,
        /// Length or hash announced by the server.
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
        /// The rule that it violates.
        reason: &'static str,
    },
    /// A response violates the hub's protocol.
    #[error(
        "unexpected answer from {endpoint}: {reason}; check HF_ENDPOINT, proxies and firewalls"
    )]
    Answer {
        /// The server.
        endpoint: String,
        /// The violation.
        reason: String,
    },
    /// The callback cancelled the download. The bytes received are kept.
    #[error("the download was cancelled")]
    Cancelled,
}

fn moved(mirror: Option<&str>) -> String {
    mirror.map_or_else(String::new, |mirror| {
        format!("; {mirror} publishes a copy, which is used only when requested by that name")
    })
}

impl HubError {
    /// Attaches the name of the model.
    pub(super) fn of(self, id: &str) -> Error {
        Error::Hub {
            id: id.to_owned(),
            reason: self,
        }
    }
}
