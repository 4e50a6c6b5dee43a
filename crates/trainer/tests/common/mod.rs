//! Tiny networks, recipes and runs.
#![allow(dead_code, reason = "each test target uses only some of it")]

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{ClipConfig, TextConfig, Tokenizer};
use swiftbrush_lora::LoraConfig;
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_testing::{device, fill};
use swiftbrush_trainer::{
    ClipNetworks, ClipRecipe, Distiller, Error, Event, Networks, Prompts, Recipe, Run,
};
use swiftbrush_unet::UNetConfig;
use swiftbrush_vae::AutoencoderTinyConfig;

pub(crate) fn networks(device: &Device) -> Networks {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clip/tests/golden");
    let text = TextConfig {
        vocab_size: 3514,
        max_position_embeddings: 77,
        eos_token_id: 3513,
        ..TextConfig::tiny()
    };
    let clip = ClipConfig {
        text_config: text.clone(),
        ..ClipConfig::tiny()
    };
    let [teacher, student] = [1, 2].map(|seed| fill(UNetConfig::tiny().init(device), seed));
    let networks = Networks::new(
        Tokenizer::from_model(&Model::open(here).unwrap(), "tokenizer").unwrap(),
        fill(text.init(device), 3),
        [teacher, student],
        NoiseSchedule::new(&SchedulerConfig::default()),
        [4, 8, 8],
    );
    networks.with_clip(ClipNetworks {
        clip: fill(clip.init(device), 4),
        decoder: fill(AutoencoderTinyConfig::tiny().init(device), 5),
    })
}

pub(crate) fn recipe() -> Recipe {
    let mut recipe = Recipe::full();
    recipe.steps = 6;
    recipe.batch = 2;
    recipe.accumulation = 2;
    recipe.learning_rate = 1e-3;
    recipe.fake_lora = LoraConfig::new(2, 4.0, ["to_q", "to_v"]);
    recipe.save_every = 2;
    recipe.preview_every = 3;
    recipe
}

pub(crate) fn efficient() -> Recipe {
    let mut recipe = recipe();
    recipe.student_lora = Some(LoraConfig::new(2, 4.0, ["to_q", "to_k", "to_v"]));
    recipe.clip = Some(ClipRecipe {
        weight: 0.1,
        threshold: 1.1,
    });
    recipe
}

/// The recipe with some changes.
pub(crate) fn with(mut recipe: Recipe, change: impl FnOnce(&mut Recipe)) -> Recipe {
    change(&mut recipe);
    recipe
}

pub(crate) fn prompts(folder: &Path) -> Prompts {
    let path = folder.join("prompts.txt");
    let text = "a red circle\na green star\nblue\n\nan orange heart above a ring\nwhite";
    std::fs::write(&path, text).unwrap();
    Prompts::open(path, 0).unwrap()
}

pub(crate) fn distiller(recipe: Recipe, networks: &Networks) -> Distiller {
    Distiller::new(recipe, networks.clone(), &device()).unwrap()
}

pub(crate) fn open(
    recipe: Recipe,
    networks: &Networks,
    folder: &Path,
    accepted: &[&str],
) -> Result<Run, Error> {
    let accepted: Vec<_> = accepted.iter().map(|&name| name.to_owned()).collect();
    Run::open(
        distiller(recipe, networks),
        prompts(folder),
        folder,
        &accepted,
    )
}

/// Opens a run and trains until a step, or to the end with 0.
pub(crate) fn train(
    recipe: Recipe,
    networks: &Networks,
    folder: &Path,
    stop_after: u64,
) -> Distiller {
    let mut run = open(recipe, networks, folder, &[]).unwrap();
    run.train(|event: &Event| match event {
        Event::Step { report, .. } if report.step + 1 == stop_after => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .unwrap();
    run.into_distiller()
}
