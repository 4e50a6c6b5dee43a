//! Parity with diffusers for options whose meaning it defines; the tensors are written by `golden/meaning.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::unet::{UNet, UNetConfig};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    Conditioning, Decoder, DecoderKind, Error, Family, Generation, Loader, Method, Model, Request,
    Rng, Seeds, TextToImage, Warning,
};
use swiftbrush_testing::{Golden, assert_close, device, values};

const PROMPTS: [&str; 2] = ["a red circle on a blue background", ""];
const SEEDS: [u64; 2] = [3, 4];
/// f32 on both sides.
const LATENTS: f64 = 1e-4;

fn twin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/twins")
        .join(name)
}

fn loader(name: &str) -> Loader {
    Loader::new(Model::open(twin(name)).expect("it exists"), &device())
}

fn golden(name: &str) -> Tensor<4> {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "meaning").tensor(name, &device())
}

fn seeds() -> Seeds {
    Seeds::new(Rng::Cpu, SEEDS)
}

fn generate(pipeline: &TextToImage, request: &Request) -> Generation {
    let generation = pipeline.generate(request, &mut seeds());
    generation.expect("the request is valid")
}

#[test]
fn guidance_up_to_one_is_no_guidance() {
    let pipeline = loader("sd-turbo").load().expect("it is valid");
    let request = pipeline.request(PROMPTS).expect("the class is known");
    assert_eq!(request.method, Method::Sampler(SamplerKind::Euler, 1));
    for guidance in [0.0, 0.5, 1.0, 1.5] {
        let latents = generate(&pipeline, &request.clone().with_guidance(guidance)).latents;
        assert_close(latents, golden(&format!("guidance.{guidance:?}")), LATENTS);
    }
}

/// Stable Diffusion 1.5 with a different scheduler file.
fn with_scheduler(text: &str) -> (tempfile::TempDir, Loader) {
    let folder = tempfile::tempdir().expect("a writable folder");
    let scheduler = folder.path().join("scheduler");
    std::fs::create_dir(&scheduler).expect("a writable folder");
    std::fs::write(scheduler.join("scheduler_config.json"), text).expect("a writable folder");
    let model = Model::open(twin("sd15")).expect("it exists");
    let loader = Loader::new(model.with_component("scheduler", &scheduler), &device());
    (folder, loader)
}

#[test]
fn replacements_of_unknown_components_are_rejected() {
    let model = Model::open(twin("sd15")).expect("it exists");
    let loader = Loader::new(model.with_component("unett", twin("sd15")), &device());
    let error = loader.check().expect_err("a typing error").to_string();
    assert!(
        error.contains("\"unett\"") && error.contains("text_encoder, tokenizer, unet"),
        "{error}"
    );
}

#[test]
fn weights_are_loaded_as_floats_alone() {
    let model = Model::open(twin("sd15")).expect("it exists");
    let error = UNet::from_model(&model, "unet", Some(DType::I32), &device());
    let error = error.expect_err("integers are not weights").to_string();
    assert!(error.contains("I32; expected F32"), "{error}");
}

#[test]
fn long_prompts_are_truncated_in_warnings() {
    let (prompt, lost) = ("é".repeat(900), "short".to_owned());
    let text = Warning::PromptCut { prompt, lost }.to_string();
    assert!(text.contains("…") && text.chars().count() < 200 && text.contains("short"));
}

const SD15: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
    "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;

#[test]
fn a_requested_sampler_uses_its_own_defaults() {
    let (_folder, loader) = with_scheduler(SD15);
    let pipeline = loader.load().expect("it is valid");
    for kind in SamplerKind::ALL {
        let steps = if kind == SamplerKind::Lcm { 4 } else { 10 };
        let request = Request::new(PROMPTS).with_method(Method::Sampler(kind, steps));
        let latents = generate(&pipeline, &request).latents;
        assert_close(
            latents,
            golden(&format!("swapped.{}", kind.class())),
            LATENTS,
        );
    }
    let request = Request::new(PROMPTS).with_method(Method::Sampler(SamplerKind::Euler, 10));
    let leading = generate(
        &pipeline,
        &request.clone().with_spacing(TimestepSpacing::Leading),
    );
    let default = generate(&pipeline, &request);
    assert_ne!(values(leading.latents), values(default.latents));
}

