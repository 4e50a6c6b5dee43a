//! Inputs that a distiller rejects up front.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use common::{efficient, networks, recipe, with};
use swiftbrush_clip::{ClipConfig, TextConfig};
use swiftbrush_lora::LoraConfig;
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_testing::device;
use swiftbrush_trainer::{Distiller, Error, Networks, Recipe};
use swiftbrush_unet::UNetConfig;

#[track_caller]
fn rejects(recipe: Recipe, networks: Networks, words: &[&str]) {
    let error = Distiller::new(recipe, networks, &device()).unwrap_err();
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// The networks with some changes.
fn changed(change: impl FnOnce(&mut Networks, &Device)) -> Networks {
    let device = device();
    let mut networks = networks(&device);
    change(&mut networks, &device);
    networks
}

/// Casts every weight to f16.
struct Halve;

impl ModuleMapper for Halve {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(FloatDType::F16))
    }
}

fn half<M: Module>(module: &M) -> M {
    module.clone().map(&mut Halve)
}

#[test]
fn networks_in_half_precision() {
    let teacher = changed(|networks, _| networks.teacher = half(&networks.teacher));
    let words = ["teacher", "F16", "Some(DType::F32)"];
    rejects(recipe(), teacher, &words);
    let student = changed(|networks, _| networks.student = half(&networks.student));
    rejects(recipe(), student, &["student", "F16"]);
    let text = changed(|networks, _| {
        networks.text_encoder = half(&networks.text_encoder);
    });
    rejects(recipe(), text, &["text_encoder", "F16"]);
    let clip = changed(|networks, _| {
        let clip = networks.clip.as_mut().unwrap();
        clip.decoder = half(&clip.decoder);
    });
    rejects(efficient(), clip.clone(), &["decoder", "F16"]);
    // CLIP is not used without a CLIP loss.
    assert!(Distiller::new(recipe(), clip, &device()).is_ok());
}

#[test]
fn networks_on_an_autodiff_device() {
    let student = changed(|networks, _| networks.student = networks.student.clone().train());
    rejects(recipe(), student, &["student", "without .train()"]);
}

#[test]
fn adapters_without_layers_are_listed() {
    let targets = |names: &[&str]| LoraConfig::new(2, 4.0, names.to_vec());
    let fake = with(recipe(), |recipe| {
        recipe.fake_lora = targets(&["to_q", "to_z", "q_proj"]);
    });
    let words = ["fake_lora.target_modules", "to_z, q_proj"];
    rejects(fake, networks(&device()), &words);
    let student = with(recipe(), |recipe| {
        recipe.student_lora = Some(targets(&["q"]));
    });
    rejects(student, networks(&device()), &["student_lora", "called q"]);
}

#[test]
fn adapters_of_convolutions_are_listed() {
    let conv = with(recipe(), |recipe| {
        recipe.fake_lora = LoraConfig::new(2, 4.0, ["to_q", "proj_in"]);
    });
    assert!(Distiller::new(conv.clone(), networks(&device()), &device()).is_ok());
    // In Stable Diffusion 1.x, `proj_in` is a convolution.
    let first = changed(|networks, device| {
        let config = UNetConfig {
            use_linear_projection: false,
            ..UNetConfig::tiny()
        };
        networks.teacher = config.init(device);
    });
    let words = [
        "fake_lora.target_modules",
        "down_blocks.0.attentions.0.proj_in",
        "only linear layers",
    ];
    rejects(conv, first, &words);
}

#[test]
fn timesteps_beyond_the_schedule() {
    let late = with(recipe(), |recipe| recipe.max_timestep = 1000);
    let words = ["max_timestep = 1000", "ends at 999"];
    rejects(late, networks(&device()), &words);
    let last = with(recipe(), |recipe| recipe.max_timestep = 999);
    assert!(Distiller::new(last, networks(&device()), &device()).is_ok());
    let guided = with(recipe(), |recipe| recipe.max_guided_timestep = Some(1000));
    rejects(guided, networks(&device()), &["max_guided_timestep = 1000"]);
    let short = changed(|networks, _| {
        let mut config = SchedulerConfig::default();
        config.num_train_timesteps = 500;
        networks.schedule = NoiseSchedule::new(&config);
    });
    rejects(recipe(), short, &["max_timestep = 980", "ends at 499"]);
}

#[test]
fn settings_out_of_range() {
    for (change, word) in [
        (
            (|recipe| recipe.fake_lora.rank = 0) as fn(&mut Recipe),
            "fake_lora.rank",
        ),
        (
            |recipe| recipe.student_lora.as_mut().unwrap().rank = 0,
            "student_lora.rank",
        ),
        (|recipe| recipe.learning_rate = f64::NAN, "learning_rate"),
        (
            |recipe| recipe.clip.as_mut().unwrap().weight = f64::NAN,
            "clip.weight",
        ),
    ] {
        rejects(with(efficient(), change), networks(&device()), &[word]);
    }
}

#[test]
fn vocabularies_smaller_than_the_tokenizers() {
    let small = TextConfig {
        vocab_size: 64,
        max_position_embeddings: 77,
        ..TextConfig::tiny()
    };
    let text = changed(|networks, device| networks.text_encoder = small.init(device));
    let words = ["text_encoder", "64 tokens", "3514"];
    rejects(recipe(), text, &words);
    let clip = changed(|networks, device| {
        let config = ClipConfig {
            text_config: small.clone(),
            ..ClipConfig::tiny()
        };
        networks.clip.as_mut().unwrap().clip = config.init(device);
    });
    rejects(efficient(), clip, &["clip", "64 tokens", "3514"]);
}

#[test]
fn denoisers_that_do_not_fit_latents_or_text() {
    let wide = changed(|networks, device| {
        let config = UNetConfig {
            cross_attention_dim: 16,
            ..UNetConfig::tiny()
        };
        networks.student = config.init(device);
    });
    rejects(
        recipe(),
        wide,
        &["student", "context width: expected 12", "found 16"],
    );
    let inpainting = changed(|networks, device| {
        let config = UNetConfig {
            in_channels: 9,
            ..UNetConfig::tiny()
        };
        networks.teacher = config.init(device);
    });
    let words = ["teacher", "input channels: expected 4", "found 9"];
    rejects(recipe(), inpainting, &words);
}

#[test]
fn a_clip_loss_without_clip() {
    let without = changed(|networks, _| networks.clip = None);
    let error = Distiller::new(efficient(), without, &device()).unwrap_err();
    assert!(matches!(error, Error::NoClip));
}
