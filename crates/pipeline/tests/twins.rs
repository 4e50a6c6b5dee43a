//! Models of toy size in every layout of the family, from prompts and seeds to pixels, against what diffusers paints.
//! `golden/twins.py` makes them.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, FloatDType, Tensor};
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    Decoder, DecoderKind, Error, Family, Loader, Method, Model, Painting, Request, Rng, Seeds,
    Start, TextToImage,
};
use swiftbrush_testing::{Golden, assert_close, device, values};

const PROMPTS: [&str; 2] = ["a red circle on a blue background", ""];
const SEEDS: [u64; 2] = [3, 4];
/// f32 on both sides, which round differently in up to 50 calls.
const LATENTS: f64 = 1e-4;

fn twin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/twins")
        .join(name)
}

fn model(name: &str) -> Model {
    Model::open(twin(name)).expect("it is there")
}

fn loader(model: Model) -> Loader {
    Loader::new(model, &device())
}

fn load(model: Model) -> TextToImage {
    loader(model).load().expect("it is whole")
}

fn golden(name: &str) -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), &format!("twins/{name}.golden"))
}

fn steps(kind: SamplerKind, steps: usize) -> Method {
    Method::Sampler(kind, steps)
}

fn request(method: Method, guidance: f64) -> Request {
    Request {
        method,
        guidance,
        negative_prompt: "a".to_owned(),
        ..Request::new(PROMPTS)
    }
}

fn paint(pipeline: &TextToImage, request: &Request) -> Painting {
    let painting = pipeline.generate(request, &mut Seeds::new(Rng::Cpu, SEEDS));
    painting.expect("it paints")
}

fn bytes(images: Tensor<4>) -> Vec<i32> {
    let to_byte = |x: f32| ((x + 1.0) * 127.5).round_ties_even().clamp(0.0, 255.0) as i32;
    values(images).into_iter().map(to_byte).collect()
}

#[track_caller]
fn assert_painted(painting: Painting, golden: &Golden, name: &str) {
    let expected: Tensor<4> = golden.tensor(&format!("{name}.latents"), &device());
    assert_close(painting.latents, expected, LATENTS);
    // Bytes hide what the autoencoder's attention adds.
    for images in golden
        .tensors_under(&format!("{name}.images"))
        .into_values()
    {
        let expected = Tensor::<4>::from_data(images, &device());
        assert_close(painting.images.clone(), expected, LATENTS);
    }
    let expected: Vec<i32> = golden.data(&format!("{name}.pixels")).iter().collect();
    let found = bytes(painting.images);
    assert_eq!(found.len(), expected.len());
    let worst = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .max();
    assert!(worst <= Some(1), "a pixel is off by {worst:?}");
}

#[track_caller]
fn check(pipeline: &TextToImage, golden: &Golden, name: &str, method: Method, guidance: f64) {
    let painting = paint(pipeline, &request(method, guidance));
    assert_painted(painting, golden, name);
}

fn leading(class_name: &str, pipeline: &TextToImage) -> SchedulerConfig {
    SchedulerConfig {
        class_name: class_name.to_owned(),
        timestep_spacing: TimestepSpacing::Leading,
        rescale_betas_zero_snr: false,
        ..pipeline.scheduler.clone()
    }
}

/// 1×1 convolutions, configurations without newer options, early names in the autoencoder, `fp16` in file names.
#[test]
fn stable_diffusion_1_5_as_a_folder_of_2022() {
    let (pipeline, golden) = (load(model("sd15")), golden("sd15"));
    assert_eq!(pipeline.default_method(), steps(SamplerKind::Pndm, 25));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(&pipeline, &golden, "pndm", pipeline.default_method(), 7.5);
    for (name, kind, n) in [
        ("euler-ancestral", SamplerKind::EulerAncestral, 25),
        ("lcm", SamplerKind::Lcm, 4),
        ("dpm-solver", SamplerKind::DpmSolver, 25),
    ] {
        check(&pipeline, &golden, name, steps(kind, n), 7.5);
    }
}

#[test]
fn stable_diffusion_1_5_as_a_pickle_of_the_training_code() {
    let pipeline = load(model("sd15.ckpt").with_configs(twin("sd15")));
    let golden = golden("sd15");
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(
        &pipeline,
        &golden,
        "pndm",
        steps(SamplerKind::Pndm, 25),
        7.5,
    );
}

