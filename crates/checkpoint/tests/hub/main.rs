//! Downloads from a small local hub that can be made to fail.

mod caches;
mod errors;
mod faults;
mod server;
mod together;
mod token;

use std::ops::ControlFlow;
use std::path::Path;

use server::{FIRST, SECOND, Server};
use swiftbrush_checkpoint::{Error, Event, Hub, HubError, Model};
use tempfile::TempDir;

const ID: &str = "owner/model";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
/// Length of every weight file.
const LEN: usize = 10_000;

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(cache)
        .with_endpoint(&server.endpoint)
        .with_retries(0)
}

fn serve_model(server: &Server, id: &str) {
    for file in [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
    ] {
        server.put(id, file, format!("{{\"file\": {file:?}}}").as_bytes());
    }
    for (index, file) in [
        UNET,
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "README.md",
    ]
    .into_iter()
    .enumerate()
    {
        server.put(id, file, &vec![index as u8 + 7; LEN]);
    }
}

fn setting() -> (Server, TempDir) {
    let server = Server::new();
    serve_model(&server, ID);
    (server, tempfile::tempdir().unwrap())
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn get(hub: &Hub, id: &str) -> Result<Model, Error> {
    hub.model(id, &["unet", "vae"], None, &mut go_on)
}

/// The model and the warnings.
fn get_with_warnings(hub: &Hub, id: &str) -> (Result<Model, Error>, Vec<Event>) {
    let mut warnings = Vec::new();
    let model = hub.model(id, &["unet", "vae"], None, &mut |event| {
        if event.is_warning() {
            warnings.push(event);
        }
        ControlFlow::Continue(())
    });
    (model, warnings)
}

fn fault<T>(result: Result<T, Error>) -> (HubError, String) {
    let error = result.err().expect("it must fail");
    let text = error.to_string();
    match error {
        Error::Hub { reason, .. } => (reason, text),
        error => panic!("expected an error of the hub, found {error:?}"),
    }
}

fn message<T>(result: Result<T, Error>) -> String {
    fault(result).1
}

fn snapshot(cache: &TempDir, commit: &str) -> std::path::PathBuf {
    cache
        .path()
        .join("models--owner--model/snapshots")
        .join(commit)
}

fn main_is(cache: &TempDir, commit: &str) -> bool {
    let path = cache.path().join("models--owner--model/refs/main");
    std::fs::read_to_string(path).is_ok_and(|found| found == commit)
}

#[test]
fn only_requested_files_are_downloaded_and_only_once() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    let mut last = None;
    let model = hub
        .model(ID, &["unet", "vae"], None, &mut |event| {
            if let Event::Progress(download) = event
                && download.file == UNET
            {
                last = Some((download.done, download.size));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(last, Some((LEN as u64, LEN as u64)));
    assert_eq!(model.root(), snapshot(&cache, FIRST));
    for file in [UNET, "tokenizer/vocab.json"] {
        assert!(model.root().join(file).is_file(), "{file}");
    }
    assert!(main_is(&cache, FIRST));
    let paths: Vec<_> = server.log().into_iter().map(|seen| seen.path).collect();
    for other in ["fp16", "safety_checker", "README"] {
        assert!(paths.iter().all(|path| !path.contains(other)), "{paths:?}");
    }

    get(&hub, ID).unwrap();
    let again: Vec<_> = server.log().into_iter().map(|seen| seen.path).collect();
    assert_eq!(again, ["/api/models/owner/model/revision/main"]);
    let offline = hub.with_offline(true);
    assert_eq!(get(&offline, ID).unwrap().root(), snapshot(&cache, FIRST));
    assert!(server.log().is_empty());
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_huggingface_hub() {
    let (server, cache) = setting();
    get(&hub(&server, cache.path()), ID).unwrap();
    let tag = server::etag(&vec![7; LEN]);
    let link = std::fs::read_link(snapshot(&cache, FIRST).join(UNET)).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(&tag));
    let blob = cache.path().join("models--owner--model/blobs").join(&tag);
    assert_eq!(std::fs::read(blob).unwrap(), vec![7; LEN]);
    let lock = cache
        .path()
        .join(".locks/models--owner--model")
        .join(format!("{tag}.lock"));
    assert!(lock.is_file());
}

#[test]
fn variants_shards_and_repositories_of_one_component() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    server.put("owner/sharded", "model.safetensors.index.json", index);
    server.put("owner/sharded", "model-1.safetensors", b"1");
    server.put("owner/sharded", "model-2.safetensors", b"2");
    let folder = hub.component("owner/sharded", &mut go_on).unwrap();
    assert!(folder.join("model-1.safetensors").is_file());
    assert!(folder.join("model-2.safetensors").is_file());

    server.log();
    hub.model(ID, &["unet"], Some("fp16"), &mut go_on).unwrap();
    let downloads = server.downloads();
    let weights: Vec<_> = downloads
        .iter()
        .filter(|(file, _)| file.contains("model."))
        .collect();
    assert!(
        weights.len() == 1 && weights[0].0.contains("fp16"),
        "{downloads:?}"
    );

    let file = hub
        .file(&format!("{ID}@main"), "README.md", &mut go_on)
        .unwrap();
    assert_eq!(std::fs::read(file).unwrap().len(), LEN);
    let error = message(hub.model(ID, &["text_encoder"], None, &mut go_on));
    assert!(error.contains("no weights in text_encoder/"), "{error}");
}

#[test]
fn all_files_come_from_the_commit_that_was_resolved_first() {
    let (server, cache) = setting();
    server.commit(ID);
    server.put_at(
        ID,
        SECOND,
        "vae/config.json",
        b"{\"of\": \"the second commit\"}",
    );
    let main = (ID.to_owned(), "main".to_owned());
    server.state().branches.insert(main, FIRST.to_owned());
    server.state().move_after = Some("unet/config.json".to_owned());

    let hub = hub(&server, cache.path());
    let model = get(&hub, ID).unwrap();
    assert_eq!(model.root(), snapshot(&cache, FIRST));
    let config = std::fs::read_to_string(model.root().join("vae/config.json")).unwrap();
    assert!(!config.contains("second"), "{config}");
    assert!(!snapshot(&cache, SECOND).exists());

    // Only the changed file of the second commit is downloaded.
    server.log();
    let model = get(&hub, ID).unwrap();
    assert_eq!(model.root(), snapshot(&cache, SECOND));
    let files: Vec<_> = server
        .downloads()
        .into_iter()
        .map(|(file, _)| file)
        .collect();
    assert_eq!(files, ["vae/config.json"]);
    assert!(model.root().join(UNET).is_file());
    assert!(main_is(&cache, SECOND));
}

#[test]
fn an_interrupted_update_leaves_the_old_commit_usable() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path());
    get(&hub, ID).unwrap();
    server.commit(ID);
    server.put_at(ID, SECOND, "vae/diffusion_pytorch_model.bin", &vec![1; LEN]);
    server.fault("GET", "vae/diff", 1, |answer| answer.cut = Some(10));
    message(get(&hub, ID));
    assert!(main_is(&cache, FIRST));
    let offline = hub.clone().with_offline(true);
    assert_eq!(get(&offline, ID).unwrap().root(), snapshot(&cache, FIRST));
    assert_eq!(get(&hub, ID).unwrap().root(), snapshot(&cache, SECOND));
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let (server, cache) = setting();
    server.commit(ID);
    let pull = (ID.to_owned(), "refs/pr/1".to_owned());
    server.state().branches.insert(pull, FIRST.to_owned());
    let hub = hub(&server, cache.path());
    for (revision, commit) in [("refs/pr/1", FIRST), (SECOND, SECOND), ("main", SECOND)] {
        let model = get(&hub, &format!("{ID}@{revision}")).unwrap();
        assert_eq!(model.root(), snapshot(&cache, commit), "{revision}");
    }
    let refs = cache.path().join("models--owner--model/refs");
    assert!(refs.join("refs/pr/1").is_file() && !refs.join(SECOND).exists());
    let error = message(get(&hub, &format!("{ID}@v2")));
    assert!(error.contains("no revision \"v2\""), "{error}");
}

#[test]
fn empty_files_are_files() {
    let (server, cache) = setting();
    server.put(ID, "empty.txt", b"");
    let path = hub(&server, cache.path()).file(ID, "empty.txt", &mut go_on);
    assert_eq!(std::fs::read(path.unwrap()).unwrap(), b"");
}

#[test]
fn files_are_copied_without_symlinks() {
    let (server, cache) = setting();
    let hub = hub(&server, cache.path()).with_symlinks(false);
    let model = get(&hub, ID).unwrap();
    let path = model.root().join(UNET);
    assert!(path.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(path).unwrap(), vec![7; LEN]);
}

#[test]
fn a_model_is_found_by_path_or_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let model = Model::find(name, &["unet"], None, &mut go_on).unwrap();
    assert_eq!(model.root(), folder.path());
    let error = Model::open("stabilityai/sd-turbo").unwrap_err();
    assert!(matches!(error, Error::HubName { .. }), "{error:?}");
    let error = error.to_string();
    assert!(
        error.contains("Model::find") && error.contains("`hub`"),
        "{error}"
    );
    let error = Model::find("./none", &["unet"], None, &mut go_on).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}
