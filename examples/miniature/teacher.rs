//! The teacher: a text-conditioned latent diffusion model.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_pipeline::{Decoder, Method, TextToImage};
use swiftbrush_scheduler::{NoiseSchedule, SamplerKind};
use swiftbrush_trainer::{Purpose, Random};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderKl;

use crate::data::Batch;
use crate::model::{Workshop, scheduler, unet_config, write_component};
use crate::painter::Painter;
use crate::training::{PARTS, Schedule, train};

/// Share of captions dropped for classifier-free guidance.
const DROP: f64 = 0.1;
/// Images in a micro-batch.
const BATCH: usize = 32 / PARTS as usize;
/// Guidance scale of the teacher; with 4.5 as in the paper, fewer shapes are right.
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
            .map(|caption| match random.chance(DROP) {
                true => String::new(),
                false => caption,
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
        ema: 0.999,
        ..Schedule::new(steps, PARTS)
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

/// Min-SNR weight of a squared error of the predicted noise (arXiv 2303.09556, γ = 5). Without it, errors at small
/// timesteps, which hardly change an image, outweigh those that decide its content.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_min_snr() {
        let schedule = NoiseSchedule::new(&scheduler("DDIMScheduler"));
        // β₀ = 0.00085: the signal-to-noise ratio of the first timestep is 1175.47.
        assert!((weight(&schedule, 0) * 1175.47 - 5.0).abs() < 1e-3);
        assert_eq!(weight(&schedule, 999), 1.0);
    }
}
