//! Downloads, against a small hub on this machine that can be made to fail.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use swiftbrush_checkpoint::{Error, Hub, Model, sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and does.
#[derive(Default)]
struct State {
    /// Contents by `owner/name` and file.
    files: BTreeMap<(String, String), Vec<u8>>,
    /// Tags that are not the hash of the file.
    wrong_tags: BTreeMap<String, String>,
    /// How many bytes of a body are sent before the connection is cut, for so many times.
    cut: Option<(usize, usize)>,
    /// Lines of requests and their ranges.
    log: Vec<String>,
    /// What is asked of those who come.
    token: Option<String>,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is none of the server's business.
                let _ = answer(&stream, &shared);
            }
        });
        Self { endpoint, state }
    }

    fn put(&self, id: &str, file: &str, contents: &[u8]) {
        let key = (id.to_owned(), file.to_owned());
        self.state
            .lock()
            .unwrap()
            .files
            .insert(key, contents.to_vec());
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: cache.to_owned(),
            token: None,
            offline: false,
            retries: 0,
        }
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
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
    let mut state = state.lock().unwrap();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = headers.get("range").cloned().unwrap_or_default();
    state.log.push(format!("{path} {range}").trim().to_owned());
    let plain = |stream: &mut &TcpStream, status: &str, body: &str| {
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && headers.get("authorization") != wanted.as_ref() {
        return plain(&mut stream, "401 Unauthorized", "");
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let id = rest.split("/revision/").next().unwrap_or_default();
        let files: Vec<_> = state
            .files
            .keys()
            .filter(|(owner, _)| owner == id)
            .map(|(_, file)| format!("{{\"rfilename\":\"{file}\"}}"))
            .collect();
        return match files.is_empty() {
            true => plain(&mut stream, "404 Not Found", ""),
            false => {
                let body = format!(
                    "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
                    files.join(",")
                );
                plain(&mut stream, "200 OK", &body)
            }
        };
    }
    let found = path
        .trim_start_matches('/')
        .split_once("/resolve/")
        .and_then(|(id, rest)| {
            let (_, file) = rest.split_once('/')?;
            let contents = state.files.get(&(id.to_owned(), file.to_owned()))?;
            Some((file.to_owned(), contents.clone()))
        });
    let Some((file, contents)) = found else {
        return plain(&mut stream, "404 Not Found", "");
    };
    let tag = state.wrong_tags.get(&file).cloned().unwrap_or_else(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &contents).unwrap();
        sha256(&path).unwrap()
    });
    let bounds = range.trim_start_matches("bytes=").split_once('-');
    let (start, end) = bounds.unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or_default();
    let end = end.parse().map_or(contents.len(), |end: usize| end + 1);
    let body = &contents[start.min(contents.len())..end.min(contents.len())];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        end.saturating_sub(1),
        contents.len(),
        body.len()
    )?;
    // What the client asks of a file first is one byte of it.
    if let Some((len, times)) = state.cut.filter(|(len, _)| body.len() > *len) {
        state.cut = (times > 1).then_some((len, times - 1));
        return stream.write_all(&body[..len]);
    }
    stream.write_all(body)
}

const ID: &str = "owner/model";

fn serve_model(server: &Server, id: &str) {
    let weights = vec![7u8; 10_000];
    for file in [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
    ] {
        server.put(id, file, b"{}");
    }
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "README.md",
    ] {
        server.put(id, file, &weights);
    }
}

fn get(hub: &Hub, id: &str) -> Result<Model, Error> {
    hub.model(id, &["unet", "vae"], None, &mut |_| ())
}

fn reason(result: Result<Model, Error>) -> String {
    result.expect_err("it cannot be had").to_string()
}

fn setting() -> (Server, TempDir) {
    let server = Server::new();
    serve_model(&server, ID);
    (server, tempfile::tempdir().unwrap())
}

#[test]
fn only_what_is_needed_is_asked_for_and_only_once() {
    let (server, cache) = setting();
    let hub = server.hub(cache.path());
    let mut seen = Vec::new();
    let model = hub
        .model(ID, &["unet", "vae"], None, &mut |download| {
            seen.push(download);
        })
        .unwrap();
    let snapshot = cache
        .path()
        .join("models--owner--model/snapshots")
        .join(COMMIT);
    assert_eq!(model.root(), snapshot);
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
    ] {
        assert!(snapshot.join(file).is_file(), "{file}");
    }
    let log = server.log().join("\n");
    for other in ["fp16", "safety_checker", "README"] {
        assert!(!log.contains(other), "{log}");
    }
    let last = seen
        .iter()
        .rfind(|seen| seen.file.starts_with("unet/diff"))
        .unwrap();
    assert_eq!((last.done, last.size), (10_000, 10_000));

    get(&hub, ID).unwrap();
    let again = server.log();
    assert!(
        again.iter().all(|line| line.starts_with("/api/")),
        "{again:?}"
    );
    let offline = Hub {
        offline: true,
        ..hub
    };
    assert_eq!(get(&offline, ID).unwrap().root(), snapshot);
    assert!(server.log().is_empty());
}