#[test]
fn image_to_image() {
    let (pipeline, golden) = (load(model("sd15")), golden("sd15"));
    for (name, kind, n, strength) in [
        ("image-pndm", SamplerKind::Pndm, 25, 0.6),
        (
            "image-euler-ancestral",
            SamplerKind::EulerAncestral,
            10,
            0.6,
        ),
        // Seven steps of ten: what is left of a step is left out.
        ("image-dpm-solver", SamplerKind::DpmSolver, 10, 0.75),
    ] {
        let start = Start {
            images: golden.tensor("image", &device()),
            strength,
        };
        let request = Request {
            start: Some(start),
            ..request(steps(kind, n), 7.5)
        };
        assert_painted(paint(&pipeline, &request), &golden, name);
    }
}

/// Velocity, a schedule that ends in pure noise, a denoiser in shards.
#[test]
fn stable_diffusion_2_1_as_a_folder() {
    let (mut pipeline, golden) = (load(model("sd21")), golden("sd21"));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(&pipeline, &golden, "ddim", pipeline.default_method(), 7.5);
    pipeline.scheduler = leading("DDIMScheduler", &pipeline);
    for (name, kind) in [
        ("pndm", SamplerKind::Pndm),
        ("euler", SamplerKind::Euler),
        ("dpm-solver", SamplerKind::DpmSolver),
    ] {
        check(&pipeline, &golden, name, steps(kind, 25), 7.5);
    }
}

#[test]
fn stable_diffusion_2_1_as_one_file() {
    let pipeline = load(model("sd21.safetensors").with_configs(twin("sd21")));
    let golden = golden("sd21");
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(
        &pipeline,
        &golden,
        "ddim",
        steps(SamplerKind::Ddim, 25),
        7.5,
    );
}

#[test]
fn sd_turbo_as_torch_saved_it() {
    let (pipeline, golden) = (load(model("sd-turbo")), golden("sd-turbo"));
    assert_eq!(pipeline.default_method(), steps(SamplerKind::Euler, 1));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(
        &pipeline,
        &golden,
        "euler-1",
        pipeline.default_method(),
        1.0,
    );
    check(
        &pipeline,
        &golden,
        "euler",
        steps(SamplerKind::Euler, 25),
        7.5,
    );
    let start = Start {
        images: golden.tensor("image", &device()),
        strength: 0.5,
    };
    let again = Start {
        strength: 0.7,
        ..start.clone()
    };
    for (name, method, start) in [
        ("image-euler", steps(SamplerKind::Euler, 2), start),
        ("image-one-step", Method::OneStep, again),
    ] {
        let request = Request {
            start: Some(start),
            ..request(method, 1.0)
        };
        assert_painted(paint(&pipeline, &request), &golden, name);
    }
}

/// It is the same but for its scheduler, which a file does not have.
#[test]
fn stable_diffusion_2_1_base_as_a_folder_and_as_one_file() {
    let golden = golden("sd-turbo");
    let one_file = model("sd-turbo.safetensors").with_configs(twin("sd-turbo"));
    for mut pipeline in [load(model("sd-turbo")), load(one_file)] {
        pipeline.scheduler = Family::Sd2Base.scheduler();
        check(&pipeline, &golden, "pndm", pipeline.default_method(), 7.5);
    }
}

#[test]
fn sd_turbo_as_one_file() {
    let pipeline = load(model("sd-turbo.safetensors").with_configs(twin("sd-turbo")));
    let golden = golden("sd-turbo");
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(
        &pipeline,
        &golden,
        "euler-1",
        pipeline.default_method(),
        1.0,
    );
}

#[test]
fn a_swiftbrush_student_over_the_rest_of_a_folder() {
    let student = model("sd-turbo").with_component("unet", twin("swiftbrush.safetensors"));
    let golden = golden("sd-turbo");
    check(&load(student), &golden, "swiftbrush", Method::OneStep, 1.0);
}

