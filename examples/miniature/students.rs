//! The one-step students: the initial one, A, B and their variants.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use indicatif::ProgressBar;
use serde_json::json;
use swiftbrush_checkpoint::{Archive, LazyTensor, write_atomically, write_tensors};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, Adapters, Layout};
use swiftbrush_pipeline::{Given, Method, Request, noise, one_step};
use swiftbrush_scheduler::{NoiseSchedule, SamplerKind};
use swiftbrush_trainer::{
    Distiller, Event, Networks, Prompts, Purpose, Random, Recipe, Run, Threads,
};
use swiftbrush_unet::UNet;

use crate::judge::Judge;
use crate::model::{Workshop, keep_settings, scheduler, unet_config, write_component};
use crate::painter::{Painter, Tally, captions};
use crate::teacher::GUIDANCE;
use crate::training::{PARTS, Schedule, progress_bar, train};
use crate::world::{HeldOut, Scene};

/// Number of pairs of noise and the teacher's latents for it. A third of this number was memorised.
const PAIRS: usize = 49_152;
/// Number of pairs in a file.
const PAIRS_PER_FILE: usize = 4096;
/// Number of the teacher's DDIM steps per pair.
const PAIR_STEPS: usize = 8;
/// Steps of distillation between two sheets of images.
const LOOK_EVERY: u64 = 100;
/// Number of prompts for distillation.
const PROMPTS: usize = 20_000;

/// Trains the counterpart of SD-Turbo: a one-step regression of the teacher's eight guided DDIM steps.
///
/// Training starts from the weights of the denoiser `from`.
pub(crate) fn train_start(workshop: &Workshop, steps: u64, from: &str) -> Result<()> {
    const BATCH: usize = 32 / PARTS as usize;
    let inner = &workshop.device;
    let device = inner.clone().autodiff();
    let folder = workshop.model()?;
    let scenes = captions(workshop.seed ^ 3, PAIRS, HeldOut::None);
    let (noises, targets) = pairs(workshop, &scenes)?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let text_encoder = TextEncoder::from_model(&folder, "text_encoder", Some(DType::F32), inner)?;
    let prompts: Vec<_> = scenes.iter().map(Scene::caption).collect();
    let schedule = NoiseSchedule::new(&scheduler("DDIMScheduler"));

    let loss = |unet: &UNet, step| {
        let places = Random::new(workshop.seed, Purpose::Data, step).integers(BATCH, 0..PAIRS);
        let captions: Vec<_> = places
            .iter()
            .map(|&place| prompts[place].as_str())
            .collect();
        let context = text_encoder.forward(tokenizer.encode_batch(&captions, inner));
        let indices: Vec<i32> = places.iter().map(|&place| place as i32).collect();
        let indices =
            Tensor::<1, burn::tensor::Int>::from_data(TensorData::new(indices, [BATCH]), inner);
        let noise = noises.clone().select(0, indices.clone()).autodiff();
        let target = targets.clone().select(0, indices).autodiff();
        let latents = one_step(unet, &schedule, noise, context.autodiff());
        // Squared errors would favour the mean of outcomes that the student cannot distinguish: blurred shapes.
        (latents - target).abs().mean()
    };
    let look = |unet: &UNet, step| {
        if step % 500 != 0 && step != steps {
            return Ok(());
        }
        let tally = one_step_sheet(workshop, "teacher", unet, "start", step)?;
        eprintln!("step {step}: one step, {tally}");
        Ok(())
    };
    let beginning = UNet::from_model(&folder, from, Some(DType::F32), inner)?
        .train()
        .unfreeze();
    let rate = Schedule {
        learning_rate: 3e-4,
        ..Schedule::new(steps, PARTS)
    };
    let unet = train(
        &workshop.stage("start"),
        beginning,
        rate,
        &device,
        loss,
        look,
    )?;
    write_component(
        &workshop.path("start"),
        "UNet2DConditionModel",
        &unet_config(),
        &unet,
        DType::F32,
    )
}