#[test]
fn a_variant_shards_and_a_repository_that_is_a_component() {
    let (server, cache) = setting();
    let hub = server.hub(cache.path());
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    server.put("owner/sharded", "model.safetensors.index.json", index);
    server.put("owner/sharded", "model-1.safetensors", b"1");
    server.put("owner/sharded", "model-2.safetensors", b"2");
    let folder = hub.component("owner/sharded", &mut |_| ()).unwrap();
    assert!(folder.join("model-1.safetensors").is_file());
    assert!(folder.join("model-2.safetensors").is_file());

    server.log();
    hub.model(ID, &["unet"], Some("fp16"), &mut |_| ()).unwrap();
    let log = server.log().join("\n");
    assert!(
        log.contains("fp16") && !log.contains("model.safetensors"),
        "{log}"
    );

    let file = hub
        .file(&format!("{ID}@main"), "README.md", &mut |_| ())
        .unwrap();
    assert_eq!(std::fs::read(file).unwrap().len(), 10_000);
    let none = hub.model(ID, &["text_encoder"], None, &mut |_| ());
    assert!(reason(none).contains("text_encoder/ has no weights"));
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let (server, cache) = setting();
    let hub = server.hub(cache.path());
    server.state.lock().unwrap().cut = Some((4_000, 1));
    let error = reason(get(&hub, ID));
    assert!(error.contains(ID) && error.contains("run again"), "{error}");
    server.log();
    let model = get(&hub, ID).unwrap();
    let log = server.log();
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let resumed = |line: &&String| line.contains(weights) && line.ends_with("bytes=4000-");
    assert!(log.iter().any(|line| resumed(&line)), "{log:?}");
    let contents = std::fs::read(model.root().join(weights)).unwrap();
    assert_eq!(contents, vec![7; 10_000]);
}

#[test]
fn a_connection_that_breaks_twice_is_taken_up_at_once() {
    let (server, cache) = setting();
    server.state.lock().unwrap().cut = Some((4_000, 2));
    let hub = Hub {
        retries: 3,
        ..server.hub(cache.path())
    };
    let model = get(&hub, ID).unwrap();
    let contents = std::fs::read(
        model
            .root()
            .join("unet/diffusion_pytorch_model.safetensors"),
    );
    assert_eq!(contents.unwrap(), vec![7; 10_000]);
}

#[test]
fn a_file_that_is_not_what_its_hash_says_goes_away_again() {
    let (server, cache) = setting();
    let hub = server.hub(cache.path());
    let file = "unet/diffusion_pytorch_model.safetensors";
    let wrong = "0".repeat(64);
    let tags = [(file.to_owned(), wrong.clone())];
    server.state.lock().unwrap().wrong_tags = tags.into();
    let error = reason(get(&hub, ID));
    for part in [ID, file, wrong.as_str(), "thrown away"] {
        assert!(error.contains(part), "{error}");
    }
    let repository = cache.path().join("models--owner--model");
    assert!(!repository.join("blobs").join(&wrong).exists());
    assert!(
        !repository
            .join("snapshots")
            .join(COMMIT)
            .join(file)
            .exists()
    );
    server.state.lock().unwrap().wrong_tags.clear();
    get(&hub, ID).unwrap();
}

#[test]
fn what_is_gone_or_not_for_everybody_is_said_and_mirrors_are_tried() {
    let (server, cache) = setting();
    let hub = server.hub(cache.path());
    let error = reason(get(&hub, "owner/none"));
    assert!(
        error.contains("owner/none") && error.contains("404"),
        "{error}"
    );
    for id in ["model", "../x", "a/b/c", ""] {
        assert!(reason(get(&hub, id)).contains("owner/name"));
    }
    let gone = "stabilityai/stable-diffusion-2-1-base";
    assert!(reason(get(&hub, gone)).contains(gone));
    serve_model(&server, "Manojb/stable-diffusion-2-1-base");
    let model = get(&hub, gone).unwrap();
    assert!(model.root().to_string_lossy().contains("models--Manojb--"));

    server.state.lock().unwrap().token = Some("secret".to_owned());
    let elsewhere = tempfile::tempdir().unwrap();
    let hub = server.hub(elsewhere.path());
    assert!(reason(get(&hub, ID)).contains("HF_TOKEN"));
    let known = Hub {
        token: Some("secret".to_owned()),
        ..hub
    };
    get(&known, ID).unwrap();
}

#[test]
fn without_a_network_what_is_missing_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hub = Hub {
        endpoint: format!("http://{closed}"),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
        retries: 0,
    };
    assert!(reason(get(&hub, ID)).contains("HF_HUB_OFFLINE"));
    let offline = Hub {
        offline: true,
        ..hub
    };
    let error = reason(get(&offline, ID));
    assert!(
        error.contains("HF_HUB_OFFLINE is set") && error.contains("no weights of unet/"),
        "{error}"
    );
    let file = offline.file(ID, "x.safetensors", &mut |_| ());
    let error = file.expect_err("it is not there").to_string();
    assert!(
        error.contains("x.safetensors") && error.contains("HF_HUB_OFFLINE is set"),
        "{error}"
    );
}

const CHILD: &str = "SWIFTBRUSH_HUB_TEST_CHILD";

/// A disk that takes no more, made by a limit on the size of files; the process that has it is another.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_what_came_is_kept() {
    if let Ok(place) = std::env::var(CHILD) {
        let (endpoint, cache) = place.split_once(' ').unwrap();
        let hub = Hub {
            endpoint: endpoint.to_owned(),
            cache: PathBuf::from(cache),
            token: None,
            offline: false,
            retries: 0,
        };
        let error = get(&hub, ID).expect_err("the disk is full");
        assert!(
            matches!(
                error,
                Error::Io {
                    action: "write",
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(error.to_string().contains(cache), "{error}");
        return;
    }
    let (server, cache) = setting();
    let test = std::env::current_exe().unwrap();
    let place = format!("{} {}", server.endpoint, cache.path().display());
    // Blocks of 512 bytes: 8 KiB of the 10 kB.
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact a_full_disk_is_an_error_and_what_came_is_kept";
    let child = Command::new("sh")
        .args(["-c", limited])
        .arg(test)
        .env(CHILD, place)
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
    server.log();
    get(&server.hub(cache.path()), ID).unwrap();
    let log = server.log();
    assert!(
        log.iter().any(|line| line.ends_with("bytes=8192-")),
        "{log:?}"
    );
}
