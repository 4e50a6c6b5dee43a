//! Parity with diffusers, from prompts and seeds to pixels, for toy-sized models in every layout of the family.
//! They are written by `golden/twins.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, FloatDType, Tensor};
use swiftbrush_pipeline::scheduler::{
    PredictionType, SamplerKind, SchedulerConfig, TimestepSpacing,
};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    Decoder, DecoderKind, Error, Family, Generation, Loader, Method, Model, Request, Rng, Seeds,
    Stage, Start, TextToImage, Warning,
};
use swiftbrush_testing::{Golden, assert_close, device, values};

const PROMPTS: [&str; 2] = ["a red circle on a blue background", ""];
const SEEDS: [u64; 2] = [3, 4];
/// f32 on both sides, with different rounding over up to 50 calls.
const LATENTS: f64 = 1e-4;

fn twin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/twins")
        .join(name)
}

fn model(name: &str) -> Model {
    Model::open(twin(name)).expect("it exists")
}

fn loader(model: Model) -> Loader {
    Loader::new(model, &device())
}

fn load(model: Model) -> TextToImage {
    loader(model).load().expect("it is valid")
}

fn golden(name: &str) -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), &format!("twins/{name}.golden"))
}

fn steps(kind: SamplerKind, steps: usize) -> Method {
    Method::Sampler(kind, steps)
}

fn request(method: Method, guidance: f64) -> Request {
    let request = Request::new(PROMPTS)
        .with_method(method)
        .with_guidance(guidance);
    match request.is_guided() {
        true => request.with_negative_prompt("a"),
        false => request,
    }
}

fn generate(pipeline: &TextToImage, request: &Request) -> Generation {
    let generation = pipeline.generate(request, &mut Seeds::new(Rng::Cpu, SEEDS));
    generation.expect("the request is valid")
}

fn default_method(pipeline: &TextToImage) -> Method {
    pipeline.default_method().expect("the class is known")
}

fn bytes(images: Tensor<4>) -> Vec<i32> {
    let to_byte = |x: f32| ((x + 1.0) * 127.5).round_ties_even().clamp(0.0, 255.0) as i32;
    values(images).into_iter().map(to_byte).collect()
}

#[track_caller]
fn assert_generated(painting: Generation, golden: &Golden, name: &str) {
    let expected: Tensor<4> = golden.tensor(&format!("{name}.latents"), &device());
    assert_close(painting.latents, expected, LATENTS);
    // 8-bit values would hide the effect of the autoencoder's attention.
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
    let painting = generate(pipeline, &request(method, guidance));
    assert_generated(painting, golden, name);
}

fn leading(class_name: &str, pipeline: &TextToImage) -> SchedulerConfig {
    let scheduler = pipeline.scheduler.clone();
    scheduler
        .with_class(class_name)
        .with_spacing(TimestepSpacing::Leading)
        .with_zero_snr(false)
        .with_skip_prk_steps(true)
}

/// 1×1 convolutions, configurations without newer options, early names in the autoencoder, `fp16` in file names.
#[test]
fn stable_diffusion_1_5_as_a_folder_of_2022() {
    let (pipeline, golden) = (load(model("sd15")), golden("sd15"));
    assert_eq!(default_method(&pipeline), steps(SamplerKind::Pndm, 25));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(&pipeline, &golden, "pndm", default_method(&pipeline), 7.5);
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
        // Seven steps of ten: a fraction of a step is dropped.
        ("image-dpm-solver", SamplerKind::DpmSolver, 10, 0.75),
    ] {
        let start = Start::new(golden.tensor("image", &device()), strength);
        let request = request(steps(kind, n), 7.5).with_start(start);
        assert_generated(generate(&pipeline, &request), &golden, name);
    }
}

/// Velocity prediction, a schedule that ends in pure noise, a sharded denoiser.
#[test]
fn stable_diffusion_2_1_as_a_folder() {
    let (mut pipeline, golden) = (load(model("sd21")), golden("sd21"));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(&pipeline, &golden, "ddim", default_method(&pipeline), 7.5);
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
    assert_eq!(default_method(&pipeline), steps(SamplerKind::Euler, 1));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    check(
        &pipeline,
        &golden,
        "euler-1",
        default_method(&pipeline),
        1.0,
    );
    check(
        &pipeline,
        &golden,
        "euler",
        steps(SamplerKind::Euler, 25),
        7.5,
    );
    let start = Start::new(golden.tensor("image", &device()), 0.5);
    let again = Start {
        strength: 0.7,
        ..start.clone()
    };
    for (name, method, start) in [
        ("image-euler", steps(SamplerKind::Euler, 2), start),
        ("image-one-step", Method::OneStep, again),
    ] {
        let request = request(method, 1.0).with_start(start);
        assert_generated(generate(&pipeline, &request), &golden, name);
    }
}