/// Noise and the teacher's latents for it, for these scenes, cached in files.
fn pairs(workshop: &Workshop, scenes: &[Scene]) -> Result<(Tensor<4>, Tensor<4>)> {
    let settings = json!({
        "seed": workshop.seed,
        "networks": workshop.hashes(&["teacher", "text_encoder"])?,
    });
    keep_settings(&workshop.stage("start").join("settings.json"), &settings)?;
    let bar = progress_bar("pairs", scenes.len() as u64, 0);
    let mut parts = [vec![], vec![]];
    for (index, scenes) in scenes.chunks(PAIRS_PER_FILE).enumerate() {
        let path = workshop
            .stage("start")
            .join(format!("pairs-{index:03}.safetensors"));
        if !path.is_file() {
            write_pairs(workshop, index, scenes, &path, &bar)?;
        }
        let file = Archive::open(path)?;
        for (name, parts) in ["noise", "latents"].into_iter().zip(&mut parts) {
            parts.push(Tensor::from_data(file.read(name)?, &workshop.device));
        }
        bar.set_position((index * PAIRS_PER_FILE + scenes.len()) as u64);
    }
    bar.finish();
    let [noises, latents] = parts.map(|parts| Tensor::cat(parts, 0));
    Ok((noises, latents))
}

/// Writes one file of pairs; its index determines the noise.
fn write_pairs(
    workshop: &Workshop,
    index: usize,
    scenes: &[Scene],
    path: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    const BATCH: usize = 64;
    let pipeline = workshop.pipeline("teacher")?;
    let first_seed = 1_000_000 + (index * PAIRS_PER_FILE / BATCH) as u64;
    let parts: Vec<_> = (first_seed..).zip(scenes.chunks(BATCH)).collect();
    let painted = Threads::new(PARTS as usize).map(&parts, |&(seed, scenes)| {
        let noise = noise(pipeline.latent_shape(scenes.len()), seed, &workshop.device);
        let request = Request::new(scenes.iter().map(Scene::caption))
            .with_method(Method::Sampler(SamplerKind::Ddim, PAIR_STEPS))
            .with_guidance(GUIDANCE);
        let painting = pipeline.generate(&request, &mut Given::from(noise.clone()))?;
        bar.inc(scenes.len() as u64);
        Ok((noise, painting.latents))
    });
    let painted: Result<Vec<_>> = painted.into_iter().collect();
    let (noises, latents): (Vec<_>, Vec<_>) = painted?.into_iter().unzip();
    let tensors = [("noise", noises), ("latents", latents)]
        .map(|(name, parts)| LazyTensor::ready(name, Tensor::cat(parts, 0).into_data()));
    Ok(write_tensors(path, tensors.into(), HashMap::new())?)
}

/// Path of a shipped recipe: `NAME.toml` next to this file.
pub(crate) fn recipe_path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature");
    folder.join(name).with_extension("toml")
}

/// A distillation that starts from the denoiser `from`, with [`Judge`] for the CLIP loss of the recipe.
pub(crate) fn distiller(workshop: &Workshop, from: &str, mut recipe: Recipe) -> Result<Distiller> {
    let device = &workshop.device;
    let folder = workshop.model()?;
    let judge = recipe.clip.take().map(|clip| Judge::load(workshop, clip));
    let (teacher, student) = ((&folder, "teacher"), (&folder, from));
    let networks = Networks::load(teacher, student, &recipe, device)?;
    let distiller = Distiller::new(recipe, networks, device)?.with_threads(2);
    Ok(match judge {
        Some(judge) => distiller.with_reward(Box::new(judge?))?,
        None => distiller,
    })
}