#[test]
fn taesd_in_its_own_files() {
    let golden = golden("sd-turbo");
    let loader = loader(model("sd-turbo")).with_decoder(DecoderKind::Tiny);
    let decoder = loader.decoder().expect("it is whole");
    assert_eq!(decoder.scale(), 8);
    let latents: Tensor<4> = golden.tensor("one-step.latents", &device());
    let decoded = decoder.decode(latents.narrow(2, 0, 4).narrow(3, 0, 4));
    assert_close(decoded, golden.tensor("taesd.decoded", &device()), 1e-5);
    let encoded = decoder.encode(golden.tensor("image", &device()), || {
        panic!("the tiny autoencoder draws nothing")
    });
    let expected = golden.tensor("taesd.encoded", &device());
    assert_close(encoded.expect("it encodes"), expected, 1e-5);
}

#[test]
fn a_denoiser_of_one_block() {
    let (pipeline, golden) = (load(model("one-block")), golden("one-block"));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(&pipeline, &golden, "ddim", pipeline.default_method(), 7.5);
}

#[test]
fn blocks_of_unequal_depth_and_a_picture_of_another_size() {
    let (pipeline, golden) = (load(model("unequal")), golden("unequal"));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    let request = Request {
        size: Some([24, 40]),
        ..request(pipeline.default_method(), 7.5)
    };
    assert_painted(paint(&pipeline, &request), &golden, "ddim");
}

#[test]
fn decoding_in_tiles() {
    let golden = golden("unequal");
    let tiling = Tiling {
        side: 8,
        overlap: 2,
    };
    let loader = loader(model("unequal")).with_tiling(tiling);
    let decoder = loader.decoder().expect("it is whole");
    assert!(matches!(decoder, Decoder::Tiled(..)));
    let decoded = decoder.decode(golden.tensor("tiled.latents", &device()));
    assert_close(decoded, golden.tensor("tiled.images", &device()), 1e-5);
}

#[test]
fn networks_in_turn_paint_the_same() {
    let (golden, loader) = (golden("sd15"), loader(model("sd15")));
    let request = request(steps(SamplerKind::EulerAncestral, 25), 7.5);
    let mut calls = Vec::new();
    let painting = loader.paint_in_turn(
        &request,
        &mut Seeds::new(Rng::Cpu, SEEDS),
        &mut |progress| {
            calls.push((progress.call, progress.n_calls));
            std::ops::ControlFlow::Continue(())
        },
    );
    assert_eq!(calls, (1..=25).map(|call| (call, 25)).collect::<Vec<_>>());
    assert_painted(painting.expect("it paints"), &golden, "euler-ancestral");
}

