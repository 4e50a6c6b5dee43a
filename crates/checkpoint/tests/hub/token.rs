//! The token is sent to the endpoint and nowhere else.

use super::server::{Server, etag};
use super::{ID, LEN, UNET, get, hub, message, setting};

const TOKEN: &str = "hf_secret";

/// A hub that stores large files on another server.
fn with_storage() -> (Server, Server, tempfile::TempDir) {
    let (server, cache) = setting();
    let storage = Server::new();
    // The weights of the U-Net and of the autoencoder.
    for byte in [7, 9] {
        let contents = vec![byte; LEN];
        storage.state().blobs.insert(etag(&contents), contents);
    }
    server.state().storage = Some(storage.endpoint.clone());
    server.state().token = Some(TOKEN.to_owned());
    (server, storage, cache)
}

#[test]
fn the_token_is_not_sent_to_redirect_targets() {
    let (server, storage, cache) = with_storage();
    let hub = hub(&server, cache.path()).with_token(TOKEN);
    let model = get(&hub, ID).unwrap();
    assert_eq!(
        std::fs::read(model.root().join(UNET)).unwrap(),
        vec![7; LEN]
    );
    let expected = format!("Bearer {TOKEN}");
    let first = server.log();
    assert!(first.iter().any(|seen| seen.path.contains(UNET)));
    for seen in first {
        assert_eq!(seen.authorization.as_ref(), Some(&expected), "{seen:?}");
    }
    let second = storage.log();
    assert_eq!(second.len(), 2, "{second:?}");
    for seen in second {
        assert_eq!(seen.authorization, None, "{seen:?}");
    }
}

#[test]
fn a_resumed_download_keeps_the_token_from_redirect_targets() {
    let (server, storage, cache) = with_storage();
    storage.fault("GET", "/blob/", 1, |answer| answer.cut = Some(4_000));
    let hub = hub(&server, cache.path()).with_token(TOKEN).with_retries(1);
    get(&hub, ID).unwrap();
    let seen = storage.log();
    assert!(
        seen.iter().any(|seen| seen.range == "bytes=4000-"),
        "{seen:?}"
    );
    assert!(
        seen.iter().all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
}

#[test]
fn redirects_of_renamed_models_keep_the_token() {
    let (server, cache) = setting();
    server.state().token = Some(TOKEN.to_owned());
    for (method, path, target) in [
        (
            "GET",
            "/api/models/old/name/",
            "/api/models/owner/model/revision/main",
        ),
        (
            "HEAD",
            "/old/name/resolve/",
            "/owner/model/resolve/main/README.md",
        ),
        (
            "GET",
            "/old/name/resolve/",
            "/owner/model/resolve/main/README.md",
        ),
    ] {
        server.fault(method, path, 1, move |answer| {
            answer.status("307 Temporary Redirect");
            answer.set("Location", target);
        });
    }
    let hub = hub(&server, cache.path()).with_token(TOKEN);
    let path = hub
        .file("old/name", "README.md", &mut super::go_on)
        .unwrap();
    assert_eq!(std::fs::read(path).unwrap().len(), LEN);
}

#[test]
fn a_listing_that_redirects_elsewhere_is_rejected() {
    let (server, cache) = setting();
    let other = Server::new();
    let target = format!("{}/api", other.endpoint);
    server.fault("GET", "/api/", 1, move |answer| {
        answer.status("302 Found");
        answer.set("Location", &target);
    });
    let hub = hub(&server, cache.path()).with_token(TOKEN);
    let error = message(get(&hub, ID));
    assert!(error.contains("unexpected answer"), "{error}");
    assert!(other.log().is_empty());
}

#[test]
fn no_text_contains_the_token() {
    let (server, cache) = setting();
    server.state().token = Some("another".to_owned());
    let hub = hub(&server, cache.path()).with_token(TOKEN);
    assert!(!format!("{hub:?}").contains(TOKEN));
    assert!(format!("{hub:#?}").contains("(hidden)"));
    let error = get(&hub, ID).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");

    let broken = super::hub(&server, cache.path()).with_token(format!("{TOKEN}\n"));
    let error = get(&broken, ID).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
}