/// Distils the denoiser `from` into the component `name`; beside it, the adapters of a low-rank student.
pub(crate) fn distill(
    workshop: &Workshop,
    name: &str,
    from: &str,
    recipe: Recipe,
    prompt_set: PromptSet,
) -> Result<()> {
    let stage = workshop.stage(name);
    let prompts = Prompts::open(prompts(workshop, prompt_set)?, recipe.seed)?;
    let distiller = distiller(workshop, from, recipe)?;
    let mut run = Run::open(distiller, prompts, &stage, &[])?;
    let (steps, done) = (run.distiller().recipe().steps, run.distiller().n_steps());
    let bar = progress_bar(name, steps, done);
    while !run.is_finished() {
        run.train(|event: &Event| {
            let Event::Step { report, .. } = event else {
                return ControlFlow::Continue(());
            };
            let done = report.step + 1;
            bar.set_position(done);
            if done.is_multiple_of(LOOK_EVERY) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let distiller = run.distiller();
        let (unet, done) = (distiller.averaged_student(), distiller.n_steps());
        let tally = one_step_sheet(workshop, from, &unet, name, done)?;
        eprintln!("step {done}: one step, {tally}");
    }
    bar.finish();
    let student = run.distiller().trained_student().averaged();
    let folder = workshop.path(name);
    if let Some(adapters) = student.adapters() {
        let file = AdapterFile::new(adapters, Adapters::default());
        file.save(folder.join("adapters.safetensors"), Layout::Diffusers)?;
    }
    write_component(
        &folder,
        "UNet2DConditionModel",
        &unet_config(),
        &student.merged(),
        DType::F32,
    )
}

/// Scores one-step images of a denoiser and writes them to the folder of a stage. `other` is a finished denoiser of the
/// same shape.
pub(crate) fn one_step_sheet(
    workshop: &Workshop,
    other: &str,
    unet: &UNet,
    stage: &str,
    step: u64,
) -> Result<Tally> {
    let mut pipeline = workshop.pipeline(other)?;
    pipeline.unet = unet.clone();
    let painter = Painter {
        pipeline: &pipeline,
        method: Method::OneStep,
        guidance: 1.0,
    };
    painter.sheet(workshop.seed, &workshop.stage(stage), step)
}

/// Prompts of a distillation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PromptSet {
    /// No held-out pair.
    Known,
    /// A quarter with a held-out pair of the first half; prompts only, no images.
    Taught,
}

impl PromptSet {
    pub(crate) fn scenes(self, seed: u64) -> Vec<Scene> {
        match self {
            Self::Known => captions(seed ^ 4, PROMPTS, HeldOut::None),
            Self::Taught => {
                let mut scenes = captions(seed ^ 4, PROMPTS - PROMPTS / 4, HeldOut::None);
                scenes.extend(captions(seed ^ 4, PROMPTS / 4, HeldOut::First));
                scenes
            }
        }
    }
}

/// Writes the prompts of a distillation, one per line. [`Prompts`] shuffles them.
pub(crate) fn prompts(workshop: &Workshop, set: PromptSet) -> Result<PathBuf> {
    let name = match set {
        PromptSet::Known => "prompts.txt",
        PromptSet::Taught => "prompts-taught.txt",
    };
    let path = workshop.root.join(name);
    let mut text = String::new();
    for scene in set.scenes(workshop.seed) {
        writeln!(text, "{}", scene.caption())?;
    }
    write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use swiftbrush_pipeline::{Loader, Model};

    use super::*;
    use crate::scorer::Score;
    use crate::world::HELD_OUT;

    #[test]
    fn the_shipped_student_renders_pairs_that_no_network_has_seen() -> Result<()> {
        let model = Model::open(examples_common::miniature())?;
        let pipeline = Loader::new(model, &Device::flex()).load()?;
        let painter = Painter {
            pipeline: &pipeline,
            method: Method::OneStep,
            guidance: 1.0,
        };
        let share = |class| -> Result<f64> {
            Ok(painter.tally(&captions(77, 128, class))?.share(Score::all))
        };
        // 0.98, 0.91 and 0.99 of 4096 or more.
        for (class, least) in [
            (HeldOut::First, 0.94),
            (HeldOut::Second, 0.83),
            (HeldOut::None, 0.95),
        ] {
            let share = share(class)?;
            assert!(share > least, "{class:?}: {share}");
        }
        Ok(())
    }

    #[test]
    fn taught_prompts_hold_the_first_pairs_and_known_ones_none() {
        let holds = |scene: &Scene, half: std::ops::Range<usize>| {
            let pairs = HELD_OUT[half].iter();
            let mut names = pairs.map(|(color, shape)| format!("{color} {shape}"));
            names.any(|name| scene.caption().contains(&name))
        };
        let known = PromptSet::Known.scenes(0);
        assert!(known.iter().all(|scene| !holds(scene, 0..6)));
        let taught = PromptSet::Taught.scenes(0);
        let first = taught.iter().filter(|scene| holds(scene, 0..3)).count();
        assert_eq!((first, taught.len()), (PROMPTS / 4, PROMPTS));
        assert!(taught.iter().all(|scene| !holds(scene, 3..6)));
    }
}
