//! The autoencoders.

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use examples_common::pictures;
use swiftbrush_checkpoint::{named_tensors, with_tensors};
use swiftbrush_trainer::{Purpose, Random};
use swiftbrush_vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};

use crate::data::{Batch, SIDE};
use crate::painter::Tally;
use crate::scorer::Score;
use crate::training::{PARTS, Schedule, train};

/// Weight of the Kullback–Leibler divergence from the unit normal. With a twentieth of it, the posterior deviations
/// are 0.02 to 0.05, and the decoder never sees latents as imprecise as a denoiser's.
const KL_WEIGHT: f64 = 2e-3;

pub(crate) fn kl_config() -> AutoencoderKlConfig {
    AutoencoderKlConfig {
        norm_num_groups: 8,
        sample_size: SIDE,
        ..AutoencoderKlConfig::with_levels([32, 32, 64])
    }
}

/// A decoder twice as wide as the encoder: with 24 channels, at most 0.82 of the true images come through right.
pub(crate) fn tiny_config() -> AutoencoderTinyConfig {
    AutoencoderTinyConfig {
        encoder_block_out_channels: vec![24; 3],
        decoder_block_out_channels: vec![36; 3],
        block_out_channels: vec![36; 3],
        num_encoder_blocks: vec![1, 1, 2],
        num_decoder_blocks: vec![8, 3, 1],
        ..AutoencoderTinyConfig::default()
    }
}

pub(crate) fn train_autoencoder(
    folder: &Path,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderKl> {
    const BATCH: usize = 32 / PARTS as usize;
    let device = device.clone().autodiff();
    let schedule = Schedule {
        learning_rate: 1.5e-3,
        ..Schedule::new(steps, PARTS)
    };
    let loss = |model: &AutoencoderKl, step| {
        let images = Batch::new(seed, step, BATCH).images(&device);
        let posterior = model.encode(images.clone());
        let mut random = Random::new(seed, Purpose::Student, step);
        let latents = posterior.sample(random.normal(posterior.mean.dims(), &device));
        let (mean, log_variance) = (posterior.mean, posterior.log_variance);
        let divergence =
            (mean.powi_scalar(2) + log_variance.clone().exp() - 1.0 - log_variance).mean() * 0.5;
        difference(model.decode(latents), images) + divergence * KL_WEIGHT
    };
    let look = |model: &AutoencoderKl, step| {
        let device = device.clone().inner();
        let batch = Batch::new(seed ^ 1, u64::MAX, 256);
        let latents = model.encode(batch.images(&device)).mode();
        let mut random = Random::new(seed, Purpose::Student, u64::MAX);
        let error = random.normal(latents.dims(), &device) * 0.2;
        let tally = |latents| Tally::new(&pictures(model.decode(latents)), &batch.scenes);
        let (rough, tally) = (tally(latents.clone() + error), tally(latents));
        let rough = rough.share(Score::all);
        eprintln!("step {step}: encoded and decoded, {tally}; with errors of 0.2, {rough:.3}");
        Ok(())
    };
    train(
        folder,
        without_noise(kl_config().init(&device))?,
        schedule,
        &device,
        loss,
        look,
    )
}

/// Latents of ground-truth images with errors like a denoiser's, for training a decoder with a frozen encoder.
///
/// The errors are white noise; those of the teacher itself (true latents noised and denoised again) helped less.
struct Imprecise<'a> {
    kl: &'a AutoencoderKl,
    seed: u64,
    device: &'a Device,
}

impl Imprecise<'_> {
    /// Largest standard deviation of the errors.
    const ERROR: f64 = 0.5;

    /// Latents of a batch; the deviation of the errors rises linearly over it.
    fn latents(&self, batch: &Batch, step: u64) -> Tensor<4> {
        let latents = self.kl.encode(batch.images(self.device)).mode();
        let [count, ..] = latents.dims();
        let mut random = Random::new(self.seed, Purpose::Student, step);
        let deviations = Tensor::arange(0..count as i64, self.device).float();
        let deviations = deviations.reshape([count, 1, 1, 1]) * (Self::ERROR / count as f64);
        latents.clone() + random.normal(latents.dims(), self.device) * deviations
    }

    /// Shares of 1024 true images that come through right with errors of 0, 0.2 and 0.4.
    fn right(&self, decode: impl Fn(Tensor<4>) -> Tensor<4>) -> [f64; 3] {
        let batch = Batch::new(self.seed ^ 1, u64::MAX, 1024);
        let latents = self.kl.encode(batch.images(self.device)).mode();
        let mut random = Random::new(self.seed, Purpose::Student, u64::MAX);
        let errors = random.normal(latents.dims(), self.device);
        [0.0, 0.2, 0.4].map(|deviation| {
            let images = decode(latents.clone() + errors.clone() * deviation);
            Tally::new(&pictures(images), &batch.scenes).share(Score::all)
        })
    }
}

