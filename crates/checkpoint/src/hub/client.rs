use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName,
    HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::error::HubError;
use super::name::{blob_name, check_path, is_commit};
use super::options::Hub;
use super::url::{escape, file_path, origin, parse, parse_endpoint, redirect};
use crate::error::Error;

/// The largest accepted listing, about 100,000 files.
const MAX_LISTING: u64 = 16 << 20;
const MAX_REDIRECTS: usize = 10;
/// The longest `Retry-After` that is respected.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// An HTTP client for one endpoint.
pub(super) struct Client {
    metadata: Agent,
    download: Agent,
    endpoint: Uri,
    token: Option<HeaderValue>,
}

/// A commit and the names of its files.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

/// The fields of a listing that are used.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The identity of a file's contents.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    /// Name of the blob: a SHA-256 or git's SHA-1.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// The contents of a file from some byte on.
pub(super) struct Contents {
    /// Position of the first byte.
    pub(super) start: u64,
    /// Length of the whole file, if the server reports it.
    pub(super) size: Option<u64>,
    pub(super) body: Box<dyn Read>,
}

/// The reason why a request got no usable response.
#[derive(Debug)]
pub(super) enum Failure {
    /// The network or the server failed. A retry may succeed, after this pause if the server sent one.
    Transient(String, Option<Duration>),
    /// The server rejected the request: status and `X-Error-Code`.
    Status(StatusCode, String),
    /// The response violates the protocol.
    Answer(String),
    /// The server sent a dangerous name, or the caller cancelled.
    Hub(HubError),
    /// The disk failed, or the file is damaged.
    Other(Error),
}

/// The redirects followed by a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    /// Those within the endpoint, which are sent for renamed models. Any other redirect is a final response.
    Own,
    /// All, including those to the servers that store large files.
    All,
}