/// SD-Turbo's folder with another scheduler; single files have none.
#[test]
fn stable_diffusion_2_1_base_as_a_folder_and_as_one_file() {
    let golden = golden("sd-turbo");
    let one_file = model("sd-turbo.safetensors").with_configs(twin("sd-turbo"));
    for mut pipeline in [load(model("sd-turbo")), load(one_file)] {
        pipeline.scheduler = Family::Sd2Base.scheduler();
        check(&pipeline, &golden, "pndm", default_method(&pipeline), 7.5);
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
        default_method(&pipeline),
        1.0,
    );
}

#[test]
fn a_swiftbrush_student_in_the_folder_of_its_teacher() {
    let student = model("sd-turbo").with_component("unet", twin("swiftbrush.safetensors"));
    let golden = golden("sd-turbo");
    check(&load(student), &golden, "swiftbrush", Method::OneStep, 1.0);
}

#[test]
fn taesd_in_its_own_files() {
    let golden = golden("sd-turbo");
    let loader = loader(model("sd-turbo")).with_decoder(DecoderKind::Tiny);
    let decoder = loader.decoder().expect("it is valid");
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
    check(&pipeline, &golden, "ddim", default_method(&pipeline), 7.5);
}

#[test]
fn blocks_of_unequal_depth_and_a_picture_of_another_size() {
    let (pipeline, golden) = (load(model("unequal")), golden("unequal"));
    check(&pipeline, &golden, "one-step", Method::OneStep, 1.0);
    let request = request(default_method(&pipeline), 7.5).with_size(40, 24);
    assert_generated(generate(&pipeline, &request), &golden, "ddim");
}

#[test]
fn decoding_in_tiles() {
    let golden = golden("unequal");
    let tiling = Tiling {
        side: 8,
        overlap: 2,
    };
    let loader = loader(model("unequal")).with_tiling(tiling);
    let decoder = loader.decoder().expect("it is valid");
    assert!(matches!(decoder, Decoder::Tiled(..)));
    let decoded = decoder.decode(golden.tensor("tiled.latents", &device()));
    assert_close(decoded, golden.tensor("tiled.images", &device()), 1e-5);
}

#[test]
fn networks_loaded_one_at_a_time_give_the_same() {
    let (golden, loader) = (golden("sd15"), loader(model("sd15")));
    let request = request(steps(SamplerKind::EulerAncestral, 25), 7.5);
    let mut calls = Vec::new();
    let painting = loader.generate_sequentially(
        &request,
        &mut Seeds::new(Rng::Cpu, SEEDS),
        &mut |progress| {
            if let Stage::Call { done, n_calls, .. } = progress.stage {
                calls.push((done, n_calls));
            }
            std::ops::ControlFlow::Continue(())
        },
    );
    assert_eq!(calls, (0..=25).map(|done| (done, 25)).collect::<Vec<_>>());
    assert_generated(
        painting.expect("the request is valid"),
        &golden,
        "euler-ancestral",
    );
}

#[test]
fn a_generation_can_be_watched_and_cancelled_at_every_stage() {
    let tiling = Tiling {
        side: 4,
        overlap: 1,
    };
    let pipeline = loader(model("sd15")).with_tiling(tiling).load();
    let pipeline = pipeline.expect("it is valid");
    let request = request(steps(SamplerKind::DpmSolver, 5), 1.0);
    let mut last = None;
    let mut stages = Vec::new();
    let mut run = |stop: usize| {
        stages.clear();
        let noise = &mut Seeds::new(Rng::Cpu, SEEDS);
        let generation = pipeline.generate_with(&request, noise, &mut |progress| {
            assert_eq!((progress.batch, progress.n_batches), (0, 1));
            stages.push(match progress.stage {
                Stage::Call { done, expected, .. } => {
                    last = expected.or(last.take());
                    format!("call {done}")
                }
                Stage::Decoding { done, n_tiles } => format!("tile {done} of {n_tiles}"),
                _ => "encoding".to_owned(),
            });
            match stages.len() > stop {
                true => std::ops::ControlFlow::Break(()),
                false => std::ops::ControlFlow::Continue(()),
            }
        });
        (generation, stages.clone(), last.clone())
    };
    let (generation, all, expected) = run(usize::MAX);
    let names: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(names[..3], ["encoding", "call 0", "call 1"]);
    assert_eq!(names[6..9], ["call 5", "tile 0 of 9", "tile 1 of 9"]);
    assert_eq!(names.len(), 16);
    let generation = generation.expect("nobody cancels");
    assert_close(
        expected.expect("there were calls"),
        generation.latents,
        1e-6,
    );
    for stop in 0..all.len() {
        let (cancelled, stages, _) = run(stop);
        assert!(matches!(cancelled, Err(Error::Cancelled)), "at {stop}");
        assert_eq!(stages.len(), stop + 1, "nothing is told after the break");
    }
}

