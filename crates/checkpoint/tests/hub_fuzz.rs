//! Mutated responses of the hub are used or rejected, without a panic and without a file outside the cache.
//!
//! Runs for a second in tests, and longer with `SWIFTBRUSH_FUZZ_SECONDS=600 cargo test --release --workspace --test hub_fuzz`.
//! Failing inputs are kept in `corpus`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use swiftbrush_checkpoint::{Event, Hub};
use swiftbrush_testing::fuzz;

/// Separates the responses of an input: to the listing, to HEAD and to GET.
const SEPARATOR: &[u8] = b"\n--\n";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name)
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's hash of the contents.
fn git_hash(contents: &[u8]) -> String {
    let header = format!("blob {}\0", contents.len());
    hex(&Sha1::digest([header.as_bytes(), contents].concat()))
}

/// The responses of an honest server for a repository with files of the same contents.
fn answers(headers: &str, files: &[&str], contents: &str, etag: &str) -> Vec<u8> {
    let files = files
        .iter()
        .map(|file| format!("{{\"rfilename\": \"{file}\"}}"));
    let files = files.collect::<Vec<_>>().join(", ");
    let listing = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{files}]}}");
    let length = contents.len();
    let parts = [
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{listing}",
            listing.len()
        ),
        format!(
            "HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\nContent-Length: {length}\r\n{headers}\r\n"
        ),
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{contents}"),
    ];
    parts.map(String::into_bytes).join(SEPARATOR)
}

/// Sends the responses of the current input unchanged.
fn serve(mut stream: &TcpStream, input: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let index = match request.split(' ').collect::<Vec<_>>()[..] {
        ["HEAD", ..] => 1,
        [_, path, ..] if path.starts_with("/api/") => 0,
        _ => 2,
    };
    let input = input.lock().expect("it is not poisoned").clone();
    let mut rest = input.as_slice();
    for _ in 0..index {
        let end = rest
            .windows(SEPARATOR.len())
            .position(|part| part == SEPARATOR);
        rest = end.map_or(&[], |end| &rest[end + SEPARATOR.len()..]);
    }
    let end = rest
        .windows(SEPARATOR.len())
        .position(|part| part == SEPARATOR);
    stream.write_all(&rest[..end.unwrap_or(rest.len())])
}

#[test]
fn answers_of_the_hub() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let input = Arc::new(Mutex::new(Vec::new()));
    let shared = input.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that hangs up is not an error.
            let _ = serve(&stream, &shared);
        }
    });
    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    let sharded = ["model.safetensors.index.json", "model-1.safetensors"];
    let weights = "weights";
    let seeds = [
        answers("", &["model.safetensors"], weights, &hex(&Sha256::digest(weights))),
        answers("", &sharded, index, &git_hash(index.as_bytes())),
        answers("X-Linked-Size: 7\r\nX-Linked-ETag: \"x\"\r\n", &["pytorch_model.bin"], weights, "y"),
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /api/models/x\r\n\r\n\n--\nHTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n".to_vec(),
        b"HTTP/1.1 404 Not Found\r\nX-Error-Code: RevisionNotFound\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"s\r\n0\r\n\r\n".to_vec(),
    ];
    let words = [
        "../",
        "/etc/passwd",
        "..\\\\",
        "C:",
        "\\u0000",
        "\\n",
        "%2e%2e/",
        ".lock",
        ".incomplete",
        "W/",
        "\"",
        "model.safetensors",
        "rfilename",
        "siblings",
        COMMIT,
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "Content-Encoding: gzip\r\n",
        "Content-Range: bytes 0-1/2\r\n",
        "Location: ",
        "ETag: ",
        "X-Linked-Size: ",
        "Retry-After: 1\r\n",
        "HTTP/1.1 206 Partial Content\r\n",
        "HTTP/1.1 416 x\r\n",
        "HTTP/1.1 503 x\r\n",
        "\r\n\r\n",
    ];
    let try_one = |bytes: &[u8], retries: usize| {
        bytes.clone_into(&mut input.lock().expect("it is not poisoned"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let timeout = Duration::from_secs(1);
        let hub = Hub::new(folder.path().join("cache"))
            .with_endpoint(&endpoint)
            .with_retries(retries)
            .with_metadata_timeout(timeout)
            .with_download_timeout(timeout);
        let found = hub.component("owner/model", &mut |_: Event| ControlFlow::Continue(()));
        check(folder.path(), found.is_ok());
        found.is_ok()
    };
    // The server closes every connection, and on a busy machine the client may notice only when it uses it again.
    let honest = &seeds[..3];
    assert!(honest.iter().all(|seed| try_one(seed, 3)));
    fuzz(&corpus("hub"), &seeds, &words, |bytes| {
        try_one(bytes, 0);
    });
}

/// Checks that there is nothing outside the cache, and that every blob inside matches its name.
fn check(folder: &Path, is_complete: bool) {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    assert!(names(folder).iter().all(|name| name == "cache"));
    let expected = [".locks", "models--owner--model"];
    assert!(
        names(&folder.join("cache"))
            .iter()
            .all(|name| expected.contains(&name.as_str()))
    );
    let repository = folder.join("cache/models--owner--model");
    let expected = ["blobs", "refs", "snapshots"];
    assert!(
        names(&repository)
            .iter()
            .all(|name| expected.contains(&name.as_str()))
    );
    assert_eq!(repository.join("refs/main").is_file(), is_complete);
    for blob in names(&repository.join("blobs")) {
        let contents =
            std::fs::read(repository.join("blobs").join(&blob)).expect("a blob can be read");
        if blob.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            match blob.len() {
                40 => assert_eq!(git_hash(&contents), blob.to_lowercase()),
                64 => assert_eq!(hex(&Sha256::digest(&contents)), blob.to_lowercase()),
                _ => {}
            }
        }
    }
}
