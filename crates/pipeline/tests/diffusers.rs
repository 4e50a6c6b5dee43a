//! Parity with diffusers for a complete toy-sized Stable Diffusion saved by it.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use swiftbrush_pipeline::scheduler::{
    PredictionType, SamplerKind, SchedulerConfig, TimestepSpacing,
};
use swiftbrush_pipeline::vae::AutoencoderTiny;
use swiftbrush_pipeline::{
    Decoder, Error, Given, Method, Model, NegativeMethod, Request, Start, TextToImage, Warning,
    noise,
};
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
    let mut request = Request::new(PROMPTS)
        .with_method(method)
        .with_guidance(guidance);
    if request.is_guided() {
        request = request.with_negative_prompt("a");
    }
    let painting = pipeline
        .generate(&request, &mut Given::from(golden.tensor("noise", &device)))
        .expect("it paints");
    let expected = |what: &str| -> Tensor<4> { golden.tensor(&format!("{name}.{what}"), &device) };
    let tokens = painting.conditioning.tokens.expect("prompts were encoded");
    let tokens: Vec<i64> = tokens.into_data().iter().collect();
    assert_eq!(tokens, golden.data("tokens").iter().collect::<Vec<i64>>());
    assert_close(
        painting.conditioning.context,
        golden.tensor("context", &device),
        F32,
    );
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
    let mut pipeline = pipeline();
    pipeline.scheduler = pipeline.scheduler.with_skip_prk_steps(true);
    check(
        &pipeline,
        "pndm",
        Method::Sampler(SamplerKind::Pndm, 6),
        3.0,
    );
}

