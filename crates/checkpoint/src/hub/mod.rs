//! The Hugging Face hub: models by name, downloaded into the cache shared by all of its clients.
//!
//! The client implements the part of the protocol needed to load a model, on top of `ureq` and the cache layout of Python's
//! `huggingface_hub`. No existing crate fits: `hf-hub` 0.5 does not pin commits, ignores blobs downloaded by other programs,
//! sends the token to redirect targets, has no timeouts and cannot be cancelled; `hf-hub` 1.0 adds tokio, reqwest and the
//! Xet client: 236 packages on Linux (`cargo tree`), compared with 26 for `ureq` with rustls.
//!
//! # Cache layout
//!
//! ```text
//! <cache>/models--<owner>--<name>/blobs/<etag>               contents; the ETag is a SHA-256 or a git blob SHA-1
//! <cache>/models--<owner>--<name>/blobs/<etag>.incomplete    an interrupted download, resumed by the next one
//! <cache>/models--<owner>--<name>/snapshots/<commit>/<file>  symlink to ../../blobs/<etag>
//! <cache>/models--<owner>--<name>/refs/<revision>            the commit that a branch or tag last resolved to
//! <cache>/.locks/models--<owner>--<name>/<etag>.lock         held while a blob is downloaded
//! ```
//!
//! # Guarantees
//!
//! - A revision is resolved to its commit once, and every file of the call comes from that commit. `refs/<revision>`
//!   changes only after all requested files of the new commit are present, so an interrupted update leaves the old
//!   commit usable offline.
//! - A cached blob is linked, never downloaded again.
//! - The token is sent only to the scheme, host and port of the endpoint, never to redirect targets elsewhere. Neither
//!   `Debug` output nor errors contain it.
//! - The length and hash of every download are verified before it gets its final name.
//! - If the hub cannot be reached, cached files are used and [`Event::CacheOnly`] reports it.
//! - Names sent by the server are checked before they become paths; nothing is written outside the cache.
//! - No other repository is ever substituted. If a model has moved, the error names the copy to request instead,
//!   because the hashes of the original files are unknown.

mod name;

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod env;
#[cfg(feature = "hub")]
mod error;
#[cfg(feature = "hub")]
mod event;
#[cfg(feature = "hub")]
mod options;
#[cfg(feature = "hub")]
mod session;
#[cfg(feature = "hub")]
mod url;

#[cfg(feature = "hub")]
pub use error::HubError;
#[cfg(feature = "hub")]
pub use event::{Download, Event};
pub(crate) use name::is_hub_name;
#[cfg(feature = "hub")]
pub use options::Hub;
