//! The one-step students: the one that distillation begins with, A, B, and what lies between them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use indicatif::ProgressBar;
use swiftbrush_checkpoint::{Archive, LazyTensor, write_atomically, write_tensors};
use swiftbrush_clip::{Clip, TextEncoder, Tokenizer};
use swiftbrush_pipeline::{Given, Method, Request, noise, one_step};
use swiftbrush_scheduler::{NoiseSchedule, SamplerKind};
use swiftbrush_trainer::{
    ClipNetworks, Distiller, Event, Networks, Prompts, Purpose, Random, Recipe, Threads, resume,
    run,
};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderTiny;

use crate::model::{Workshop, scheduler, unet_config, write_component};
use crate::teacher::{GUIDANCE, Painter, Tally, captions};
use crate::training::{PARTS, Schedule, progress_bar, train};
use crate::world::Scene;

/// Pairs of noise and what the teacher makes of it. A third of them were learned by heart.
const PAIRS: usize = 49_152;
/// Pairs in a file.
const PAIRS_PER_FILE: usize = 4096;
/// Steps of the teacher for a pair.
const PAIR_STEPS: usize = 8;
/// Steps of distillation between two looks at what the student paints.
const LOOK_EVERY: u64 = 100;
/// Captions in the file that distillation reads.
const PROMPTS: usize = 20_000;

/// The stand-in for SD-Turbo: the teacher, taught to jump where its own eight guided steps of DDIM lead.
///
/// It begins with the weights of the denoiser `from`.
pub(crate) fn train_start(workshop: &Workshop, steps: u64, from: &str) -> Result<()> {
    const BATCH: usize = 32 / PARTS as usize;
    let inner = &workshop.device;
    let device = inner.clone().autodiff();
    let folder = workshop.model()?;
    let scenes = captions(workshop.seed ^ 3, PAIRS, false);
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
        // Squares would have it paint the mean of what it cannot tell apart: blurred shapes.
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
        steps,
        learning_rate: 3e-4,
        ema: 0.99,
        parts: PARTS,
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

/// Noise and the latents that the teacher makes of it for these scenes, kept in files.
fn pairs(workshop: &Workshop, scenes: &[Scene]) -> Result<(Tensor<4>, Tensor<4>)> {
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

/// Has the teacher paint the scenes of one file, with noise that its index decides.
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

/// Settings of a student that ships with the miniature: `NAME.toml` beside this file.
pub(crate) fn recipe_path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature");
    folder.join(name).with_extension("toml")
}

/// Distils the denoiser `from` into the component `name`.
pub(crate) fn distill(workshop: &Workshop, name: &str, from: &str, recipe: Recipe) -> Result<()> {
    let device = &workshop.device;
    let folder = workshop.model()?;
    let config = unet_config();
    let clip = match &recipe.clip {
        Some(_) => Some(ClipNetworks {
            clip: Clip::from_model(&folder, "clip", Some(DType::F32), device)?,
            decoder: AutoencoderTiny::from_model(&folder, "taesd", Some(DType::F32), device)?,
        }),
        None => None,
    };
    let networks = Networks {
        tokenizer: Tokenizer::from_model(&folder, "tokenizer")?,
        text_encoder: TextEncoder::from_model(&folder, "text_encoder", Some(DType::F32), device)?,
        teacher: UNet::from_model(&folder, "teacher", Some(DType::F32), device)?,
        student: UNet::from_model(&folder, from, Some(DType::F32), device)?,
        schedule: NoiseSchedule::new(&scheduler("DDIMScheduler")),
        latents: [config.in_channels, config.sample_size, config.sample_size],
        clip,
    };
    let stage = workshop.stage(name);
    let prompts = Prompts::open(prompts(workshop)?, recipe.seed)?;
    let mut distiller = resume(
        Distiller::new(recipe, networks, device)?.with_threads(2),
        &stage,
    )?;
    let bar = progress_bar(name, distiller.recipe().steps, distiller.n_steps());
    while distiller.n_steps() < distiller.recipe().steps {
        run(&mut distiller, &prompts, &stage, |event| {
            let Event::Step(report) = event else {
                return ControlFlow::Continue(());
            };
            let done = report.step + 1;
            bar.set_position(done);
            if done.is_multiple_of(LOOK_EVERY) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let (unet, done) = (distiller.averaged_student(), distiller.n_steps());
        let tally = one_step_sheet(workshop, from, &unet, name, done)?;
        eprintln!("step {done}: one step, {tally}");
    }
    bar.finish();
    let unet = distiller.averaged_student();
    write_component(
        &workshop.path(name),
        "UNet2DConditionModel",
        &config,
        &unet,
        DType::F32,
    )
}

/// Pictures that a denoiser makes in one step, left in the folder of a stage. `other` is a denoiser
/// of the same shape that is finished.
fn one_step_sheet(
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

/// The captions that distillation reads; none holds a held-out pair.
fn prompts(workshop: &Workshop) -> Result<PathBuf> {
    let path = workshop.root.join("prompts.txt");
    if !path.is_file() {
        let mut text = String::new();
        for scene in captions(workshop.seed ^ 4, PROMPTS, false) {
            writeln!(text, "{}", scene.caption())?;
        }
        write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    }
    Ok(path)
}
