//! A small local hub that can be made to fail.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files of at least this length are stored as large files, whose ETag is a SHA-256.
const LARGE: usize = 1000;

/// The first commit of every model.
pub(crate) const FIRST: &str = "0123456789abcdef0123456789abcdef01234567";
/// The second.
pub(crate) const SECOND: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: String,
    pub(crate) authorization: Option<String>,
}

/// A response, which faults can change before it is sent.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) headers: BTreeMap<&'static str, String>,
    pub(crate) body: Vec<u8>,
    /// Length of the body after which the connection is cut.
    pub(crate) cut: Option<usize>,
    /// Length of the body after which nothing more is sent.
    pub(crate) stall: Option<usize>,
}

impl Answer {
    fn new(status: &str, body: Vec<u8>) -> Self {
        let length = body.len().to_string();
        Self {
            status: status.to_owned(),
            headers: [
                ("Content-Length", length),
                ("Connection", "close".to_owned()),
            ]
            .into(),
            body,
            ..Self::default()
        }
    }

    pub(crate) fn set(&mut self, header: &'static str, value: impl ToString) {
        self.headers.insert(header, value.to_string());
    }

    /// Replaces the whole response.
    pub(crate) fn status(&mut self, status: &str) {
        *self = Self::new(status, Vec::new());
    }
}

/// A change to responses.
struct Fault {
    /// Method and part of the path of the requests it applies to.
    request: (&'static str, String),
    times: usize,
    change: Box<dyn Fn(&mut Answer) + Send>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Contents by model, commit and file.
    pub(crate) files: BTreeMap<(String, String, String), Vec<u8>>,
    /// Commits of models by branch.
    pub(crate) branches: BTreeMap<(String, String), String>,
    /// Large files by ETag, for a storage server.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// The storage server that large files are redirected to.
    pub(crate) storage: Option<String>,
    /// The token that every request must have.
    pub(crate) token: Option<String>,
    /// After the request for this file, `main` moves to the second commit.
    pub(crate) move_after: Option<String>,
    faults: Vec<Fault>,
    log: Vec<Seen>,
}

pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                // A client that hangs up is not an error.
                std::thread::spawn(move || serve(&stream, &shared).ok());
            }
        });
        Self { endpoint, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a file to the first commit of a model, which is its `main`.
    pub(crate) fn put(&self, id: &str, file: &str, contents: &[u8]) {
        self.put_at(id, FIRST, file, contents);
        let main = (id.to_owned(), "main".to_owned());
        self.state().branches.insert(main, FIRST.to_owned());
    }

    pub(crate) fn put_at(&self, id: &str, commit: &str, file: &str, contents: &[u8]) {
        let key = (id.to_owned(), commit.to_owned(), file.to_owned());
        self.state().files.insert(key, contents.to_vec());
    }

    /// Copies the first commit of a model to the second, which becomes its `main`.
    pub(crate) fn commit(&self, id: &str) {
        let mut state = self.state();
        let files: Vec<_> = state
            .files
            .iter()
            .filter(|((owner, ..), _)| owner == id)
            .collect();
        let copied: Vec<_> = files
            .into_iter()
            .map(|((id, _, file), contents)| {
                (
                    (id.clone(), SECOND.to_owned(), file.clone()),
                    contents.clone(),
                )
            })
            .collect();
        state.files.extend(copied);
        state
            .branches
            .insert((id.to_owned(), "main".to_owned()), SECOND.to_owned());
    }

    /// Changes the next `times` responses to requests with a method and a path that contains a text.
    pub(crate) fn fault(
        &self,
        method: &'static str,
        path: &str,
        times: usize,
        change: impl Fn(&mut Answer) + Send + 'static,
    ) {
        self.state().faults.push(Fault {
            request: (method, path.to_owned()),
            times,
            change: Box::new(change),
        });
    }

    /// The requests since the last call.
    pub(crate) fn log(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().log)
    }

    /// Paths of the requests for contents since the last call, and their ranges.
    pub(crate) fn downloads(&self) -> Vec<(String, String)> {
        let log = self.log().into_iter().filter(|seen| seen.method == "GET");
        log.filter_map(|seen| {
            Some((
                seen.path
                    .split_once("/resolve/")?
                    .1
                    .split_once('/')?
                    .1
                    .to_owned(),
                seen.range,
            ))
        })
        .collect()
    }
}

/// The ETag of contents on the hub.
pub(crate) fn etag(contents: &[u8]) -> String {
    let hex = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    match contents.len() >= LARGE {
        true => hex(&Sha256::digest(contents)),
        false => {
            let header = format!("blob {}\0", contents.len());
            hex(&Sha1::digest([header.as_bytes(), contents].concat()))
        }
    }
}