/// diffusers' pipeline sets `steps_offset` to 1 and `clip_sample` to false in files that omit them, but a requested
/// sampler uses its own defaults again.
#[test]
fn outdated_schedulers_are_corrected_as_in_diffusers() {
    let betas = r#""beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085"#;
    let class = |name: &str| format!(r#"{{"_class_name": "{name}", {betas}}}"#);
    let (_old, old) = with_scheduler(&class("DDIMScheduler"));
    let (_bare, bare) = with_scheduler(&class("EulerDiscreteScheduler"));
    for (loader, kind, name) in [
        (&old, SamplerKind::Ddim, "folder.old"),
        (&bare, SamplerKind::Euler, "folder.bare"),
        (&bare, SamplerKind::Ddim, "folder.bare-ddim"),
    ] {
        let pipeline = loader.load().expect("it is valid");
        let request = Request::new(PROMPTS).with_method(Method::Sampler(kind, 10));
        let generation = generate(&pipeline, &request);
        assert_close(generation.latents, golden(name), LATENTS);
        let clips = generation.warnings.contains(&Warning::LatentsClipped);
        assert_eq!(clips, name == "folder.bare-ddim");
        let corrected = |warning: &Warning| matches!(warning, Warning::SchedulerCorrected(_));
        assert!(pipeline.warnings().iter().any(corrected));
    }
}

#[test]
fn schedulers_without_a_sampler_are_substituted_with_a_warning_or_rejected() {
    let text = |class: &str| SD15.replace("PNDMScheduler", class);
    let (_folder, loader) = with_scheduler(&text("UniPCMultistepScheduler"));
    let pipeline = loader.load().expect("it is valid");
    let method = pipeline.default_method().expect("one comes close");
    assert_eq!(method, Method::Sampler(SamplerKind::DpmSolver, 25));
    let warning = pipeline.warnings()[0].to_string();
    for part in ["UniPCMultistepScheduler", "dpm-solver"] {
        assert!(warning.contains(part), "{warning}");
    }
    let (_folder, loader) = with_scheduler(&text("TCDScheduler"));
    let pipeline = loader.load().expect("it is valid");
    assert!(pipeline.request(PROMPTS).is_err(), "nothing comes close");
    let asked = Request::new(PROMPTS).with_method(Method::Sampler(SamplerKind::Lcm, 4));
    generate(&pipeline, &asked);
    let (_folder, loader) = with_scheduler(&text("FlowMatchEulerDiscreteScheduler"));
    let error = loader
        .load()
        .expect_err("it is another process")
        .to_string();
    for part in ["scheduler_config.json", "FlowMatchEulerDiscreteScheduler"] {
        assert!(error.contains(part), "{error}");
    }
    let (_folder, loader) = with_scheduler(&SD15.replace("{", r#"{"my_note": 3, "#));
    let warnings = loader.warnings().expect("it is supported");
    let unknown = Warning::SchedulerKeys(vec!["my_note".to_owned()]);
    assert!(warnings.contains(&unknown), "{warnings:?}");
}

#[test]
fn guidance_in_one_call_and_in_two_calls_agree() {
    let request = Request::new(PROMPTS)
        .with_method(Method::Sampler(SamplerKind::DpmSolver, 5))
        .with_guidance(7.5)
        .with_negative_prompt("a");
    let one = loader("sd15").load().expect("it is valid");
    let two = loader("sd15").with_split_guidance().load();
    let latents = generate(&one, &request).latents;
    let split = generate(&two.expect("it is valid"), &request).latents;
    assert_close(split, latents, 1e-5);
}

#[test]
fn embeddings_give_the_same_images_as_their_prompts() {
    let pipeline = loader("sd15").load().expect("it is valid");
    let request = Request::new(PROMPTS)
        .with_method(Method::Sampler(SamplerKind::Ddim, 3))
        .with_guidance(3.0)
        .with_negative_prompt("a");
    let expected = values(generate(&pipeline, &request).latents);
    let whole = pipeline.encode_request(&request).expect("it is finite");
    let context = pipeline.encode(&PROMPTS).expect("it is finite").context;
    let negative = pipeline.encode(&["a"]).expect("it is finite").context;
    let [_, length, width] = context.dims();
    let all = negative.clone().expand([2, length, width]);
    let own = |negative| Conditioning::new(context.clone()).with_negative(negative);
    for conditioning in [whole, own(negative), own(all)] {
        let watch = &mut |_| std::ops::ControlFlow::Continue(());
        let unread = request.clone().with_prompts(["something else"]);
        let generation = pipeline.generate_encoded(&conditioning, &unread, &mut seeds(), watch);
        let latents = generation.expect("the request is valid").latents;
        assert_eq!(values(latents), expected);
    }
    let watch = &mut |_| std::ops::ControlFlow::Continue(());
    let plain = Conditioning::new(context.clone());
    let error = pipeline.generate_encoded(&plain, &request, &mut seeds(), watch);
    let error = error.expect_err("guidance needs two").to_string();
    assert!(error.contains("negative prompt"), "{error}");
    let rejected = |conditioning: &Conditioning, request: &Request, part: &str| {
        let watch = &mut |_| std::ops::ControlFlow::Continue(());
        let result = pipeline.generate_encoded(conditioning, request, &mut seeds(), watch);
        let error = result.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let short = plain.clone().with_negative(context.clone().narrow(1, 0, 2));
    rejected(
        &short,
        &request,
        "embeddings of the negative prompt of shape",
    );
    let unguided = request.clone().with_guidance(1.0).with_negative_prompt("");
    rejected(
        &own(negative_of(&pipeline)),
        &unguided,
        "have no effect at guidance 1",
    );
    let narrow = Conditioning::new(context.narrow(2, 0, width - 1));
    rejected(
        &narrow,
        &unguided,
        &format!("embeddings of {width} channels"),
    );
}

fn negative_of(pipeline: &TextToImage) -> Tensor<3> {
    pipeline.encode(&["a"]).expect("it is finite").context
}

#[test]
fn a_denoiser_of_another_model_is_rejected() {
    let mut pipeline = loader("sd15").load().expect("it is valid");
    let config = UNetConfig {
        in_channels: 9,
        cross_attention_dim: 32,
        ..UNetConfig::tiny()
    };
    pipeline.unet = config.init(&device());
    let request = Request::new(["a red circle"]);
    let noise = &mut Seeds::new(Rng::Native, [1]);
    let error = pipeline.generate(&request, noise).unwrap_err().to_string();
    assert!(error.contains("belongs to another model"), "{error}");
}

#[test]
fn batches_give_a_picture_for_each_seed() {
    let pipeline = loader("sd15").load().expect("it is valid");
    let request = Request::new(["a red circle"]);
    let mut batches = Vec::new();
    let mut generate = |request: &Request, seeds: &[u64], batch| {
        batches.clear();
        let pictures =
            pipeline.generate_in_batches(request, Rng::Native, seeds, batch, &mut |progress| {
                batches.push((progress.batch, progress.n_batches));
                std::ops::ControlFlow::Continue(())
            });
        (pictures, batches.last().copied())
    };
    let (pictures, last) = generate(&request, &[1, 2, 3], 2);
    let pictures = pictures.expect("the request is valid").pictures;
    assert_eq!((pictures.len(), last), (3, Some((1, 2))));
    let (third, _) = generate(&request, &[3], 1);
    let third = third.expect("the request is valid").pictures;
    let differences = third[0].bytes.iter().zip(&pictures[2].bytes);
    assert!(differences.map(|(a, b)| a.abs_diff(*b)).max() <= Some(1));
    let two = Request::new(["a", "b"]);
    assert!(
        generate(&two, &[1, 2, 3], 2).0.is_err(),
        "two prompts for three seeds"
    );
    assert!(generate(&request, &[1], 0).0.is_err(), "batches of nothing");
}

#[test]
fn finished_batches_survive_a_cancellation() {
    let pipeline = loader("sd15").load().expect("it is valid");
    let request = Request::new(["a red circle"]);
    let batches =
        pipeline.generate_in_batches(&request, Rng::Native, &[1, 2, 3], 1, &mut |progress| {
            match progress.batch {
                2 => std::ops::ControlFlow::Break(()),
                _ => std::ops::ControlFlow::Continue(()),
            }
        });
    let batches = batches.expect("a cancellation is not an error");
    assert_eq!((batches.pictures.len(), batches.is_complete), (2, false));
}

#[test]
fn a_family_that_has_no_effect_is_reported() {
    let loader = loader("sd-turbo").with_family(Family::SdTurbo);
    let warnings = loader.warnings().expect("it is valid");
    let unused = |warning: &&Warning| matches!(warning, Warning::FamilyUnused { .. });
    let warning = warnings.iter().find(unused).expect("it is ignored");
    assert!(warning.to_string().contains("scheduler_config.json"));
}

#[test]
fn encoding_in_tiles() {
    let tiling = Tiling {
        side: 8,
        overlap: 2,
    };
    let decoder = loader("unequal").with_tiling(tiling).decoder();
    let Decoder::Tiled(vae, tiling) = decoder.expect("it is valid") else {
        panic!("it decodes in tiles");
    };
    let posterior = vae.encode_tiled(golden("encoded.image"), tiling);
    assert_close(posterior.mode(), golden("encoded.mode"), 1e-5);
    assert_close(posterior.log_variance, golden("encoded.log_variance"), 1e-5);
}

#[test]
fn contradictory_options_are_rejected_before_loading() {
    let tiles = |side, overlap| Tiling { side, overlap };
    for (loader, part) in [
        (loader("sd15").with_tiling(tiles(32, 32)), "overlap by 32"),
        (
            loader("sd-turbo")
                .with_decoder(DecoderKind::Tiny)
                .with_tiling(Tiling::default()),
            "tiny autoencoder",
        ),
        (loader("sd15").with_dtype(DType::I32), "I32"),
        (
            loader("sd15").with_storage(DType::Bool(burn::tensor::BoolStore::Native)),
            "Bool",
        ),
    ] {
        let error = loader.load().expect_err("it is contradictory").to_string();
        assert!(error.contains(part), "{error}");
    }
    let request = Request::new(["a"]).with_size(100_000, 100_000);
    let error = loader("sd15").check_request(&request);
    let error = error.expect_err("it is too large");
    assert!(matches!(error, Error::Request(_)), "{error}");
    let request = Request::new(["a"]).with_size(1024, 1024);
    let whole = loader("sd15").memory(&request).expect("it is supported");
    let tiled = loader("sd15").with_tiling(tiles(32, 8)).memory(&request);
    assert!(tiled.expect("it is supported") < whole);
    assert!(
        SchedulerConfig::default()
            .for_sampler(SamplerKind::Ddim)
            .is_ok()
    );
}