#[test]
fn a_painting_can_be_watched_and_cancelled() {
    let pipeline = load(model("sd15"));
    let request = request(steps(SamplerKind::DpmSolver, 5), 1.0);
    let mut last = None;
    let painting = pipeline
        .generate_watched(
            &request,
            &mut Seeds::new(Rng::Cpu, SEEDS),
            &mut |progress| {
                last = Some(progress.expected);
                std::ops::ControlFlow::Continue(())
            },
        )
        .expect("it paints");
    let expected = last.expect("it was told of five calls");
    assert_close(expected, painting.latents, 1e-6);
    let cancelled = pipeline.generate_watched(
        &request,
        &mut Seeds::new(Rng::Cpu, SEEDS),
        &mut |progress| match progress.call {
            3 => std::ops::ControlFlow::Break(()),
            1 | 2 => std::ops::ControlFlow::Continue(()),
            _ => panic!("it was cancelled before"),
        },
    );
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

/// Weights in half precision under f32 arithmetic are exact here, because the file has no more; arithmetic in half
/// precision rounds.
#[test]
fn half_precision() {
    let golden = golden("sd-turbo");
    let stored = loader(model("sd-turbo")).with_storage(DType::F16).load();
    let stored = stored.expect("it is whole");
    check(&stored, &golden, "one-step", Method::OneStep, 1.0);
    let as_stored = loader(model("sd-turbo")).with_weights_as_stored().load();
    let as_stored = as_stored.expect("it is whole");
    let one_step = request(Method::OneStep, 1.0);
    let latents = paint(&as_stored, &one_step).latents;
    assert_close(latents, paint(&stored, &one_step).latents, 0.0);
    for (dtype, bounds) in [(DType::F16, [5e-3, 5e-3]), (DType::BF16, [0.015, 0.03])] {
        if !device().supports_dtype(dtype) {
            continue;
        }
        let pipeline = loader(model("sd-turbo")).with_dtype(dtype).load();
        let pipeline = pipeline.expect("it is whole");
        let cases = [
            ("one-step", Method::OneStep, 1.0),
            ("euler", steps(SamplerKind::Euler, 25), 7.5),
        ];
        for ((name, method, guidance), bound) in cases.into_iter().zip(bounds) {
            let painting = paint(&pipeline, &request(method, guidance));
            let expected: Tensor<4> = golden.tensor(&format!("{name}.latents"), &device());
            assert_close(painting.latents, expected, bound);
            let images = painting.images.cast(FloatDType::F32);
            assert!(values(images).into_iter().all(f32::is_finite));
        }
    }
}

#[test]
fn what_a_single_file_does_not_say_is_asked_for() {
    // Its states are not 768 wide, as 1.x has them, and it has no header.
    let configs = tempfile::tempdir().expect("there is room");
    let unet = configs.path().join("unet");
    std::fs::create_dir(&unet).expect("there is room");
    let config = std::fs::read(twin("sd21/unet/config.json")).expect("it is there");
    std::fs::write(unet.join("config.json"), config).expect("there is room");
    let open = |name| loader(model(name).with_configs(configs.path()));
    match open("sd-turbo.safetensors").scheduler() {
        Err(Error::Request(text)) => {
            assert!(text.contains("sd2.1-base, sd2.1 or sd-turbo"), "{text}");
        }
        other => panic!("it cannot know: {other:?}"),
    }
    let turbo = open("sd-turbo.safetensors").with_family(Family::SdTurbo);
    let turbo = turbo.scheduler();
    assert_eq!(turbo.expect("it was said"), SchedulerConfig::default());
    let velocity = open("sd21.safetensors").scheduler();
    assert_eq!(velocity.expect("its header says"), Family::Sd2.scheduler());
    let tokenizer = loader(model("sd21.safetensors"))
        .tokenizer()
        .expect("it is built in");
    assert_eq!(tokenizer.encode("a").ids[..4], [49406, 320, 49407, 0]);
}

/// Parts of different models, which would fail in the middle of a painting.
#[test]
fn parts_that_do_not_fit_one_another_are_refused() {
    let folder = tempfile::tempdir().expect("there is room");
    let put = |component: &str, from: &str, change: &[(&str, serde_json::Value)]| {
        let path = folder.path().join(component);
        std::fs::create_dir(&path).expect("there is room");
        let config = std::fs::read(twin(from)).expect("it is there");
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("it is JSON");
        for (key, value) in change {
            config[*key] = value.clone();
        }
        std::fs::write(path.join("config.json"), config.to_string()).expect("there is room");
        path
    };
    let unet = |name: &str, change: &[(&str, serde_json::Value)]| {
        put(name, "sd21/unet/config.json", change)
    };
    let inpainting = unet("inpainting", &[("in_channels", 9.into())]);
    let many = [("in_channels", 16.into()), ("out_channels", 16.into())];
    let wide = unet("wide", &[("cross_attention_dim", 24.into())]);
    let tokenizer = folder.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).expect("there is room");
    let whole = twin("sd21/tokenizer/tokenizer.json");
    std::fs::copy(whole, tokenizer.join("tokenizer.json")).expect("there is room");
    for (component, path, reason) in [
        ("unet", inpainting, "takes 9 channels and gives 4"),
        (
            "unet",
            unet("many", &many),
            "latents of 16 channels, the autoencoder of 4",
        ),
        ("unet", wide, "states 24 wide, the text encoder gives 16"),
        // Of 77 tokens, where nothing is said.
        (
            "tokenizer",
            tokenizer,
            "prompts of 77, the text encoder takes 519 and 12",
        ),
    ] {
        let model = model("sd21").with_component(component, path);
        let error = loader(model)
            .load()
            .expect_err("it does not fit")
            .to_string();
        assert!(error.contains(reason) && error.contains("sd21"), "{error}");
    }
}

#[test]
fn what_is_missing_unused_and_misshapen_is_listed() {
    let other = model("sd-turbo").with_component(
        "unet",
        twin("unequal/unet/diffusion_pytorch_model.safetensors"),
    );
    let error = loader(other)
        .unet()
        .expect_err("it is another network")
        .to_string();
    for part in [
        "missing: ",
        "unused: ",
        "of another shape: ",
        "diffusion_pytorch_model.safetensors",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
