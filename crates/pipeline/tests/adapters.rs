//! Parity with diffusers for one set of adapters in every layout; the files are written by `golden/adapters.py`.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use swiftbrush_pipeline::lora::{AdapterFile, Error as AdapterError, Layout};
use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::{Error, Loader, Method, Model, Request, Rng, Seeds, TextToImage};
use swiftbrush_testing::{Golden, assert_close, device, values};

/// f32 on both sides, with weights made large by adapters.
const TOLERANCE: f64 = 1e-4;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

fn adapters(file: &str) -> AdapterFile {
    AdapterFile::open(golden("adapters").join(file)).expect("it is valid")
}

fn pipeline() -> TextToImage {
    let model = Model::open(golden("twins/sd15")).expect("it exists");
    let loader = Loader::new(model, &device());
    loader.load().expect("it is valid")
}

fn generate(pipeline: &TextToImage) -> Tensor<4> {
    let request = Request::new(["a red circle on a blue background", ""])
        .with_method(Method::Sampler(SamplerKind::Pndm, 5))
        .with_guidance(4.0)
        .with_negative_prompt("a");
    let generation = pipeline.generate(&request, &mut Seeds::new(Rng::Cpu, [3, 4]));
    generation.expect("the request is valid").latents
}

fn expected(name: &str) -> Tensor<4> {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "adapters").tensor(name, &device())
}

#[test]
fn every_layout_gives_the_latents_of_diffusers() {
    let plain = pipeline();
    assert_close(generate(&plain), expected("plain"), TOLERANCE);
    for (file, name) in [
        ("diffusers.safetensors", "adapted"),
        ("kohya.safetensors", "adapted"),
        ("kohya-ldm.safetensors", "adapted"),
        ("diffusers-lora.safetensors", "adapted"),
        ("diffusers-processor.safetensors", "attention"),
        ("pytorch_lora_weights.bin", "attention"),
        ("peft/adapter_model.safetensors", "rslora"),
    ] {
        let adapted = plain.with_adapters(&[(&adapters(file), 1.0)]);
        let adapted = adapted.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_close(generate(&adapted), expected(name), TOLERANCE);
    }
}

#[test]
fn adapters_are_stacked_scaled_and_swapped_without_reloading() {
    let plain = pipeline();
    let (all, attention) = (
        adapters("kohya.safetensors"),
        adapters("diffusers-processor.safetensors"),
    );
    let with = |adapters: &[(&AdapterFile, f64)]| {
        plain
            .with_adapters(adapters)
            .expect("there is a layer for each")
    };
    let half = with(&[(&all, 0.5)]);
    assert_close(generate(&half), expected("half"), TOLERANCE);
    let halves = with(&[
        (&all, 0.25),
        (&attention, 0.7),
        (&all, 0.25),
        (&attention, -0.7),
    ]);
    assert_close(generate(&halves), expected("half"), TOLERANCE);
    let exchanged = with(&[(&attention, 1.0)]);
    assert_close(generate(&exchanged), expected("attention"), TOLERANCE);
    assert_eq!(
        values(generate(&with(&[]))),
        values(generate(&plain)),
        "the adapted model is unchanged"
    );
}

/// Every layout contains the same adapters; those without α have it multiplied into the factors.
#[test]
fn every_layout_converts_to_every_other() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let file = folder.path().join("adapter_model.safetensors");
    let original = adapters("diffusers.safetensors");
    let all = [
        Layout::Diffusers,
        Layout::DiffusersLora,
        Layout::Kohya,
        Layout::KohyaLdm,
    ];
    for first in all {
        original.save(&file, first).expect("it can be written");
        let again = AdapterFile::open(&file).expect("it can be read");
        if first != Layout::DiffusersLora {
            assert_eq!(again, original, "{first:?}");
        }
        for second in all {
            again.save(&file, second).expect("it can be written");
            let adapted = AdapterFile::open(&file).expect("it can be read");
            let adapted = pipeline().with_adapters(&[(&adapted, 1.0)]);
            let adapted = adapted.expect("there is a layer for each");
            assert_close(generate(&adapted), expected("adapted"), TOLERANCE);
        }
    }
    let attention = adapters("diffusers-processor.safetensors");
    attention
        .save(&file, Layout::DiffusersProcessor)
        .expect("there is nothing but attention");
    assert_eq!(AdapterFile::open(&file).expect("it can be read"), attention);
    let unnamed = original.save(&file, Layout::DiffusersProcessor);
    let error = unnamed.expect_err("there is more").to_string();
    assert!(
        error.contains("conv_in, ") && error.contains(" more"),
        "{error}"
    );
    let two = original
        .save(&file, Layout::Peft)
        .expect_err("one file holds one network");
    assert!(two.to_string().contains("two folders"), "{two}");
    let mut unet = original;
    unet.text_encoder = Default::default();
    unet.save(&file, Layout::Peft).expect("it is one network");
    assert_eq!(AdapterFile::open(&file).expect("it can be read"), unet);
}

#[test]
fn adapters_of_another_model_are_rejected_with_all_their_names() {
    let model = Model::open(golden("twins/sd21")).expect("it exists");
    let other = Loader::new(model, &device()).load().expect("it is valid");
    let error = other
        .with_adapters(&[(&adapters("kohya.safetensors"), 1.0)])
        .expect_err("it has other layers");
    let text = error.to_string();
    let Error::Adapter(AdapterError::Unmatched(names)) = error else {
        panic!("{text}");
    };
    for part in [
        "down_blocks.0.resnets.1.conv1",
        "up_blocks.1.attentions.2.proj_in",
    ] {
        assert!(names.iter().any(|name| name.contains(part)), "{names:?}");
    }
}
