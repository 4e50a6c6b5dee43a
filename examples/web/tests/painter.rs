//! The page's painter natively: the same images and records as from the file system.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use burn::tensor::Device;
use examples_web::painter::{Error, Limit, Painter, Painting, Place, Wish};
use swiftbrush_checkpoint::MemoryFiles;
use swiftbrush_pipeline::{Loader, Model, Rng, Seeds, Source, TextToImage};

const LIMIT: u64 = 4_000_000_000;

fn miniature() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../miniature")
}

/// The miniature in memory as `model`, and its teacher as `teacher`, with one file changed.
fn files(change: impl Fn(&str, &mut Vec<u8>)) -> Arc<MemoryFiles> {
    files_of(&miniature(), change)
}

fn files_of(root: &Path, change: impl Fn(&str, &mut Vec<u8>)) -> Arc<MemoryFiles> {
    let mut files = Vec::new();
    for (folder, name) in [
        ("model/scheduler", "scheduler_config.json"),
        ("model/tokenizer", "vocab.json"),
        ("model/tokenizer", "merges.txt"),
        ("model/tokenizer", "tokenizer_config.json"),
        ("model/tokenizer", "special_tokens_map.json"),
        ("model/text_encoder", "config.json"),
        ("model/text_encoder", "model.safetensors"),
        ("model/unet", "config.json"),
        ("model/unet", "diffusion_pytorch_model.safetensors"),
        ("model/vae", "config.json"),
        ("model/vae", "diffusion_pytorch_model.safetensors"),
        ("teacher", "config.json"),
        ("teacher", "diffusion_pytorch_model.safetensors"),
    ] {
        let path = format!("{folder}/{name}");
        let folder = match folder {
            "teacher" => miniature(),
            _ => root.to_owned(),
        };
        let mut bytes = std::fs::read(folder.join(&path)).unwrap();
        change(&path, &mut bytes);
        files.push((path, bytes));
    }
    Arc::new(files.into_iter().collect())
}

fn painter() -> Painter {
    Painter::open("model", files(|_, _| ()), Place::cpu(LIMIT)).unwrap()
}

/// The result of a computation on the CPU, which has to wait for nothing.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the CPU has to wait for nothing"),
    }
}

fn paint(painter: &Painter, wish: &Wish) -> Painting {
    now(painter.paint(wish)).unwrap()
}

fn wish(prompt: &str, seed: u64) -> Wish {
    Wish {
        prompt: prompt.to_owned(),
        seed,
        ..Wish::default()
    }
}

#[test]
fn the_image_and_the_record_are_those_of_the_file_system() {
    let prompt = "a red circle above a green star on a white background";
    let painting = paint(&painter(), &wish(prompt, 7));

    let model = miniature().join("model");
    let pipeline =
        TextToImage::from_model(&Model::open(&model).unwrap(), None, &Device::flex()).unwrap();
    let request = pipeline.request([prompt]).unwrap();
    let generation = pipeline.generate(&request, &mut Seeds::new(Rng::Native, [7]));
    assert_eq!(painting.picture, generation.unwrap().pictures()[0]);
    assert_eq!(
        painting.record.hashes,
        Source::new(&model).hashes().unwrap()
    );

    let png = painting.png();
    let again = Painting::of_png(&png, "picture.png").unwrap();
    assert_eq!(
        (again.picture, again.record),
        (painting.picture, painting.record)
    );
}

#[test]
fn an_interpolation_reaches_both_denoisers() {
    let mut painter = painter();
    let one = wish("a blue square", 3);
    let own = paint(&painter, &one);
    let mut at = |lambda| {
        painter.interpolate("teacher", lambda).unwrap();
        paint(&painter, &one)
    };
    let middle = at(0.5);
    assert_ne!(middle.picture, own.picture);
    let record = middle.record.interpolation.unwrap();
    assert_eq!(
        (record.lambda, record.other.to_str()),
        (0.5, Some("teacher"))
    );
    assert_eq!(record.hashes.len(), 1);
    let other = at(0.0);
    assert_ne!(other.picture, middle.picture);
    let again = at(1.0);
    assert_eq!(
        again.picture, own.picture,
        "nothing of an earlier λ remains"
    );
    assert_eq!(again.record.interpolation, None);
}

#[test]
fn an_edit_keeps_the_record_of_what_was_edited() {
    let painter = painter();
    let first = paint(&painter, &wish("a red circle", 1)).png();
    let wish = wish("a blue circle", 1);
    let edited = now(painter.edit(&first, "first.png", &wish)).unwrap();
    let record = edited.record.edit.unwrap();
    assert_eq!(record.source_prompt, "a red circle");
    assert_eq!(
        record.image.sha256,
        swiftbrush_checkpoint::sha256_of(&first)
    );
}

#[test]
fn damage_and_size_are_errors_that_name_them() {
    let place = |limit| Place {
        limit,
        ..Place::cpu(0)
    };
    let refused = |files, limit| match Painter::open("model", files, place(limit)) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    };
    let cut = files(|path, bytes| {
        if path.ends_with("unet/diffusion_pytorch_model.safetensors") {
            bytes.truncate(bytes.len() - 1);
        }
    });
    let error = refused(cut, Limit::Total(LIMIT));
    assert!(
        error.contains("unet/diffusion_pytorch_model.safetensors"),
        "{error}"
    );
    let error = refused(files(|_, _| ()), Limit::Total(10_000_000));
    assert!(error.contains("at most 10 MB"), "{error}");
    let error = refused(files(|_, _| ()), Limit::Buffer(1_000_000));
    assert!(
        error.contains("unet: ") && error.contains("binds at most 1 MB"),
        "{error}"
    );
}

#[test]
fn only_layers_that_compute_in_int8_are_counted_in_int8() {
    let needed = |files| match Painter::open("model", files, Place::cpu(0)) {
        Ok(_) => panic!("it was opened"),
        Err(Error::TooLarge { needed, .. }) => needed as i64,
        Err(error) => panic!("{error}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(miniature().join("model")).unwrap();
    let loader = Loader::new(model, &Device::flex());
    loader.quantize(folder.path().join("model")).unwrap();
    let saved = needed(files(|_, _| ())) - needed(files_of(folder.path(), |_, _| ()));
    // 3.8 MB of the denoiser, 0.3 MB of the text encoder's layers, and nothing of its embeddings and of the autoencoder, whose
    // 0.7 million weights are widened.
    assert!((4..=5).contains(&saved), "{saved} MB");
}