#[test]
fn sd_turbos_rule_with_the_tiny_decoder() {
    let mut pipeline = pipeline();
    pipeline.scheduler = pipeline
        .scheduler
        .with_class("EulerDiscreteScheduler")
        .with_spacing(TimestepSpacing::Trailing);
    let folder = Model::open(model()).expect("the folder is there");
    let tiny = AutoencoderTiny::from_model(&folder, "taesd", None, &device());
    pipeline.decoder = Decoder::Tiny(tiny.expect("it is valid"));
    assert_eq!(
        pipeline.default_method().expect("the class is known"),
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
fn the_default_method_is_that_of_the_folders_scheduler() {
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
        ("LCMScheduler", Method::Sampler(SamplerKind::Lcm, 4)),
        ("DDPMScheduler", Method::Sampler(SamplerKind::Ddim, 25)),
    ] {
        pipeline.scheduler = pipeline
            .scheduler
            .with_class(name)
            .with_spacing(TimestepSpacing::Leading);
        assert_eq!(
            pipeline.default_method().expect("the class is known"),
            method
        );
    }
    pipeline.scheduler = pipeline.scheduler.with_one_step(true);
    let marked = pipeline.default_method();
    assert_eq!(marked.expect("it is marked"), Method::OneStep);
    pipeline.scheduler = SchedulerConfig::default()
        .with_prediction_type(PredictionType::VPrediction)
        .with_zero_snr(true);
    let velocity = pipeline.default_method().expect("the class is known");
    assert_eq!(
        velocity,
        Method::Sampler(SamplerKind::Euler, 25),
        "it is no SD-Turbo"
    );
}

#[test]
fn a_prompt_of_ten_thousand_words_is_cut_and_an_empty_one_is_valid() {
    let (pipeline, device) = (pipeline(), device());
    let long = "a red circle ".repeat(3334);
    let noise = noise(pipeline.latent_shape(3), 0, &device);
    let noise = noise.narrow(0, 0, 1).expand([3, 4, 8, 8]);
    let request = Request::new([long.as_str(), "a red circle a red circle a red circle", ""]);
    let painting = pipeline
        .generate(&request, &mut Given::from(noise))
        .expect("the request is valid");
    assert_eq!(painting.conditioning.context.dims(), [3, 12, 12]);
    match painting.warnings.as_slice() {
        [
            Warning::PromptCut { prompt, lost },
            Warning::PromptCut { .. },
        ] => {
            assert_eq!(*prompt, long);
            assert!(
                long.trim_end().ends_with(lost.trim_end()) && !lost.is_empty(),
                "{lost}"
            );
        }
        other => panic!("two prompts are cut: {other:?}"),
    }
    let picture = |i: usize| values(painting.images.clone().narrow(0, i, 1));
    assert_eq!(
        picture(0),
        picture(1),
        "text beyond the last token has no effect"
    );
    assert_ne!(picture(0), picture(2));
}

#[test]
fn invalid_requests_are_rejected() {
    let (pipeline, device) = (pipeline(), device());
    let noise = |batch: usize, channels: usize| noise([batch, channels, 8, 8], 0, &device);
    let ask = |request: Request, noise: Tensor<4>| match pipeline
        .generate(&request, &mut Given::from(noise))
    {
        Err(error @ (Error::Request(_) | Error::Sampler(_))) => error.to_string(),
        other => panic!("not rejected: {other:?}"),
    };
    let request = Request::new(["a", "b"]);
    assert_eq!(
        ask(request.clone(), noise(1, 4)),
        "expected noise of shape [2, 4, 8, 8], found [1, 4, 8, 8]"
    );
    assert!(ask(request.clone(), noise(2, 3)).contains("shape [2, 4, 8, 8]"));
    for steps in [0, 1001] {
        let method = Method::Sampler(SamplerKind::Ddim, steps);
        let request = request.clone().with_method(method);
        assert!(ask(request, noise(2, 4)).contains("1 to 1000"));
    }
    let thousand = request
        .clone()
        .with_method(Method::Sampler(SamplerKind::DpmSolver, 1000));
    assert!(ask(thousand, noise(2, 4)).contains("1 to 999"));
    for guidance in [f64::NAN, f64::INFINITY, -1.0] {
        let request = request.clone().with_guidance(guidance);
        assert!(ask(request, noise(2, 4)).contains("guidance"), "{guidance}");
    }
    let negative = request.clone().with_negative_prompt("blurry");
    let steps = Method::Sampler(SamplerKind::Ddim, 2);
    for (negative, part) in [
        (
            negative.clone().with_method(steps),
            "negative prompt has no effect",
        ),
        (
            negative
                .clone()
                .with_guidance(2.0)
                .with_negative_method(NegativeMethod::NASA),
            "guidance 2 and nasa 0.2 both",
        ),
        (
            negative.with_negative_method(NegativeMethod::NASA.with_scale(-1.0)),
            "scale -1",
        ),
    ] {
        let error = ask(negative, noise(2, 4));
        assert!(error.contains(part), "{error}");
    }
    for ((width, height), part) in [
        ((15, 31), "size 15x31"),
        ((0, 16), "multiples of 2"),
        ((100_000, 100_000), "about 894.1 GiB"),
    ] {
        let request = request.clone().with_size(width, height);
        let error = ask(request, noise(2, 4));
        assert!(error.contains(part), "{error}");
    }
    let start =
        |batch: usize, strength| Start::new(Tensor::zeros([batch, 3, 16, 16], &device), strength);
    for (start, size, part) in [
        (start(2, f64::NAN), None, "strength NaN"),
        (start(2, 1.5), None, "strength 1.5"),
        (start(1, 0.5), None, "each of 2 prompts"),
        (start(2, 0.5), Some((32, 16)), "requested size is 32x16"),
    ] {
        let mut request = request.clone().with_start(start);
        request.size = size.map(|(width, height)| [height, width]);
        let error = ask(request, noise(2, 4));
        assert!(error.contains(part), "{error}");
    }
    let bytes = Start::new(Tensor::full([2, 3, 16, 16], 200.0, &device), 0.5);
    let error = ask(request.clone().with_start(bytes), noise(2, 4));
    assert!(
        error.contains("start image has values of up to 200"),
        "{error}"
    );
    let few = request
        .clone()
        .with_method(Method::Sampler(SamplerKind::Euler, 1))
        .with_start(start(2, 0.8));
    assert!(ask(few, noise(2, 4)).contains("at least 2 steps"));
    assert!(ask(request.with_prompts(Vec::<String>::new()), noise(2, 4)).contains("no prompts"));
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
