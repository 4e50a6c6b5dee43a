//! The teacher: a text-conditioned latent-diffusion model.

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_pipeline::{Decoder, Given, Method, Request, TextToImage, noise};
use swiftbrush_scheduler::{NoiseSchedule, SamplerKind};
use swiftbrush_trainer::{Purpose, Random};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderKl;

use crate::data::Batch;
use crate::model::{Workshop, scheduler, unet_config, write_component};
use crate::scorer::{Score, score};
use crate::training::{PARTS, Schedule, train};
use crate::world::Scene;
use examples_common::{grid, pictures, write_png};

/// Share of captions that are left out, so that guidance has something to guide away from.
const DROP: f64 = 0.1;
/// Pictures in a part of a step.
const BATCH: usize = 32 / PARTS as usize;
/// Guidance that the teacher paints with, here and when it teaches: less than the 4.5 of the paper, which
/// has fewer shapes right.
pub(crate) const GUIDANCE: f64 = 3.0;

/// Trains the teacher from random weights, or from those of the denoiser `from`.
pub(crate) fn train_teacher(workshop: &Workshop, steps: u64, from: Option<&str>) -> Result<()> {
    let inner = &workshop.device;
    let device = inner.clone().autodiff();
    let seed = workshop.seed;
    workshop.write_scheduler("DDIMScheduler")?;
    let folder = workshop.model()?;
    let vae = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), inner)?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let text_encoder = TextEncoder::from_model(&folder, "text_encoder", Some(DType::F32), inner)?;
    let schedule = NoiseSchedule::new(&scheduler("DDIMScheduler"));

    let loss = |unet: &UNet, step| {
        let batch = Batch::new(seed, step, BATCH);
        let mut random = Random::new(seed, Purpose::Student, step);
        let latents = vae.encode(batch.images(inner)).mode();
        let captions: Vec<_> = batch
            .captions()
            .into_iter()
            .map(|caption| {
                if random.chance(DROP) {
                    String::new()
                } else {
                    caption
                }
            })
            .collect();
        let context = text_encoder.forward(tokenizer.encode_batch(&captions, inner));
        let timesteps = random.integers(BATCH, 0..schedule.len());
        let noise = random.normal(latents.dims(), inner);
        let noisy = schedule.add_noise(latents, noise.clone(), &timesteps);
        let weights: Vec<f32> = timesteps.iter().map(|&t| weight(&schedule, t)).collect();
        let weights = Tensor::from_data(TensorData::new(weights, [BATCH, 1, 1, 1]), inner);
        let timesteps = floats(&timesteps, &device);
        let predicted = unet.forward(noisy.autodiff(), timesteps, context.autodiff());
        let squares = (predicted - noise.autodiff()).powi_scalar(2);
        (squares * weights.autodiff()).mean()
    };
    let look = |unet: &UNet, step| {
        if step % 1000 != 0 && step != steps {
            return Ok(());
        }
        let pipeline = TextToImage::from_parts(
            tokenizer.clone(),
            text_encoder.clone(),
            unet.clone(),
            Decoder::Kl(vae.clone()),
            scheduler("DDIMScheduler"),
            &unet_config(),
            inner,
        );
        let painter = Painter {
            pipeline: &pipeline,
            method: Method::Sampler(SamplerKind::Ddim, 10),
            guidance: GUIDANCE,
        };
        let tally = painter.sheet(seed, &workshop.stage("teacher"), step)?;
        eprintln!("step {step}: ten steps of DDIM, {tally}");
        Ok(())
    };
    let schedule_of_rate = Schedule {
        steps,
        learning_rate: 1e-3,
        ema: 0.999,
        parts: PARTS,
    };
    let beginning = match from {
        Some(name) => UNet::from_model(&folder, name, Some(DType::F32), inner)?
            .train()
            .unfreeze(),
        None => unet_config().init(&device),
    };
    let unet = train(
        &workshop.stage("teacher"),
        beginning,
        schedule_of_rate,
        &device,
        loss,
        look,
    )?;
    write_component(
        &workshop.path("teacher"),
        "UNet2DConditionModel",
        &unet_config(),
        &unet,
        DType::F32,
    )
}

/// Min-SNR weight of a squared error of the noise (arXiv 2303.09556, with its γ = 5): errors
/// that hardly change a picture would otherwise outweigh those that decide what is in it.
fn weight(schedule: &NoiseSchedule, timestep: usize) -> f32 {
    const GAMMA: f64 = 5.0;
    let alpha = schedule.alpha_cumprod(timestep);
    let ratio = alpha / (1.0 - alpha);
    (ratio.min(GAMMA) / ratio) as f32
}

