//! Preference tuning (DrPO) of a one-step student: its own images are ranked by the scorer, which has no gradient.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{DType, Tensor};
use clap::Args;
use examples_common::pictures;
use image::RgbImage;
use swiftbrush_clip::{Clip, preprocess};
use swiftbrush_trainer::{
    FeatureMap, Judge, Networks, PreferenceRecipe, PreferenceTuner, PromptSource, Prompts, Recipe,
    Snapshot,
};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny};

use crate::model::{Workshop, unet_config, write_component};
use crate::scorer::score;
use crate::students::{self, PromptSet};
use crate::training::{PARTS, progress_bar};
use crate::world::Scene;

/// Steps between snapshots, and between sheets of images.
const SAVE_EVERY: u64 = 50;
/// Patches along each side of an area whose states are averaged.
const POOL: usize = 4;

/// The student and its run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of the tuned student.
    name: String,
    /// Denoiser whose weights tuning starts from, a one-step student.
    #[arg(long, default_value = "unet")]
    from: String,
    /// Number of steps.
    #[arg(long, default_value_t = 300)]
    steps: u64,
}

/// Tunes a denoiser and writes it to the model folder.
pub(crate) fn prefer(workshop: &Workshop, options: &Options) -> Result<()> {
    let (name, stage) = (&options.name, workshop.stage(&options.name));
    std::fs::create_dir_all(&stage)?;
    let path = stage.join("snapshot.safetensors");
    let recipe = recipe(workshop.seed)?;
    let count = recipe.prompts;
    let prompts = students::prompts(workshop, PromptSet::Known)?;
    let mut prompts = Prompts::open(prompts, recipe.seed)?;
    let mut tuner = tuner(workshop, &options.from, recipe)?;
    if path.is_file() {
        tuner = tuner.restore(&Snapshot::open(&path)?, &path)?;
    }
    let bar = progress_bar(name, options.steps, tuner.n_steps());
    let mut reports = Vec::new();
    while tuner.n_steps() < options.steps {
        let first = tuner.n_steps() * count as u64;
        reports.push(tuner.step(&prompts.get(first, count)?)?);
        bar.inc(1);
        let done = tuner.n_steps();
        if done.is_multiple_of(SAVE_EVERY) || done == options.steps {
            tuner.snapshot().save(&path)?;
            let unet = tuner.averaged_student();
            let tally = students::one_step_sheet(workshop, &options.from, &unet, name, done)?;
            let score = reports.iter().map(|it| it.score).sum::<f64>() / reports.len() as f64;
            let ranked: usize = reports.drain(..).map(|it| it.ranked).sum();
            eprintln!("step {done}: score {score:.3}, {ranked} prompts ranked; one step, {tally}");
        }
    }
    bar.finish();
    write_component(
        &workshop.path(name),
        "UNet2DConditionModel",
        &unet_config(),
        &tuner.averaged_student(),
        DType::F32,
    )
}

/// The recipe in `recipes/prefer.toml`.
fn recipe(seed: u64) -> Result<PreferenceRecipe> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature/recipes/prefer.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let recipe = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(PreferenceRecipe { seed, ..recipe })
}

fn tuner(workshop: &Workshop, from: &str, recipe: PreferenceRecipe) -> Result<PreferenceTuner> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    let student = (&folder, from);
    let networks = Networks::load(student, student, &Recipe::default(), device)?;
    let f32 = Some(DType::F32);
    let scenes = PromptSet::Known.scenes(workshop.seed).into_iter();
    let judge = Scorer {
        decoder: AutoencoderKl::from_model(&folder, "vae", f32, device)?,
        scenes: scenes.map(|scene| (scene.caption(), scene)).collect(),
    };
    let features = ClipFeatures {
        clip: Clip::from_model(&folder, "clip", f32, device)?,
        decoder: AutoencoderTiny::from_model(&folder, "taesd", f32, device)?,
    };
    let (judge, features) = (Box::new(judge), Box::new(features));
    let tuner = PreferenceTuner::new(recipe, networks, judge, features, device)?;
    Ok(tuner.with_threads(PARTS as usize))
}

/// Number of aspects of the caption that an image has right.
#[derive(Debug)]
struct Scorer {
    decoder: AutoencoderKl,
    scenes: HashMap<String, Scene>,
}

impl Judge for Scorer {
    fn scores(&self, latents: Tensor<4>, prompt: &str) -> Vec<f64> {
        let scene = &self.scenes[prompt];
        let pictures = pictures(self.decoder.decode(latents));
        let right = |picture: &RgbImage| {
            let score = score(picture, scene);
            let aspects = [score.ground, score.color, score.shape, score.relation];
            aspects.into_iter().filter(|&right| right).count() as f64
        };
        pictures.iter().map(right).collect()
    }
}

/// Embeddings of CLIP and the mean states of its patches by area, through the tiny decoder.
#[derive(Debug)]
struct ClipFeatures {
    clip: Clip,
    decoder: AutoencoderTiny,
}

impl FeatureMap for ClipFeatures {
    fn features(&self, latents: Tensor<4>, _: Tensor<3>, _: Tensor<4>) -> Vec<Tensor<2>> {
        if !latents.is_autodiff() {
            return features(&self.clip, &self.decoder, latents);
        }
        let clip = self.clip.clone().freeze().train();
        let decoder = self.decoder.clone().freeze().train();
        features(&clip, &decoder, latents)
    }
}

fn features(clip: &Clip, decoder: &AutoencoderTiny, latents: Tensor<4>) -> Vec<Tensor<2>> {
    let images = preprocess(decoder.decode(latents), clip.image_size());
    let states = clip.image_states(images);
    let areas = by_area(states.clone());
    vec![clip.embed_image_states(states), areas]
}

/// Means of the states of each area of 4×4 patches, `[images, areas · width]`, without the class token.
fn by_area(states: Tensor<3>) -> Tensor<2> {
    let [images, tokens, width] = states.dims();
    let side = (tokens - 1).isqrt();
    let areas = side / POOL;
    let patches = states.narrow(1, 1, side * side);
    let patches = patches.reshape([images, areas, POOL, areas, POOL * width]);
    let rows = patches
        .mean_dim(2)
        .reshape([images, areas * areas, POOL, width]);
    rows.mean_dim(2).reshape([images, areas * areas * width])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn states_are_averaged_by_area() {
        // Eight by eight patches of width one, numbered row by row, after a class token.
        let numbers: Vec<f32> = (-1..64).map(|patch| patch as f32).collect();
        let states = Tensor::from_data(TensorData::new(numbers, [1, 65, 1]), &Device::default());
        let means: Vec<f32> = by_area(states).into_data().iter::<f32>().collect();
        // The first area has rows 0 to 3 and columns 0 to 3: (0 + 8 + 16 + 24) / 4 + 1.5.
        assert_eq!(means, [13.5, 17.5, 45.5, 49.5]);
    }

    #[test]
    fn the_recipe_opens() {
        assert_eq!(recipe(7).unwrap().seed, 7);
    }
}
