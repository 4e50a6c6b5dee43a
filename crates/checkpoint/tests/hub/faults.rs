//! Networks and servers that fail.

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use swiftbrush_checkpoint::{Error, Event, Hub, HubError};

use super::server::{Answer, FIRST, etag};
use super::{ID, LEN, UNET, fault, get, get_with_warnings, hub, message, setting, snapshot};

#[test]
fn a_broken_download_is_resumed_by_the_next_call() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    server.fault("GET", UNET, 1, |answer| answer.cut = Some(4_000));
    let (error, text) = fault(get(&hub, ID));
    assert!(matches!(error, HubError::Interrupted { .. }), "{error:?}");
    assert!(
        text.contains(ID) && text.contains(UNET) && text.contains("run again"),
        "{text}"
    );
    server.log();
    let model = get(&hub, ID).unwrap();
    let downloads = server.downloads();
    let resumed = (UNET.to_owned(), "bytes=4000-".to_owned());
    assert!(downloads.contains(&resumed), "{downloads:?}");
    assert_eq!(
        std::fs::read(model.root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
}

#[test]
fn a_connection_that_breaks_is_resumed_at_once() {
    let (server, cache) = setting();
    server.fault("GET", UNET, 2, |answer| answer.cut = Some(4_000));
    server.fault("GET", "/api/", 1, |answer| {
        answer.status("503 Service Unavailable");
    });
    server.fault("HEAD", UNET, 1, |answer| answer.status("502 Bad Gateway"));
    let hub = hub(&server, cache.path()).with_retries(1);
    let mut retries = Vec::new();
    let model = hub
        .model(ID, &["unet", "vae"], None, &mut |event| {
            if let Event::Retry { file, reason } = event {
                retries.push((file, reason));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        std::fs::read(model.root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
    for (file, reason) in [(ID, "503"), (UNET, "502"), (UNET, "disconnected")] {
        let is_it = |(of, why): &(String, String)| of == file && why.contains(reason);
        assert!(retries.iter().any(is_it), "{file} {reason}: {retries:?}");
    }
}

#[test]
fn a_server_that_ignores_the_range_starts_over() {
    let (server, cache) = setting();
    server.fault("GET", UNET, 1, |answer| answer.cut = Some(4_000));
    server.fault("GET", UNET, 1, |answer| {
        answer.body = vec![7; LEN];
        "200 OK".clone_into(&mut answer.status);
        answer.headers.remove("Content-Range");
        answer.set("Content-Length", LEN);
    });
    let model = get(&hub(&server, cache.path()).with_retries(1), ID).unwrap();
    assert_eq!(
        std::fs::read(model.root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
}

#[test]
fn a_stalled_server_times_out() {
    let (server, cache) = setting();
    let timeout = Duration::from_millis(300);
    let hub = hub(&server, cache.path())
        .with_download_timeout(timeout)
        .with_metadata_timeout(timeout);
    for (method, path, received) in [
        ("GET", UNET, 4_000),
        ("GET", "/api/", 3),
        ("GET", "/api/", 0),
    ] {
        server.fault(method, path, 1, move |answer| answer.stall = Some(received));
        let start = Instant::now();
        let error = message(get(&hub, ID));
        assert!(error.contains("timeout"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{path}");
    }
    // The bytes received before are kept.
    server.log();
    get(&hub, ID).unwrap();
    let downloads = server.downloads();
    assert!(
        downloads.iter().any(|(_, range)| range == "bytes=4000-"),
        "{downloads:?}"
    );
}

#[test]
fn a_file_of_another_hash_is_deleted() {
    for file in [UNET, "unet/config.json"] {
        let (server, cache) = setting();
        server.fault("GET", file, 1, |answer| answer.body[3] ^= 1);
        let hub = hub(&server, cache.path());
        let (error, text) = fault(get(&hub, ID));
        assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
        assert!(text.contains(file) && text.contains("SHA-"), "{text}");
        assert!(!snapshot(&cache, FIRST).join(file).exists());
        let blobs = std::fs::read_dir(cache.path().join("models--owner--model/blobs")).unwrap();
        let blobs: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
        assert!(
            blobs.len() <= 1
                && blobs
                    .iter()
                    .all(|blob| !blob.to_string_lossy().contains("incomplete")),
            "{blobs:?}"
        );
        get(&hub, ID).unwrap();
    }
}

#[test]
fn a_file_of_another_length_is_deleted() {
    let changes: [fn(&mut Answer); 3] = [
        |answer| {
            answer.body.truncate(LEN - 1);
            answer.set("Content-Length", LEN - 1);
        },
        |answer| {
            answer.body.push(7);
            answer.set("Content-Length", LEN + 1);
        },
        // Without a length, the file ends with the connection.
        |answer| {
            answer.body.push(7);
            answer.headers.remove("Content-Length");
        },
    ];
    for change in changes {
        let (server, cache) = setting();
        server.fault("GET", UNET, 1, change);
        let hub = hub(&server, cache.path());
        let (error, text) = fault(get(&hub, ID));
        assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
        assert!(
            text.contains(UNET) && text.contains("10000 bytes"),
            "{text}"
        );
        let incomplete = format!("{}.incomplete", etag(&vec![7; LEN]));
        let blobs = cache.path().join("models--owner--model/blobs");
        assert!(!blobs.join(incomplete).exists());
        get(&hub, ID).unwrap();
    }
}

#[test]
fn a_file_that_is_shorter_than_announced_is_not_taken() {
    let (server, cache) = setting();
    server.fault("HEAD", UNET, 1, |answer| {
        answer.set("Content-Length", LEN + 1);
    });
    let hub = hub(&server, cache.path());
    let (error, _) = fault(get(&hub, ID));
    assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
    // The connection ends before the announced length.
    server.fault("GET", UNET, 1, |answer| answer.body.truncate(LEN - 1));
    let (error, _) = fault(get(&hub, ID));
    assert!(matches!(error, HubError::Interrupted { .. }), "{error:?}");
    get(&hub, ID).unwrap();
}

#[test]
fn an_etag_that_is_not_a_hash_is_reported() {
    let (server, cache) = setting();
    server.fault("HEAD", UNET, 1, |answer| answer.set("ETag", "\"v1\""));
    let (model, warnings) = get_with_warnings(&hub(&server, cache.path()), ID);
    model.unwrap();
    let [Event::Warning(warning)] = warnings.as_slice() else {
        panic!("expected one warning, found {warnings:?}");
    };
    assert!(
        warning.contains(UNET) && warning.contains("not a hash"),
        "{warning}"
    );
}

#[test]
fn a_damaged_blob_is_downloaded_again_with_a_warning() {
    let (server, cache) = setting();
    let blobs = cache.path().join("models--owner--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(etag(&vec![7; LEN])), [7; 10]).unwrap();
    let (model, warnings) = get_with_warnings(&hub(&server, cache.path()), ID);
    assert_eq!(
        std::fs::read(model.unwrap().root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
    let [Event::Warning(warning)] = warnings.as_slice() else {
        panic!("expected one warning, found {warnings:?}");
    };
    assert!(
        warning.contains("expected 10000 bytes, found 10"),
        "{warning}"
    );
}

#[test]
fn a_cached_model_is_used_with_a_warning_when_the_hub_is_out_of_reach() {
    let (server, cache) = setting();
    let online = hub(&server, cache.path());
    get(&online, ID).unwrap();
    server.fault("GET", "/api/", 9, |answer| {
        answer.status("500 Internal Server Error");
    });
    let gone = Hub::new(cache.path())
        .with_endpoint(closed())
        .with_retries(0);
    for (hub, reason) in [(&online, "500"), (&gone, "cannot be reached")] {
        for id in [ID, &format!("{ID}@{FIRST}")] {
            let (model, warnings) = get_with_warnings(hub, id);
            assert_eq!(model.unwrap().root(), snapshot(&cache, FIRST));
            let [warning @ Event::CacheOnly { commit, .. }] = warnings.as_slice() else {
                panic!("expected one warning, found {warnings:?}");
            };
            assert_eq!(commit, FIRST);
            let warning = warning.to_string();
            assert!(
                warning.contains(reason) && warning.contains(ID),
                "{warning}"
            );
        }
        let missing = hub.model(ID, &["text_encoder"], None, &mut super::go_on);
        let error = message(missing);
        assert!(
            error.contains(reason) && error.contains("no weights in text_encoder/"),
            "{error}"
        );
    }
}

/// An endpoint that nothing listens on.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn without_a_network_the_error_names_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(cache.path())
        .with_endpoint(closed())
        .with_retries(0);
    let error = message(get(&hub, ID));
    assert!(
        error.contains("cannot be reached") && error.contains("no copy"),
        "{error}"
    );
    let offline = hub.with_offline(true);
    let error = message(get(&offline, ID));
    assert!(
        error.contains("HF_HUB_OFFLINE") && error.contains("\"main\""),
        "{error}"
    );
    std::fs::create_dir_all(snapshot(&cache, FIRST)).unwrap();
    let id = format!("{ID}@{FIRST}");
    let error = message(get(&offline, &id));
    assert!(error.contains("no weights in unet/"), "{error}");
    let error = message(offline.file(&id, "x.safetensors", &mut super::go_on));
    assert!(error.contains("no x.safetensors"), "{error}");
}

const CHILD: &str = "SWIFTBRUSH_HUB_TEST_FULL_DISK";

/// A full disk, simulated by a limit on file sizes in a separate process.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_bytes_are_kept() {
    if let Ok(place) = std::env::var(CHILD) {
        let (endpoint, cache) = place.split_once(' ').unwrap();
        let hub = Hub::new(PathBuf::from(cache))
            .with_endpoint(endpoint)
            .with_retries(0);
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
    let name = "faults::a_full_disk_is_an_error_and_the_bytes_are_kept";
    let limited = format!("trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact {name}");
    let child = Command::new("sh")
        .args(["-c", &limited])
        .arg(test)
        .env(CHILD, place)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}"
    );
    server.log();
    get(&hub(&server, cache.path()), ID).unwrap();
    let downloads = server.downloads();
    assert!(
        downloads.iter().any(|(_, range)| range == "bytes=8192-"),
        "{downloads:?}"
    );
}
