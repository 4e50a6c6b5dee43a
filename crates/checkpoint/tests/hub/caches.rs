//! Caches written by Python's `huggingface_hub`, recorded by `make_cache.py`.

use std::path::Path;

use serde_json::Value;
use swiftbrush_checkpoint::Hub;
use tempfile::TempDir;

use super::server::{FIRST, SECOND, Server};
use super::{ID, LEN, UNET, get, go_on, hub, main_is, serve_model, snapshot};

const VERSIONS: [&str; 2] = [
    include_str!("huggingface_hub-1.33.0.json"),
    include_str!("huggingface_hub-2.4.0.json"),
];

/// Writes a recorded cache.
fn restore(recorded: &str) -> TempDir {
    let cache = tempfile::tempdir().unwrap();
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    for entry in recorded["entries"].as_array().unwrap() {
        let path = cache.path().join(entry["path"].as_str().unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match entry["link"].as_str() {
            Some(target) => link(target, &path),
            None => std::fs::write(&path, contents(entry)).unwrap(),
        }
    }
    cache
}

fn contents(entry: &Value) -> Vec<u8> {
    match entry["byte"].as_u64() {
        Some(byte) => vec![byte as u8; entry["times"].as_u64().unwrap() as usize],
        None => entry["text"].as_str().unwrap().into(),
    }
}

#[cfg(unix)]
fn link(target: &str, path: &Path) {
    std::os::unix::fs::symlink(target, path).unwrap();
}

#[cfg(windows)]
fn link(target: &str, path: &Path) {
    std::os::windows::fs::symlink_file(target, path).unwrap();
}

/// The model of `make_cache.py`.
fn server() -> Server {
    let server = Server::new();
    serve_model(&server, ID);
    server.commit(ID);
    server.put_at(
        ID,
        SECOND,
        "vae/config.json",
        b"{\"of\": \"the second commit\"}",
    );
    server
}

#[test]
fn a_cache_of_huggingface_hub_is_used_offline() {
    for version in VERSIONS {
        let cache = restore(version);
        let hub = Hub::new(cache.path()).with_offline(true);
        let model = get(&hub, ID).unwrap();
        assert_eq!(model.root(), snapshot(&cache, SECOND));
        assert_eq!(
            std::fs::read(model.root().join(UNET)).unwrap(),
            vec![7; LEN]
        );
        // Python writes no ref for a commit that is requested by its hash.
        assert!(
            !cache
                .path()
                .join("models--owner--model/refs")
                .join(FIRST)
                .exists()
        );
        let model = get(&hub, &format!("{ID}@{FIRST}")).unwrap();
        assert_eq!(model.root(), snapshot(&cache, FIRST));
    }
}

#[test]
fn a_cache_of_huggingface_hub_is_used_online_without_downloading() {
    for version in VERSIONS {
        let cache = restore(version);
        let server = server();
        let hub = hub(&server, cache.path());
        for (id, commit) in [(ID, SECOND), (&format!("{ID}@{FIRST}"), FIRST)] {
            assert_eq!(get(&hub, id).unwrap().root(), snapshot(&cache, commit));
            let log = server.log();
            let is_listing = log.len() == 1 && log[0].path.starts_with("/api/");
            assert!(is_listing, "{log:?}");
        }
        let file = hub
            .file(&format!("{ID}@{FIRST}"), UNET, &mut go_on)
            .unwrap();
        assert_eq!(file, snapshot(&cache, FIRST).join(UNET));
        assert!(server.log().is_empty());
    }
}

#[test]
fn blobs_of_huggingface_hub_are_linked_into_other_commits() {
    for version in VERSIONS {
        let cache = restore(version);
        std::fs::remove_dir_all(snapshot(&cache, SECOND)).unwrap();
        let server = server();
        let model = get(&hub(&server, cache.path()), ID).unwrap();
        assert_eq!(
            std::fs::read(model.root().join(UNET)).unwrap(),
            vec![7; LEN]
        );
        assert!(main_is(&cache, SECOND));
        assert_eq!(server.downloads(), [], "blobs are linked");
    }
}

#[test]
fn a_link_without_its_blob_is_downloaded_again() {
    let cache = restore(VERSIONS[0]);
    let blob = std::fs::canonicalize(snapshot(&cache, SECOND).join(UNET)).unwrap();
    std::fs::remove_file(blob).unwrap();
    let server = server();
    let model = get(&hub(&server, cache.path()), ID).unwrap();
    assert_eq!(
        std::fs::read(model.root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
    assert_eq!(server.downloads(), [(UNET.to_owned(), String::new())]);
}