fn serve(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut words = request.split(' ').map(str::to_owned);
    let seen = Seen {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: headers.get("range").cloned().unwrap_or_default(),
        authorization: headers.get("authorization").cloned(),
    };
    // Unlocked before anything is sent, so that a stalled response does not block others.
    let answer = prepare(&seen, &mut state.lock().unwrap());
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(());
    }
    let end = answer
        .cut
        .or(answer.stall)
        .unwrap_or(usize::MAX)
        .min(answer.body.len());
    stream.write_all(&answer.body[..end])?;
    if answer.stall.is_some() {
        std::thread::sleep(Duration::from_secs(20));
    }
    Ok(())
}

fn prepare(seen: &Seen, state: &mut State) -> Answer {
    state.log.push(seen.clone());
    let mut answer = respond(seen, state);
    if let Some(fault) = state.faults.iter_mut().find(|fault| {
        fault.times > 0 && seen.method == fault.request.0 && seen.path.contains(&fault.request.1)
    }) {
        fault.times -= 1;
        (fault.change)(&mut answer);
    }
    if state
        .move_after
        .as_ref()
        .is_some_and(|file| seen.path.ends_with(file.as_str()))
    {
        for commit in state.branches.values_mut() {
            SECOND.clone_into(commit);
        }
    }
    answer
}

fn respond(seen: &Seen, state: &State) -> Answer {
    if let Some(etag) = seen.path.strip_prefix("/blob/") {
        let etag = etag.split('?').next().unwrap_or_default();
        return match state.blobs.get(etag) {
            Some(contents) => contents_of(seen, contents, "storage"),
            None => Answer::new("404 Not Found", Vec::new()),
        };
    }
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && seen.authorization != wanted {
        return Answer::new("401 Unauthorized", Vec::new());
    }
    match seen.path.strip_prefix("/api/models/") {
        Some(rest) => listing(rest, state),
        None => file(seen, state),
    }
    .unwrap_or_else(|| Answer::new("404 Not Found", Vec::new()))
}

fn commit_of(id: &str, revision: &str, state: &State) -> Option<String> {
    let revision = revision.replace("%2F", "/");
    let branch = state.branches.get(&(id.to_owned(), revision.clone()));
    let is_commit = || {
        state
            .files
            .keys()
            .any(|(owner, commit, _)| owner == id && *commit == revision)
    };
    branch
        .cloned()
        .or_else(|| is_commit().then_some(revision.clone()))
}

fn listing(rest: &str, state: &State) -> Option<Answer> {
    let (id, revision) = rest.split_once("/revision/")?;
    if !state.files.keys().any(|(owner, ..)| owner == id) {
        return None;
    }
    let Some(commit) = commit_of(id, revision, state) else {
        let mut answer = Answer::new("404 Not Found", Vec::new());
        answer.set("X-Error-Code", "RevisionNotFound");
        return Some(answer);
    };
    let siblings: Vec<_> = state
        .files
        .keys()
        .filter(|(owner, at, _)| owner == id && *at == commit)
        .map(|(_, _, file)| serde_json::json!({"rfilename": file}))
        .collect();
    let body = serde_json::json!({"id": id, "sha": commit, "siblings": siblings});
    Some(Answer::new("200 OK", body.to_string().into_bytes()))
}

fn file(seen: &Seen, state: &State) -> Option<Answer> {
    let (id, rest) = seen.path.trim_start_matches('/').split_once("/resolve/")?;
    let (revision, file) = rest.split_once('/')?;
    let commit = commit_of(id, revision, state)?;
    let contents = state
        .files
        .get(&(id.to_owned(), commit.clone(), file.to_owned()))?;
    let tag = etag(contents);
    let mut answer = match (&state.storage, contents.len() >= LARGE) {
        (Some(storage), true) => {
            let mut answer = Answer::new("302 Found", Vec::new());
            answer.set("Location", format!("{storage}/blob/{tag}?signature=x"));
            answer.set("X-Linked-ETag", format!("\"{tag}\""));
            answer.set("X-Linked-Size", contents.len());
            answer.set("ETag", "\"of the pointer\"");
            answer
        }
        _ => contents_of(seen, contents, &tag),
    };
    answer.set("X-Repo-Commit", commit);
    Some(answer)
}

fn contents_of(seen: &Seen, contents: &[u8], tag: &str) -> Answer {
    let start = seen
        .range
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'));
    let start = start.and_then(|start| start.parse::<usize>().ok());
    let mut answer = match start {
        Some(start) if start >= contents.len() => {
            Answer::new("416 Range Not Satisfiable", Vec::new())
        }
        Some(start) => {
            let mut answer = Answer::new("206 Partial Content", contents[start..].to_vec());
            let (last, length) = (contents.len() - 1, contents.len());
            answer.set("Content-Range", format!("bytes {start}-{last}/{length}"));
            answer
        }
        None => Answer::new("200 OK", contents.to_vec()),
    };
    answer.set("ETag", format!("\"{tag}\""));
    answer
}