/// Trains the decoder further with the encoder frozen, as for `sd-vae-ft-mse`, on imprecise latents, so that it
/// commits to one shape for latents between two.
pub(crate) fn train_decoder(
    folder: &Path,
    kl: AutoencoderKl,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderKl> {
    const BATCH: usize = 32 / PARTS as usize;
    let imprecise = Imprecise {
        kl: &kl,
        seed,
        device,
    };
    let device = device.clone().autodiff();
    let loss = |model: &AutoencoderKl, step| {
        let batch = Batch::new(seed, step, BATCH);
        let latents = imprecise.latents(&batch, step).autodiff();
        difference(model.decode(latents), batch.images(&device))
    };
    let look = |model: &AutoencoderKl, step| {
        let right = imprecise.right(|latents| model.decode(latents));
        eprintln!("step {step}: decoded from latents with errors of 0, 0.2 and 0.4, {right:.3?}");
        Ok(())
    };
    let beginning = kl.clone().train().unfreeze();
    train(
        folder,
        beginning,
        Schedule::new(steps, PARTS),
        &device,
        loss,
        look,
    )
}

/// Initialises the posterior with a small variance. With the variance of one from random weights, the decoder sees
/// little but noise and needs thousands of steps to learn anything else.
fn without_noise(kl: AutoencoderKl) -> Result<AutoencoderKl> {
    const LOG_VARIANCE: f32 = -6.0;
    let mut tensors = named_tensors(&kl);
    let latents = kl_config().latent_channels;
    let bias = (0..2 * latents)
        .map(|i| if i < latents { 0.0 } else { LOG_VARIANCE })
        .collect::<Vec<f32>>();
    tensors.insert(
        "quant_conv.bias".to_owned(),
        TensorData::new(bias, [2 * latents]),
    );
    Ok(with_tensors(kl, &tensors, Path::new("random weights"))?)
}

/// Trains the tiny autoencoder on the latents of the full one.
pub(crate) fn train_tiny(
    folder: &Path,
    kl: &AutoencoderKl,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderTiny> {
    const BATCH: usize = 32 / PARTS as usize;
    let imprecise = Imprecise { kl, seed, device };
    let inner = device;
    let device = device.clone().autodiff();
    let schedule = Schedule {
        learning_rate: 1.5e-3,
        ..Schedule::new(steps, PARTS)
    };
    let loss = |model: &AutoencoderTiny, step| {
        let batch = Batch::new(seed, step, BATCH);
        let latents = kl.encode(batch.images(inner)).mode().autodiff();
        let imprecise = imprecise.latents(&batch, step).autodiff();
        let images = batch.images(&device);
        difference(model.decode(imprecise), images.clone())
            + (model.encode(images) - latents).powi_scalar(2).mean()
    };
    let look = |model: &AutoencoderTiny, step| {
        let right = imprecise.right(|latents| model.decode(latents));
        eprintln!(
            "step {step}: decoded by the tiny one with errors of 0, 0.2 and 0.4, {right:.3?}"
        );
        Ok(())
    };
    let beginning = tiny_config().init(&device);
    train(folder, beginning, schedule, &device, loss, look)
}

/// Trains the decoder of the tiny autoencoder further on imprecise latents, like [`train_decoder`] for the full one.
pub(crate) fn train_tiny_decoder(
    folder: &Path,
    kl: &AutoencoderKl,
    tiny: &AutoencoderTiny,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderTiny> {
    const BATCH: usize = 32 / PARTS as usize;
    let imprecise = Imprecise { kl, seed, device };
    let device = device.clone().autodiff();
    let schedule = Schedule {
        learning_rate: 1.5e-3,
        ..Schedule::new(steps, PARTS)
    };
    let loss = |model: &AutoencoderTiny, step| {
        let batch = Batch::new(seed, step, BATCH);
        let latents = imprecise.latents(&batch, step).autodiff();
        difference(model.decode(latents), batch.images(&device))
    };
    let look = |model: &AutoencoderTiny, step| {
        let right = imprecise.right(|latents| model.decode(latents));
        eprintln!(
            "step {step}: decoded by the tiny one with errors of 0, 0.2 and 0.4, {right:.3?}"
        );
        Ok(())
    };
    let beginning = tiny.clone().train().unfreeze();
    train(folder, beginning, schedule, &device, loss, look)
}

/// Mean absolute and squared difference, and the absolute difference of the gradients along both axes
/// (arXiv 1511.05440), without which the points of small stars have too few pixels to matter.
fn difference(found: Tensor<4>, expected: Tensor<4>) -> Tensor<1> {
    let difference = found - expected;
    let slopes = |axis: usize| {
        let length = difference.dims()[axis] - 1;
        let (low, high) = (
            difference.clone().narrow(axis, 0, length),
            difference.clone().narrow(axis, 1, length),
        );
        (high - low).abs().mean()
    };
    difference.clone().abs().mean()
        + difference.clone().powi_scalar(2).mean()
        + slopes(2)
        + slopes(3)
}

/// Factor that gives the latents of 1024 images unit variance.
pub(crate) fn scaling_factor(kl: &AutoencoderKl, seed: u64, device: &Device) -> f64 {
    let latents = kl
        .encode(Batch::new(seed, u64::MAX - 1, 1024).images(device))
        .mode();
    let variance = latents.clone().powi_scalar(2).mean() - latents.mean().powi_scalar(2);
    1.0 / f64::from(variance.into_data().iter::<f32>().sum::<f32>()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_with_its_edges() {
        let device = Device::default();
        let expected = Tensor::zeros([1, 1, 2, 2], &device);
        let value = |found: [f32; 4]| -> f32 {
            let found = Tensor::<1>::from_data(found, &device).reshape([1, 1, 2, 2]);
            let loss = difference(found, expected.clone()).into_data();
            loss.iter::<f32>().sum()
        };
        // ½ + ¼ and no slopes; then ¼ + ¼, and half of the slopes along either axis.
        assert_eq!(value([0.5; 4]), 0.75);
        assert_eq!(value([1.0, 0.0, 0.0, 0.0]), 1.5);
    }
}
