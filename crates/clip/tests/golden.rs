//! Parity with transformers; the files are written by `golden/make.py`.

use burn::tensor::DType;
use serde::Deserialize;
use swiftbrush_checkpoint::{Model, read_json};
use swiftbrush_clip::{Clip, TextEncoder, Tokenizer, cosine_similarity, resize};
use swiftbrush_testing::{F32, Golden, assert_close, device};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn check_text(name: &str) {
    let (golden, device) = (Golden::open(HERE, name), device());
    let folder = golden.model_folder("text_encoder");
    let folder = Model::open(folder.path()).unwrap();
    let encoder = TextEncoder::from_model(&folder, "text_encoder", None, &device).unwrap();
    let states = encoder.forward(golden.ints("tokens", &device));
    assert_close(states, golden.tensor("states", &device), F32);
}

#[test]
fn text_states_agree_with_gelu() {
    check_text("text_gelu");
}

#[test]
fn text_states_agree_with_quick_gelu() {
    check_text("text_quick_gelu");
}

fn check_clip(name: &str) {
    let golden = Golden::open(HERE, name);
    let device = device().autodiff();
    let folder = golden.model_folder("clip");
    let folder = Model::open(folder.path()).unwrap();
    let clip = Clip::from_model(&folder, "clip", None, &device).unwrap();

    let images = golden.tensor::<4>("images", &device).require_grad();
    let image_embeds = clip.embed_images(images.clone());
    let text_embeds = clip.embed_texts(golden.ints("tokens", &device));
    let expected = |name| golden.tensor::<2>(name, &device).inner();
    assert_close(image_embeds.clone().inner(), expected("image_embeds"), F32);
    assert_close(text_embeds.clone().inner(), expected("text_embeds"), F32);

    let cosine = cosine_similarity(image_embeds, text_embeds.clone());
    assert_close(
        cosine.clone().inner(),
        golden.tensor::<1>("cosine", &device).inner(),
        F32,
    );
    let grads = cosine.sum().backward();
    let found = images.grad(&grads).unwrap();
    let images_grad = golden.tensor::<4>("images_grad", &device).inner();
    assert_close(found, images_grad.clone(), F32);

    let pass = clip.embed_images_checkpointed(images.inner());
    assert_close(pass.embeds(), expected("image_embeds"), F32);
    // The cosine's gradient with respect to the image's embedding is the text's.
    let grad = pass.backward(&clip, text_embeds.inner());
    assert_close(grad, images_grad, F32);
}

#[test]
fn both_towers_and_their_gradient_agree_with_gelu() {
    check_clip("clip_gelu");
}

#[test]
fn both_towers_and_their_gradient_agree_with_quick_gelu() {
    check_clip("clip_quick_gelu");
}

#[test]
fn resizing_is_bicubic_with_antialiasing() {
    let (golden, device) = (Golden::open(HERE, "resize"), device());
    for name in ["down", "up", "same_rows"] {
        let expected = golden.tensor::<4>(&format!("{name}.out"), &device);
        let [_, _, height, width] = expected.dims();
        let found = resize(golden.tensor(&format!("{name}.in"), &device), height, width);
        assert_close(found, expected, F32);
    }
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<i32>,
}

#[test]
fn tokens_are_those_of_transformers() {
    let here = std::path::Path::new(HERE).join("tests/golden");
    let tokenizer = Tokenizer::from_model(&Model::open(&here).unwrap(), "tokenizer").unwrap();
    let cases: Vec<Case> = read_json(here.join("tokens.json")).unwrap();
    for Case { prompt, ids } in cases {
        assert_eq!(tokenizer.encode(&prompt).ids, ids, "{prompt:?}");
    }
}

/// Both towers from open_clip's files: a pickle with quick GELU, and safetensors in f16 with heads of an odd width,
/// written by `golden/make_open_clip.py`.
#[test]
fn open_clips_own_files() {
    let (golden, device) = (Golden::open(HERE, "open_clip"), device());
    for name in ["b", "g"] {
        let folder = std::path::Path::new(HERE).join("tests/golden/open_clip");
        let model = Model::open(folder.join(name)).unwrap();
        let clip = Clip::from_model(&model, ".", Some(DType::F32), &device).unwrap();
        let images = golden.tensor(&format!("{name}.images"), &device);
        let tokens = golden.ints(&format!("{name}.tokens"), &device);
        let expected = |what: &str| golden.tensor(&format!("{name}.{what}"), &device);
        assert_close(clip.embed_images(images), expected("image_embeds"), F32);
        assert_close(clip.embed_texts(tokens), expected("text_embeds"), F32);
    }
}

/// The built-in vocabulary, with the padding of 1.x and 2.x.
#[test]
fn clips_own_tokenizer() {
    let plain = Tokenizer::clip("<|endoftext|>").encode("a photo of a cat!");
    let expected = [49406, 320, 1125, 539, 320, 2368, 256, 49407, 49407];
    assert_eq!((&plain.ids[..9], plain.ids.len()), (&expected[..], 77));
    let padded = Tokenizer::clip("!").encode("a photo of a cat");
    assert_eq!(padded.ids[5..9], [2368, 49407, 0, 0]);
}