impl Client {
    pub(super) fn new(hub: &Hub) -> Result<Self, HubError> {
        let endpoint = parse_endpoint(&hub.endpoint)?;
        let token = match &hub.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| HubError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            metadata: agent(hub, hub.metadata_timeout),
            download: agent(hub, hub.download_timeout),
            endpoint,
            token,
        })
    }

    /// Resolves a revision to its commit and lists the files there.
    pub(super) fn listing(&self, id: &str, revision: &str) -> Result<Listing, Failure> {
        let path = format!("/api/models/{id}/revision/{}", escape(revision, ""));
        let mut response = self.send(&self.metadata, Method::GET, &path, Redirects::Own, None)?;
        let body = response.body_mut().with_config().limit(MAX_LISTING);
        let body = body.read_to_vec().map_err(failure)?;
        let info: ModelInfo = serde_json::from_slice(&body).map_err(|error| {
            Failure::Answer(format!("the listing of {id} is not valid JSON: {error}"))
        })?;
        let commit = info.sha;
        if !is_commit(&commit) || (is_commit(revision) && revision != commit) {
            return Err(Failure::Answer(format!(
                "{commit:?} is not the commit of {revision:?}"
            )));
        }
        let files: BTreeSet<_> = info
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect();
        match files
            .iter()
            .find_map(|file| Some((file, check_path(file).err()?)))
        {
            None => Ok(Listing { commit, files }),
            Some((file, reason)) => Err(unsafe_name("file name", file, reason)),
        }
    }

    /// Requests the identity of a file.
    pub(super) fn metadata(&self, id: &str, commit: &str, file: &str) -> Result<Metadata, Failure> {
        let path = file_path(id, commit, file);
        let response = self.send(&self.metadata, Method::HEAD, &path, Redirects::Own, None)?;
        let headers = response.headers();
        let found = text(headers, &REPO_COMMIT).unwrap_or_default();
        if found != commit {
            return Err(Failure::Answer(format!(
                "{file}: expected the header X-Repo-Commit: {commit}, found {found:?}"
            )));
        }
        let etag = text(headers, &LINKED_ETAG).or(text(headers, &ETAG));
        let etag =
            etag.ok_or_else(|| Failure::Answer(format!("{file}: the header ETag is missing")))?;
        let name =
            blob_name(etag).ok_or_else(|| unsafe_name("ETag", etag, "cannot be a file name"))?;
        let is_here = !response.status().is_redirection();
        let size =
            number(headers, &LINKED_SIZE).or(number(headers, &CONTENT_LENGTH).filter(|_| is_here));
        Ok(Metadata {
            etag: name.to_owned(),
            size,
        })
    }

    /// Requests the contents of a file from a position on. The server may still send it from the beginning.
    pub(super) fn contents(
        &self,
        id: &str,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<Contents, Failure> {
        let path = file_path(id, commit, file);
        let range = (start > 0).then_some(start);
        let response = self.send(&self.download, Method::GET, &path, Redirects::All, range)?;
        let headers = response.headers();
        if let Some(encoding) =
            text(headers, &CONTENT_ENCODING).filter(|encoding| *encoding != "identity")
        {
            return Err(Failure::Answer(format!(
                "{file}: unsupported Content-Encoding {encoding:?}"
            )));
        }
        let length = number(headers, &CONTENT_LENGTH);
        let (start, size) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, &CONTENT_RANGE).and_then(parse_range);
                let (first, size) =
                    range.filter(|(first, _)| *first == start).ok_or_else(|| {
                        Failure::Answer(format!(
                            "{file}: Content-Range does not start at the requested byte {start}"
                        ))
                    })?;
                let implied = length.and_then(|length| first.checked_add(length));
                (first, size.or(implied))
            }
            _ => (0, length),
        };
        Ok(Contents {
            start,
            size,
            body: Box::new(response.into_body().into_reader()),
        })
    }

    /// Sends a request below the endpoint and follows redirects.
    fn send(
        &self,
        agent: &Agent,
        method: Method,
        path: &str,
        redirects: Redirects,
        start: Option<u64>,
    ) -> Result<Response<Body>, Failure> {
        let base = self.endpoint.to_string();
        let mut url = parse(&format!("{}{path}", base.trim_end_matches('/')))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(url.clone());
            if let Some(token) = self
                .token
                .as_ref()
                .filter(|_| origin(&url) == origin(&self.endpoint))
            {
                request = request.header(AUTHORIZATION, token);
            }
            if let Some(start) = start {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            let request = request
                .body(())
                .map_err(|error| Failure::Answer(error.to_string()))?;
            let response = agent.run(request).map_err(failure)?;
            let status = response.status();
            if !status.is_redirection() {
                return accept(response);
            }
            let target = text(response.headers(), &LOCATION).ok_or_else(|| {
                Failure::Answer(format!("status {status} without the header Location"))
            })?;
            let target = redirect(&url, target)?;
            if redirects == Redirects::Own && origin(&target) != origin(&self.endpoint) {
                return Ok(response);
            }
            url = target;
        }
        Err(Failure::Answer(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }
}

/// Creates an agent that follows no redirects and drops connections that are silent for `timeout`.
fn agent(hub: &Hub, timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(hub.proxy.clone())
        .user_agent(concat!("swiftbrush/", env!("CARGO_PKG_VERSION")))
        // Lengths and positions refer to the uncompressed file.
        .accept_encoding("identity")
        .timeout_resolve(Some(timeout))
        .timeout_connect(Some(timeout))
        .timeout_recv_response(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout));
    config.build().new_agent()
}

/// Classifies a final response by its status.
fn accept(response: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = response.status();
    let headers = response.headers();
    if status.is_success() {
        return Ok(response);
    }
    let is_transient = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        );
    if is_transient {
        let pause = number(headers, &RETRY_AFTER).map(Duration::from_secs);
        let pause = pause.map(|pause| pause.min(MAX_RETRY_AFTER));
        return Err(Failure::Transient(format!("status {status}"), pause));
    }
    let code = text(headers, &ERROR_CODE).unwrap_or_default();
    Err(Failure::Status(status, code.to_owned()))
}

fn failure(error: ureq::Error) -> Failure {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout, Tls};
    match error {
        Io(error) => Failure::Transient(error.to_string(), None),
        Timeout(kind) => Failure::Transient(format!("timeout ({kind})"), None),
        HostNotFound => Failure::Transient("host not found".to_owned(), None),
        ConnectionFailed | Tls(_) => Failure::Transient(error.to_string(), None),
        ureq::Error::Rustls(_) | ureq::Error::ConnectProxyFailed(_) => {
            Failure::Transient(error.to_string(), None)
        }
        error => Failure::Answer(error.to_string()),
    }
}

fn unsafe_name(kind: &'static str, name: &str, reason: &'static str) -> Failure {
    Failure::Hub(HubError::UnsafeName {
        kind,
        name: name.chars().take(200).collect(),
        reason,
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// Parses the first byte and the total length from `bytes 0-9/10` or `bytes 0-9/*`.
fn parse_range(range: &str) -> Option<(u64, Option<u64>)> {
    let (bounds, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = bounds.split_once('-')?;
    Some((first.parse().ok()?, size.parse().ok()))
}
