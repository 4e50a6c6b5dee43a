//! Several threads and processes sharing one cache, and cancellation.

use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use swiftbrush_checkpoint::{Event, Hub, HubError};

use super::server::{FIRST, etag};
use super::{ID, LEN, UNET, fault, get, go_on, hub, setting, snapshot};

/// Number of requests for the contents of a file.
fn count(downloads: &[(String, String)], file: &str) -> usize {
    downloads.iter().filter(|(found, _)| found == file).count()
}

#[test]
fn threads_with_one_cache_download_once() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| get(&hub, ID).unwrap()))
            .collect();
        for thread in threads {
            let model = thread.join().unwrap();
            assert_eq!(
                std::fs::read(model.root().join(UNET)).unwrap(),
                vec![7; LEN]
            );
        }
    });
    let downloads = server.downloads();
    assert_eq!(count(&downloads, UNET), 1, "{downloads:?}");
}

const CHILD: &str = "SWIFTBRUSH_HUB_TEST_TOGETHER";

fn spawn(place: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "together::processes_with_one_cache_download_once",
        ])
        .env(CHILD, place)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn processes_with_one_cache_download_once() {
    if let Ok(place) = std::env::var(CHILD) {
        let (endpoint, cache) = place.split_once(' ').unwrap();
        get(&Hub::new(cache).with_endpoint(endpoint), ID).unwrap();
        return;
    }
    let (server, cache) = setting();
    let place = format!("{} {}", server.endpoint, cache.path().display());
    let mut children: Vec<_> = (0..3).map(|_| spawn(&place)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let downloads = server.downloads();
    assert_eq!(count(&downloads, UNET), 1, "{downloads:?}");
    assert_eq!(
        std::fs::read(snapshot(&cache, FIRST).join(UNET)).unwrap(),
        vec![7; LEN]
    );
}

#[test]
fn waiting_for_another_process_is_reported_and_can_be_cancelled() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    let folder = cache.path().join(".locks/models--owner--model");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join(format!("{}.lock", etag(&vec![7; LEN])))).unwrap();
    lock.lock().unwrap();
    let mut waits = 0;
    let cancelled = hub.model(ID, &["unet"], None, &mut |event| match event {
        Event::Waiting { file } if file == UNET => {
            waits += 1;
            if waits == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(fault(cancelled).0, HubError::Cancelled));
    assert_eq!(waits, 3);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(lock);
    });
    get(&hub, ID).unwrap();
    release.join().unwrap();
}

#[test]
fn a_cancelled_download_is_resumed_later() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    server.fault("GET", UNET, 1, |answer| answer.stall = Some(4_000));
    let cancelled = hub.model(ID, &["unet"], None, &mut |event| match event {
        Event::Progress(download) if download.file == UNET => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(fault(cancelled).0, HubError::Cancelled));
    server.log();
    get(&hub, ID).unwrap();
    let downloads = server.downloads();
    let (_, range) = downloads.iter().find(|(file, _)| file == UNET).unwrap();
    assert!(range.starts_with("bytes="), "{downloads:?}");
}

#[test]
fn the_pause_before_a_retry_can_be_cancelled() {
    let (server, cache) = setting();
    server.fault("GET", "/api/", 9, |answer| {
        answer.status("429 Too Many Requests");
        answer.set("Retry-After", 60);
    });
    let hub = hub(&server, cache.path()).with_retries(5);
    let mut retries = 0;
    let cancelled = hub.file(ID, UNET, &mut |event| match event {
        Event::Retry { .. } if retries == 2 => ControlFlow::Break(()),
        Event::Retry { .. } => {
            retries += 1;
            ControlFlow::Continue(())
        }
        event => go_on(event),
    });
    assert!(matches!(fault(cancelled).0, HubError::Cancelled));
}
