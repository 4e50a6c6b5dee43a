//! The networks that are there before any diffusion: autoencoders and CLIP.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use swiftbrush_checkpoint::{named_tensors, with_tensors};
use swiftbrush_clip::{
    Clip, ClipConfig, HiddenAct, TextConfig, Tokenizer, VisionConfig, preprocess,
};
use swiftbrush_trainer::{Purpose, Random};
use swiftbrush_vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};

use crate::data::{Batch, LENGTH, SIDE};
use crate::scorer::Score;
use crate::teacher::Tally;
use crate::training::{PARTS, Schedule, train};
use crate::world::{Layout, Object, SHAPES, Scene};
use examples_common::pictures;

/// Weight of the pull towards a unit normal. Twenty times less leaves the posterior deviations of
/// 0.02 to 0.05, and a decoder that has never seen latents as imprecise as a denoiser's.
const KL_WEIGHT: f64 = 2e-3;

pub(crate) fn kl_config() -> AutoencoderKlConfig {
    AutoencoderKlConfig {
        norm_num_groups: 8,
        sample_size: SIDE,
        ..AutoencoderKlConfig::with_levels([32, 32, 64])
    }
}

pub(crate) fn tiny_config() -> AutoencoderTinyConfig {
    AutoencoderTinyConfig {
        encoder_block_out_channels: vec![24; 3],
        decoder_block_out_channels: vec![24; 3],
        block_out_channels: vec![24; 3],
        num_encoder_blocks: vec![1, 1, 2],
        num_decoder_blocks: vec![2, 2, 1],
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
        steps,
        learning_rate: 1.5e-3,
        ema: 0.99,
        parts: PARTS,
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
        eprintln!("step {step}: coded and decoded, {tally}; with errors of 0.2, {rough:.3}");
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

/// Trains the decoder on beside the encoder as it is, as those of `sd-vae-ft-mse` were: on latents as
/// imprecise as a denoiser's, so that it paints one shape where they lie between two.
pub(crate) fn train_decoder(
    folder: &Path,
    kl: AutoencoderKl,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderKl> {
    const BATCH: usize = 32 / PARTS as usize;
    /// Deviation of the errors, at most. Errors of the teacher itself, made by noising true latents and
    /// taking the noise off again, helped less.
    const ERROR: f64 = 0.5;
    let inner = device;
    let device = device.clone().autodiff();
    let schedule = Schedule {
        steps,
        learning_rate: 1e-3,
        ema: 0.99,
        parts: PARTS,
    };
    let loss = |model: &AutoencoderKl, step| {
        let batch = Batch::new(seed, step, BATCH);
        let latents = kl.encode(batch.images(inner)).mode();
        let mut random = Random::new(seed, Purpose::Student, step);
        let deviations = Tensor::arange(0..BATCH as i64, inner).float() * (ERROR / BATCH as f64);
        let deviations = deviations.reshape([BATCH, 1, 1, 1]);
        let errors = random.normal(latents.dims(), inner) * deviations;
        let images = batch.images(&device);
        difference(model.decode((latents + errors).autodiff()), images)
    };
    let look = |model: &AutoencoderKl, step| {
        let batch = Batch::new(seed ^ 1, u64::MAX, 256);
        let latents = kl.encode(batch.images(inner)).mode();
        let mut random = Random::new(seed, Purpose::Student, u64::MAX);
        let errors = random.normal(latents.dims(), inner);
        let right = [0.0, 0.2, 0.4].map(|deviation| {
            let images = model.decode(latents.clone() + errors.clone() * deviation);
            Tally::new(&pictures(images), &batch.scenes).share(Score::all)
        });
        eprintln!("step {step}: decoded from latents with errors of 0, 0.2 and 0.4, {right:.3?}");
        Ok(())
    };
    let beginning = kl.clone().train().unfreeze();
    train(folder, beginning, schedule, &device, loss, look)
}

/// Makes the encoder sure of itself to begin with: with a variance of one, which random weights give,
/// the decoder sees hardly anything but noise and takes thousands of steps to notice the rest.
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

/// The tiny autoencoder learns the latents of the other.
pub(crate) fn train_tiny(
    folder: &Path,
    kl: &AutoencoderKl,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<AutoencoderTiny> {
    const BATCH: usize = 32 / PARTS as usize;
    let inner = device;
    let device = device.clone().autodiff();
    let schedule = Schedule {
        steps,
        learning_rate: 1.5e-3,
        ema: 0.99,
        parts: PARTS,
    };
    let loss = |model: &AutoencoderTiny, step| {
        let batch = Batch::new(seed, step, BATCH);
        let latents = kl.encode(batch.images(inner)).mode().autodiff();
        let images = batch.images(&device);
        difference(model.decode(latents.clone()), images.clone())
            + (model.encode(images) - latents).powi_scalar(2).mean()
    };
    let look = |model: &AutoencoderTiny, step| {
        let batch = Batch::new(seed ^ 1, u64::MAX, 256);
        let latents = kl.encode(batch.images(inner)).mode();
        let tally = Tally::new(&pictures(model.decode(latents)), &batch.scenes);
        eprintln!("step {step}: coded and decoded by the tiny one, {tally}");
        Ok(())
    };
    train(
        folder,
        tiny_config().init(&device),
        schedule,
        &device,
        loss,
        look,
    )
}

/// Mean absolute and squared difference, and the absolute difference of the slopes between neighbouring
/// pixels (arXiv 1511.05440): without it the points of small stars are too few pixels to matter.
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

/// What the latents of a thousand pictures have to be multiplied by to have unit variance.
pub(crate) fn scaling_factor(kl: &AutoencoderKl, seed: u64, device: &Device) -> f64 {
    let latents = kl
        .encode(Batch::new(seed, u64::MAX - 1, 1024).images(device))
        .mode();
    let variance = latents.clone().powi_scalar(2).mean() - latents.mean().powi_scalar(2);
    1.0 / f64::from(variance.into_data().iter::<f32>().sum::<f32>()).sqrt()
}

pub(crate) fn clip_config(n_tokens: usize) -> ClipConfig {
    let (hidden_size, intermediate_size, heads, layers) = (64, 256, 2, 3);
    ClipConfig {
        text_config: TextConfig {
            vocab_size: n_tokens,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: LENGTH,
            hidden_act: HiddenAct::Gelu,
            projection_dim: 64,
            eos_token_id: n_tokens as i64 - 1,
            ..TextConfig::default()
        },
        vision_config: VisionConfig {
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            image_size: SIDE,
            patch_size: 4,
            hidden_act: HiddenAct::Gelu,
            ..VisionConfig::default()
        },
        projection_dim: 64,
        ..ClipConfig::default()
    }
}

/// Contrastive training (arXiv 2103.00020, figure 3). Every caption brings two more that are nearly
/// right, or bags of words and blobs of colour would do.
pub(crate) fn train_clip(
    folder: &Path,
    tokenizer: &Tokenizer,
    n_tokens: usize,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<Clip> {
    const BATCH: usize = 96;
    ensure!(
        tokenizer.length() == LENGTH,
        "the tokenizer is of another miniature"
    );
    let device = device.clone().autodiff();
    let schedule = Schedule {
        steps,
        learning_rate: 1e-3,
        ema: 0.99,
        parts: 1,
    };
    let loss = |model: &Clip, step| {
        let batch = Batch::new(seed, step, BATCH);
        let captions: Vec<_> = [batch.captions(), exchanged(&batch), reshaped(&batch)].concat();
        let texts = model.embed_texts(tokenizer.encode_batch(&captions, &device));
        let images = model.embed_images(preprocess(batch.images(&device), SIDE));
        let scale = model
            .logit_scale
            .val()
            .clamp_max(100f32.ln())
            .exp()
            .unsqueeze::<2>();
        let logits = images.matmul(texts.transpose()) * scale;
        // A caption that came out the same is no negative.
        let same = captions[..BATCH].iter().enumerate().flat_map(|(i, own)| {
            let others = captions.iter().enumerate();
            others.map(move |(j, other)| if i != j && other == own { -1e4 } else { 0.0 })
        });
        let same = TensorData::new(same.collect::<Vec<f32>>(), [BATCH, captions.len()]);
        let logits = logits + Tensor::<2>::from_data(same, &device);
        let by_image = log_softmax(logits.clone(), 1);
        let by_text = log_softmax(logits.narrow(1, 0, BATCH), 0);
        let eye = Tensor::<2>::eye(BATCH, &device);
        let by_image = (by_image.narrow(1, 0, BATCH) * eye.clone()).sum();
        (by_image + (by_text * eye).sum()) / (-2.0 * BATCH as f64)
    };
    let look = |model: &Clip, step| {
        let inner = device.clone().inner();
        let batch = Batch::new(seed ^ 1, u64::MAX, 256);
        let images = model.embed_images(preprocess(batch.images(&inner), SIDE));
        let cosines = |captions: Vec<String>| -> Vec<f32> {
            let texts = model.embed_texts(tokenizer.encode_batch(&captions, &inner));
            let cosines = swiftbrush_clip::cosine_similarity(images.clone(), texts);
            cosines.into_data().iter().collect()
        };
        let [own, swapped, other] =
            [batch.captions(), exchanged(&batch), reshaped(&batch)].map(cosines);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let told = own.iter().zip(&other).filter(|(own, other)| own > other);
        let (told, count) = (told.count(), own.len());
        let (own, swapped, other) = (mean(&own), mean(&swapped), mean(&other));
        eprintln!(
            "step {step}: cosine with its caption {own:.3}, exchanged {swapped:.3}, with another shape {other:.3}; {told} of {count} told from the last"
        );
        Ok(())
    };
    train(
        folder,
        clip_config(n_tokens).init(&device),
        schedule,
        &device,
        loss,
        look,
    )
}

/// Captions with the two colours exchanged where they differ, else the two shapes.
fn exchanged(batch: &Batch) -> Vec<String> {
    let exchange = |[mut a, mut b]: [Object; 2]| {
        if a.color == b.color {
            std::mem::swap(&mut a.shape, &mut b.shape);
        } else {
            std::mem::swap(&mut a.color, &mut b.color);
        }
        [a, b]
    };
    let scenes = batch.scenes.iter();
    scenes.map(|scene| altered(*scene, exchange)).collect()
}

/// Captions with the shape of one object changed.
fn reshaped(batch: &Batch) -> Vec<String> {
    let reshape = |(index, scene): (usize, &Scene)| {
        let which = index % scene.objects().len();
        let by = 1 + index / 2 % (SHAPES.len() - 1);
        altered(*scene, |mut objects| {
            objects[which].shape = (objects[which].shape + by) % SHAPES.len();
            objects
        })
    };
    batch.scenes.iter().enumerate().map(reshape).collect()
}

/// The caption of a scene with other objects, or its own where that would hold a held-out pair.
fn altered(scene: Scene, alter: impl Fn([Object; 2]) -> [Object; 2]) -> String {
    let layout = match scene.layout {
        Layout::One(object) => Layout::One(alter([object; 2])[0]),
        Layout::Above(a, b) => {
            let [a, b] = alter([a, b]);
            Layout::Above(a, b)
        }
        Layout::LeftOf(a, b) => {
            let [a, b] = alter([a, b]);
            Layout::LeftOf(a, b)
        }
    };
    let other = Scene { layout, ..scene };
    let is_held_out = other.objects().into_iter().any(Object::is_held_out);
    (if is_held_out { scene } else { other }).caption()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::HELD_OUT;

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

    #[test]
    fn altered_captions_hold_no_held_out_pair() {
        let batch = Batch::new(3, 0, 400);
        let held_out = HELD_OUT.map(|(color, shape)| format!("{color} {shape}"));
        for captions in [exchanged(&batch), reshaped(&batch)] {
            let own = batch.captions();
            let others = captions
                .iter()
                .zip(&own)
                .filter(|(other, own)| other != own);
            assert!(others.count() > 200, "most captions must change");
            let known = |caption: &String| !held_out.iter().any(|pair| caption.contains(pair));
            assert!(captions.iter().all(known));
        }
    }
}