/// Half-precision weights with f32 arithmetic are exact here, because the file is in half precision; half-precision
/// arithmetic rounds.
#[test]
fn half_precision() {
    let golden = golden("sd-turbo");
    let stored = loader(model("sd-turbo")).with_storage(DType::F16).load();
    let stored = stored.expect("it is valid");
    check(&stored, &golden, "one-step", Method::OneStep, 1.0);
    let as_stored = loader(model("sd-turbo")).with_weights_as_stored().load();
    let as_stored = as_stored.expect("it is valid");
    let one_step = request(Method::OneStep, 1.0);
    let latents = generate(&as_stored, &one_step).latents;
    assert_close(latents, generate(&stored, &one_step).latents, 0.0);
    // 25 guided steps of diffusers are 2.3e-3 off in float16 and 2.1e-2 in bfloat16. Kernels that autotuning selects on WGSL
    // may also accumulate in f16: 5.7e-3 was seen.
    for (dtype, bounds) in [(DType::F16, [5e-3, 0.015]), (DType::BF16, [0.015, 0.03])] {
        if !device().supports_dtype(dtype) {
            continue;
        }
        let pipeline = loader(model("sd-turbo")).with_dtype(dtype).load();
        let pipeline = pipeline.expect("it is valid");
        let cases = [
            ("one-step", Method::OneStep, 1.0),
            ("euler", steps(SamplerKind::Euler, 25), 7.5),
        ];
        for ((name, method, guidance), bound) in cases.into_iter().zip(bounds) {
            let painting = generate(&pipeline, &request(method, guidance));
            let expected: Tensor<4> = golden.tensor(&format!("{name}.latents"), &device());
            assert_close(painting.latents, expected, bound);
            let images = painting.images.cast(FloatDType::F32);
            assert!(values(images).into_iter().all(f32::is_finite));
        }
    }
}

/// A folder with the configuration of a denoiser, for toy-sized single files.
fn configs(unet: &str) -> tempfile::TempDir {
    let configs = tempfile::tempdir().expect("a writable folder");
    let folder = configs.path().join("unet");
    std::fs::create_dir(&folder).expect("a writable folder");
    std::fs::copy(twin(unet).join("config.json"), folder.join("config.json")).expect("it exists");
    configs
}

#[test]
fn a_single_file_that_does_not_identify_its_family_needs_a_name() {
    // Its states are not 768 wide, as in 1.x, and it has no header.
    let configs = configs("sd21/unet");
    let open = |name| loader(model(name).with_configs(configs.path()));
    let error = open("sd-turbo.safetensors").scheduler();
    let error = error.expect_err("it cannot know").to_string();
    assert!(error.contains("sd2.1-base, sd2.1 or sd-turbo"), "{error}");
    let turbo = open("sd-turbo.safetensors").with_family(Family::SdTurbo);
    assert_eq!(
        turbo.scheduler().expect("it is named"),
        SchedulerConfig::default()
    );
    let velocity = open("sd21.safetensors").scheduler();
    assert_eq!(velocity.expect("its header says"), Family::Sd2.scheduler());
    for family in [Family::Sd2Base, Family::SdTurbo] {
        let error = open("sd21.safetensors").with_family(family).scheduler();
        let error = error.expect_err("its header contradicts").to_string();
        assert!(
            error.contains(family.name()) && error.contains("VPrediction"),
            "{error}"
        );
    }
    let tokenizer = loader(model("sd21.safetensors")).tokenizer();
    let tokenizer = tokenizer.expect("it is built in");
    assert_eq!(tokenizer.encode("a").ids[..4], [49406, 320, 49407, 0]);
}

