//! The networks that are there before any diffusion: autoencoders and CLIP.

use std::path::Path;

use anyhow::{Result, ensure};
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
use crate::shared::pictures;
use crate::teacher::Tally;
use crate::training::{PARTS, Schedule, train};
use crate::world::{Layout, Object, Scene};

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

/// Contrastive training (arXiv 2103.00020, figure 3). Every caption of two objects brings one more
/// with their colours or places exchanged, or bags of words would do.
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
        let mut captions = batch.captions();
        captions.extend(batch.scenes.iter().map(|scene| exchanged(scene).caption()));
        let texts = model.embed_texts(tokenizer.encode_batch(&captions, &device));
        let images = model.embed_images(preprocess(batch.images(&device), SIDE));
        let scale = model
            .logit_scale
            .val()
            .clamp_max(100f32.ln())
            .exp()
            .unsqueeze::<2>();
        let logits = images.matmul(texts.transpose()) * scale;
        // Exchanged captions of one object are the captions themselves: no negatives.
        let same: Vec<f32> = (0..BATCH)
            .flat_map(|i| {
                captions
                    .iter()
                    .enumerate()
                    .map(move |(j, caption)| (i, j, caption))
            })
            .map(|(i, j, caption)| {
                if i != j && *caption == captions[i] {
                    -1e4
                } else {
                    0.0
                }
            })
            .collect();
        let same = TensorData::new(same, [BATCH, 2 * BATCH]);
        let logits = logits + Tensor::<2>::from_data(same, &device);
        let by_image = log_softmax(logits.clone(), 1);
        let by_text = log_softmax(logits.narrow(1, 0, BATCH), 0);
        let eye = Tensor::<2>::eye(BATCH, &device);
        let by_image = (by_image.narrow(1, 0, BATCH) * eye.clone()).sum();
        (by_image + (by_text * eye).sum()) / (-2.0 * BATCH as f64)
    };
    let look = |model: &Clip, step| {
        let inner = device.clone().inner();
        let batch = Batch::new(seed ^ 1, u64::MAX, 128);
        let others: Vec<_> = batch
            .scenes
            .iter()
            .map(|scene| exchanged(scene).caption())
            .collect();
        let images = model.embed_images(preprocess(batch.images(&inner), SIDE));
        let cosine = |captions: &[String]| {
            let texts = model.embed_texts(tokenizer.encode_batch(captions, &inner));
            swiftbrush_clip::cosine_similarity(images.clone(), texts)
        };
        let (own, other) = (cosine(&batch.captions()), cosine(&others));
        let mean = |x: Tensor<1>| x.mean().into_data().iter::<f32>().sum::<f32>();
        eprintln!(
            "step {step}: cosine with its caption {:.3}, exchanged {:.3}",
            mean(own),
            mean(other)
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

/// The scene with its two colours exchanged where they differ, else its two shapes.
fn exchanged(scene: &Scene) -> Scene {
    let swap = |a: Object, b: Object| {
        if a.color == b.color {
            (
                Object {
                    shape: b.shape,
                    ..a
                },
                Object {
                    shape: a.shape,
                    ..b
                },
            )
        } else {
            (
                Object {
                    color: b.color,
                    ..a
                },
                Object {
                    color: a.color,
                    ..b
                },
            )
        }
    };
    let layout = match scene.layout {
        Layout::One(object) => Layout::One(object),
        Layout::Above(a, b) => {
            let (a, b) = swap(a, b);
            Layout::Above(a, b)
        }
        Layout::LeftOf(a, b) => {
            let (a, b) = swap(a, b);
            Layout::LeftOf(a, b)
        }
    };
    Scene { layout, ..*scene }
}
