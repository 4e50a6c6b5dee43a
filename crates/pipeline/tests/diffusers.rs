//! A whole Stable Diffusion of toy size, saved by diffusers, paints what it paints there.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::vae::AutoencoderTiny;
use swiftbrush_pipeline::{Decoder, Error, Given, Method, Model, Request, TextToImage, noise};
use swiftbrush_testing::{F32, Golden, assert_close, device, values};

const PROMPTS: [&str; 2] = ["a red circle on a blue background", ""];

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model")
}

fn pipeline() -> TextToImage {
    let folder = Model::open(model()).expect("the folder is there");
    TextToImage::from_model(&folder, None, &device()).expect("the folder is whole")
}

fn golden() -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "paintings")
}

fn check(pipeline: &TextToImage, name: &str, method: Method, guidance: f64) {
    let (golden, device) = (golden(), device());
    let request = Request {
        method,
        guidance,
        negative_prompt: "a".to_owned(),
        ..Request::new(PROMPTS)
    };
    let painting = pipeline
        .generate(&request, &mut Given::from(golden.tensor("noise", &device)))
        .expect("it paints");
    let expected = |what: &str| -> Tensor<4> { golden.tensor(&format!("{name}.{what}"), &device) };
    let tokens: Vec<i64> = painting.tokens.into_data().iter().collect();
    assert_eq!(tokens, golden.data("tokens").iter().collect::<Vec<i64>>());
    assert_close(painting.context, golden.tensor("context", &device), F32);
    assert_close(painting.latents, expected("latents"), F32);
    assert_close(painting.images, expected("images"), F32);
}

#[test]
fn ddim_with_guidance_and_a_negative_prompt() {
    check(
        &pipeline(),
        "ddim",
        Method::Sampler(SamplerKind::Ddim, 3),
        4.5,
    );
}

#[test]
fn euler_with_guidance() {
    check(
        &pipeline(),
        "euler",
        Method::Sampler(SamplerKind::Euler, 4),
        3.0,
    );
}

#[test]
fn dpm_solver_with_guidance() {
    check(
        &pipeline(),
        "dpm",
        Method::Sampler(SamplerKind::DpmSolver, 5),
        3.0,
    );
}

#[test]
fn pndm_with_guidance() {
    assert_eq!(Method::Sampler(SamplerKind::Pndm, 6).n_calls(), 7);
    check(
        &pipeline(),
        "pndm",
        Method::Sampler(SamplerKind::Pndm, 6),
        3.0,
    );
}

#[test]
fn sd_turbos_rule_with_the_tiny_decoder() {
    let mut pipeline = pipeline();
    pipeline.scheduler = SchedulerConfig {
        class_name: "EulerDiscreteScheduler".to_owned(),
        timestep_spacing: TimestepSpacing::Trailing,
        ..pipeline.scheduler
    };
    let folder = Model::open(model()).expect("the folder is there");
    let tiny = AutoencoderTiny::from_model(&folder, "taesd", None, &device());
    pipeline.decoder = Decoder::Tiny(tiny.expect("it is whole"));
    assert_eq!(
        pipeline.default_method(),
        Method::Sampler(SamplerKind::Euler, 1)
    );
    check(
        &pipeline,
        "turbo",
        Method::Sampler(SamplerKind::Euler, 1),
        1.0,
    );
}

#[test]
fn the_default_is_the_scheduler_that_the_folder_names() {
    let mut pipeline = pipeline();
    for (name, method) in [
        ("PNDMScheduler", Method::Sampler(SamplerKind::Pndm, 25)),
        (
            "DPMSolverMultistepScheduler",
            Method::Sampler(SamplerKind::DpmSolver, 25),
        ),
        (
            "EulerDiscreteScheduler",
            Method::Sampler(SamplerKind::Euler, 25),
        ),
        ("DDIMScheduler", Method::Sampler(SamplerKind::Ddim, 25)),
        ("DDPMScheduler", Method::OneStep),
    ] {
        pipeline.scheduler = SchedulerConfig {
            class_name: name.to_owned(),
            timestep_spacing: TimestepSpacing::Leading,
            ..pipeline.scheduler
        };
        assert_eq!(pipeline.default_method(), method);
    }
}

#[test]
fn a_prompt_of_ten_thousand_words_is_cut_and_an_empty_one_is_painted() {
    let (pipeline, device) = (pipeline(), device());
    let long = "a red circle ".repeat(3334);
    let noise = noise(pipeline.latent_shape(3), 0, &device);
    let noise = noise.narrow(0, 0, 1).expand([3, 4, 8, 8]);
    let request = Request::new([long.as_str(), "a red circle a red circle a red circle", ""]);
    let painting = pipeline
        .generate(&request, &mut Given::from(noise))
        .expect("it paints");
    assert_eq!(painting.context.dims(), [3, 12, 12]);
    let picture = |i: usize| values(painting.images.clone().narrow(0, i, 1));
    assert_eq!(
        picture(0),
        picture(1),
        "what is beyond the last token has no part"
    );
    assert_ne!(picture(0), picture(2));
}

#[test]
fn requests_that_cannot_be_painted_are_refused() {
    let (pipeline, device) = (pipeline(), device());
    let noise = |batch: usize, channels: usize| noise([batch, channels, 8, 8], 0, &device);
    let ask = |request: Request, noise: Tensor<4>| match pipeline
        .generate(&request, &mut Given::from(noise))
    {
        Err(Error::Request(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    };
    let request = Request::new(["a", "b"]);
    assert_eq!(
        ask(request.clone(), noise(1, 4)),
        "the noise is [1, 4, 8, 8], wanted is [2, 4, 8, 8]"
    );
    assert!(ask(request.clone(), noise(2, 3)).contains("wanted is [2, 4, 8, 8]"));
    for steps in [0, 1001] {
        let method = Method::Sampler(SamplerKind::Ddim, steps);
        let request = Request {
            method,
            ..request.clone()
        };
        assert!(ask(request, noise(2, 4)).contains("1 to 1000"));
    }
    let thousand = Request {
        method: Method::Sampler(SamplerKind::DpmSolver, 1000),
        ..request.clone()
    };
    assert!(ask(thousand, noise(2, 4)).contains("1 to 999"));
    let request = Request {
        guidance: f64::NAN,
        ..request
    };
    assert!(ask(request, noise(2, 4)).contains("guidance is NaN"));
}

#[test]
fn a_nan_is_noticed_and_the_network_named() {
    let (pipeline, device) = (pipeline(), device());
    let noise = Tensor::full([1, 4, 8, 8], f32::NAN, &device);
    match pipeline.generate(&Request::new(["a"]), &mut Given::from(noise)) {
        Err(Error::NotFinite { part, .. }) => assert_eq!(part, "denoiser"),
        other => panic!("not noticed: {other:?}"),
    }
}