/// The header describes these weights; the folder of configurations describes similar ones.
#[test]
fn the_header_of_the_weights_overrides_the_folder_of_configurations() {
    let sd21 = model("sd21.safetensors").with_configs(twin("sd-turbo"));
    let loader = loader(sd21);
    let scheduler = loader.scheduler().expect("it is supported");
    assert_eq!(scheduler.prediction_type, PredictionType::VPrediction);
    let warnings = loader.warnings().expect("it is supported");
    assert!(
        matches!(&warnings[..], [Warning::PredictionType { source, .. }] if source.ends_with("sd21.safetensors")),
        "{warnings:?}"
    );
}

#[test]
fn a_denoiser_keeps_the_prediction_type_of_its_own_folder() {
    for denoiser in [
        "sd21/unet",
        "sd21/unet/diffusion_pytorch_model.safetensors.index.json",
    ] {
        let path = twin(denoiser);
        if !path.exists() {
            continue;
        }
        let loader = loader(model("sd-turbo").with_component("unet", path));
        let scheduler = loader.scheduler().expect("it is supported");
        assert_eq!(
            scheduler.prediction_type,
            PredictionType::VPrediction,
            "{denoiser}"
        );
        assert!(scheduler.rescale_betas_zero_snr);
        assert_eq!(scheduler.class_name, "EulerDiscreteScheduler");
        assert!(!loader.warnings().expect("it is supported").is_empty());
    }
    let own = loader(model("sd-turbo"));
    assert!(own.warnings().expect("it is supported").is_empty());
}

#[test]
fn an_incomplete_model_is_distinguished_from_a_single_denoiser() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let copy = |from: &str| {
        for file in std::fs::read_dir(twin("one-block").join(from)).expect("it exists") {
            let file = file.expect("it exists").path();
            let to = folder.path().join(from);
            std::fs::create_dir_all(&to).expect("a writable folder");
            let name = file.file_name().expect("it is a file");
            std::fs::copy(&file, to.join(name)).expect("a writable folder");
        }
    };
    ["unet", "vae", "text_encoder", "tokenizer"]
        .into_iter()
        .for_each(copy);
    let open = |path: &Path| loader(Model::open(path).expect("it exists"));
    let error = open(folder.path()).load().expect_err("it has no scheduler");
    let error = error.to_string();
    assert!(
        error.contains("scheduler/scheduler_config.json is missing"),
        "{error}"
    );
    assert!(
        !error.contains("sd2.1"),
        "it is a folder, not a single file: {error}"
    );
    for alone in [twin("one-block/unet"), twin("swiftbrush.safetensors")] {
        let error = open(&alone)
            .load()
            .expect_err("it is a denoiser")
            .to_string();
        assert!(error.contains("component `unet`"), "{error}");
    }
}

/// Parts of different models, which would otherwise fail in the middle of a generation.
#[test]
fn parts_that_do_not_match_are_rejected() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let put = |component: &str, from: &str, change: &[(&str, serde_json::Value)]| {
        let path = folder.path().join(component);
        std::fs::create_dir(&path).expect("a writable folder");
        let config = std::fs::read(twin(from)).expect("it exists");
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("it is JSON");
        for (key, value) in change {
            config[*key] = value.clone();
        }
        std::fs::write(path.join("config.json"), config.to_string()).expect("a writable folder");
        path
    };
    let unet = |name: &str, change: &[(&str, serde_json::Value)]| {
        put(name, "sd21/unet/config.json", change)
    };
    let inpainting = unet("inpainting", &[("in_channels", 9.into())]);
    let many = [("in_channels", 16.into()), ("out_channels", 16.into())];
    let wide = unet("wide", &[("cross_attention_dim", 24.into())]);
    let tokenizer = folder.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).expect("a writable folder");
    let whole = twin("sd21/tokenizer/tokenizer.json");
    std::fs::copy(whole, tokenizer.join("tokenizer.json")).expect("a writable folder");
    for (component, path, reason) in [
        ("unet", inpainting, "reads 9 channels and predicts 4"),
        (
            "unet",
            unet("many", &many),
            "latents of 16 channels, the autoencoder has 4",
        ),
        ("unet", wide, "width 24, the text encoder gives 16"),
        // The default length is 77 tokens.
        (
            "tokenizer",
            tokenizer,
            "prompts of 77, the text encoder 519 and 12",
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
fn missing_unused_and_wrongly_shaped_tensors_are_listed() {
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
        "with the wrong shape: ",
        "diffusion_pytorch_model.safetensors",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