pub(crate) fn floats(timesteps: &[usize], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values, [timesteps.len()]), device)
}

/// Scenes to be painted: seen ones hold no held-out pair, the others do.
pub(crate) fn captions(seed: u64, count: usize, held_out: bool) -> Vec<Scene> {
    use rand::SeedableRng;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x5ce0e);
    (0..count)
        .map(|_| Scene::random(&mut rng, held_out))
        .collect()
}

/// How many pictures had what right.
pub(crate) struct Tally(Vec<Score>);

impl Tally {
    pub(crate) fn new(pictures: &[RgbImage], scenes: &[Scene]) -> Self {
        let pairs = pictures.iter().zip(scenes);
        Self(
            pairs
                .map(|(picture, scene)| score(picture, scene))
                .collect(),
        )
    }

    pub(crate) fn share(&self, right: impl Fn(Score) -> bool) -> f64 {
        self.0.iter().filter(|score| right(**score)).count() as f64 / self.0.len().max(1) as f64
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ground, color) = (self.share(|s| s.ground), self.share(|s| s.color));
        let (shape, relation) = (self.share(|s| s.shape), self.share(|s| s.relation));
        let all = self.share(Score::all);
        write!(
            f,
            "ground {ground:.3}, colour {color:.3}, shape {shape:.3}, relation {relation:.3}, all {all:.3}"
        )
    }
}

/// How a denoiser paints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painter<'a> {
    pub(crate) pipeline: &'a TextToImage,
    pub(crate) method: Method,
    pub(crate) guidance: f64,
}

impl Painter<'_> {
    /// Calls of the network for a picture.
    pub(crate) fn n_calls(&self) -> usize {
        let per_step = if self.guidance > 1.0 { 2 } else { 1 };
        self.method.n_calls() * per_step
    }

    /// Pictures of captions, 64 at a time, the noise of each 64 from a seed of its own.
    fn paint(&self, captions: &[String], first_seed: u64) -> Result<Vec<RgbImage>> {
        let mut painted = Vec::new();
        for (seed, captions) in (first_seed..).zip(captions.chunks(64)) {
            let request = Request::new(captions.iter().cloned())
                .with_method(self.method)
                .with_guidance(self.guidance);
            let shape = self.pipeline.latent_shape(captions.len());
            let noise = noise(shape, seed, self.pipeline.device());
            let painting = self.pipeline.generate(&request, &mut Given::from(noise))?;
            painted.extend(pictures(painting.images));
        }
        Ok(painted)
    }

    /// Paints scenes and scores the pictures.
    pub(crate) fn tally(&self, scenes: &[Scene]) -> Result<Tally> {
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        Ok(Tally::new(&self.paint(&captions, 0)?, scenes))
    }

    /// Paints 256 scenes, scores them and leaves them in `folder` for the eye.
    pub(crate) fn sheet(&self, seed: u64, folder: &Path, step: u64) -> Result<Tally> {
        let scenes = captions(seed, 256, false);
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        let pictures = self.paint(&captions, 0)?;
        write_png(&grid(&pictures, 16), &folder.join(format!("{step:06}.png")))?;
        Ok(Tally::new(&pictures, &scenes))
    }

    /// Mean distance of two pictures of one caption: the root of the mean squared difference of their
    /// numbers, which lie in 0…1.
    pub(crate) fn diversity(&self, scenes: &[Scene]) -> Result<f64> {
        const SEEDS: usize = 8;
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        let captions: Vec<_> = captions
            .iter()
            .flat_map(|c| vec![c.clone(); SEEDS])
            .collect();
        let pictures = self.paint(&captions, 1000)?;
        let distances = pictures.chunks(SEEDS).flat_map(|pictures| {
            (0..SEEDS).flat_map(move |a| {
                (0..a).map(move |b| distance(pictures[a].as_raw(), pictures[b].as_raw()))
            })
        });
        let distances: Vec<_> = distances.collect();
        Ok(distances.iter().sum::<f64>() / distances.len() as f64)
    }
}

fn distance(a: &[u8], b: &[u8]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt() / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_squared_noise_are_those_of_squared_pictures_up_to_five() {
        let schedule = NoiseSchedule::new(&scheduler("DDIMScheduler"));
        // β₀ = 0.00085, so the ratio of signal to noise is 1175.47 at the first timestep.
        assert!((weight(&schedule, 0) * 1175.47 - 5.0).abs() < 1e-3);
        assert_eq!(weight(&schedule, 999), 1.0);
    }
}
