//! The clamped CLIP loss of the students.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use examples_common::{grid, write_png};
use swiftbrush_checkpoint::sha256;
use swiftbrush_clamped_clip_loss::clamped_loss;
use swiftbrush_clip::{Clip, Tokenizer, preprocess};
use swiftbrush_pipeline::Method;
use swiftbrush_trainer::losses::with_gradient;
use swiftbrush_trainer::{ClipRecipe, Reward};
use swiftbrush_vae::AutoencoderKl;

use crate::contrastive::reshaped;
use crate::data::{SIDE, images};
use crate::model::Workshop;
use crate::painter::{Painter, captions};
use crate::scorer::score;
use crate::world::{HeldOut, Scene};

/// The clamped CLIP loss (arXiv 2408.14176, §4.3) through the full decoder.
///
/// The paper's passes through a tiny decoder, which saves memory. The miniature's gets shapes wrong that the full one gets right,
/// and CLIP would blame the student for them; on images of 32×32 pixels it takes as many operations, too. The gradient of each
/// image is clipped.
#[derive(Debug)]
pub(crate) struct Judge {
    clip: Clip,
    decoder: AutoencoderKl,
    tokenizer: Tokenizer,
    recipe: ClipRecipe,
    hash: String,
    device: Device,
}

/// Maximum norm of the gradient of an image's cosine with respect to its latents. Half of the wrong images are below it; those near the
/// boundary between two shapes have up to ten times as much, and would decide the direction of a whole step.
const LARGEST_NORM: f64 = 0.05;

/// Clips the gradient of each image to the norm `most`.
fn clipped(grad: Tensor<4>, most: f64) -> Tensor<4> {
    let squares = grad.clone().powi_scalar(2);
    let norms = squares.sum_dim(1).sum_dim(2).sum_dim(3).sqrt();
    grad * (norms.clamp_min(most).recip() * most)
}

impl Judge {
    /// Loads `clip` and `vae` of the model folder.
    pub(crate) fn load(workshop: &Workshop, recipe: ClipRecipe) -> Result<Self> {
        let (folder, device) = (workshop.model()?, &workshop.device);
        let f32 = Some(DType::F32);
        let files = [
            ("clip", "model.safetensors"),
            ("vae", "diffusion_pytorch_model.safetensors"),
        ];
        let hashes = files.map(|(component, file)| sha256(workshop.path(component).join(file)));
        let [clip, decoder] = hashes;
        let hash = format!(
            "{} {} {} {}",
            clip?, decoder?, recipe.weight, recipe.threshold
        );
        Ok(Self {
            clip: Clip::from_model(&folder, "clip", f32, device)?,
            decoder: AutoencoderKl::from_model(&folder, "vae", f32, device)?,
            tokenizer: Tokenizer::from_model(&folder, "tokenizer")?,
            recipe,
            hash,
            device: device.clone(),
        })
    }
}

impl Reward for Judge {
    fn name(&self) -> &str {
        "clip"
    }

    /// Constant, as in the paper's Table 6: while it decays, distillation takes back what the loss has corrected.
    fn weight(&self, _step: u64, _steps: u64) -> f64 {
        self.recipe.weight
    }

    fn loss(&self, latents: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.device);
        let texts = self.clip.embed_texts(tokens).autodiff();
        let clip = self.clip.clone().freeze().train();
        let leaf = latents.clone().inner().autodiff().require_grad();
        let images = self.decoder.clone().freeze().train().decode(leaf.clone());
        let images = clip.embed_images(preprocess(images, clip.image_size()));
        let loss = clamped_loss((images * texts).sum_dim(1), self.recipe.threshold);
        let grad = leaf.grad_remove(&mut loss.clone().backward());
        let grad = grad.expect("the loss depends on the latents");
        let most = LARGEST_NORM / prompts.len() as f64;
        with_gradient(latents, loss.inner(), clipped(grad, most))
    }

    fn hash(&self) -> String {
        self.hash.clone()
    }
}

/// How CLIP judges the images of a student, beside the scorer.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    /// Cosine with the caption.
    own: f64,
    /// The largest cosine with the caption of another shape.
    other: f64,
    is_right: bool,
}

/// Prints how CLIP judges one-step images of a denoiser: the cosines of those that the scorer finds right and wrong, and the share
/// of the latter that the loss could correct. Writes a sheet of those that it could not.
pub(crate) fn verdicts(
    workshop: &Workshop,
    name: &str,
    class: HeldOut,
    count: usize,
    threshold: f64,
) -> Result<()> {
    const BATCH: usize = 128;
    let judge = Judge::load(
        workshop,
        ClipRecipe {
            weight: 1.0,
            threshold,
        },
    )?;
    let pipeline = workshop.pipeline(name)?;
    let painter = Painter {
        pipeline: &pipeline,
        method: Method::OneStep,
        guidance: 1.0,
    };
    let scenes = captions(workshop.seed ^ 12, count, class);
    let own: Vec<_> = scenes.iter().map(Scene::caption).collect();
    let pictures = painter.paint(&own, 0)?;
    let mut verdicts = Vec::new();
    for (scenes, pictures) in scenes.chunks(BATCH).zip(pictures.chunks(BATCH)) {
        let texts = scenes.iter().flat_map(|scene| {
            let objects = 0..scene.objects().len();
            let others = objects.flat_map(|which| reshaped(scene, which));
            let scenes = std::iter::once(*scene).chain(others);
            scenes.map(|scene| scene.caption()).collect::<Vec<_>>()
        });
        let texts: Vec<_> = texts.collect();
        let texts = judge.tokenizer.encode_batch(&texts, &judge.device);
        let texts = judge.clip.embed_texts(texts);
        let pixels: Vec<_> = pictures.iter().map(|picture| picture.to_vec()).collect();
        let images = preprocess(images(&pixels, &judge.device), SIDE);
        let images = judge.clip.embed_images(images);
        let cosines = images.matmul(texts.transpose()).into_data();
        let cosines: Vec<f64> = cosines.iter().collect();
        let row = cosines.len() / scenes.len();
        let mut first = 0;
        for (index, (scene, picture)) in scenes.iter().zip(pictures).enumerate() {
            let n_captions = 1 + 5 * scene.objects().len();
            let found = &cosines[index * row + first..][..n_captions];
            first += n_captions;
            verdicts.push(Verdict {
                own: found[0],
                other: found[1..].iter().copied().fold(f64::MIN, f64::max),
                is_right: score(picture, scene).all(),
            });
        }
    }
    for is_right in [true, false] {
        let found = verdicts
            .iter()
            .filter(|verdict| verdict.is_right == is_right);
        let found: Vec<_> = found.collect();
        let share = |holds: &dyn Fn(&Verdict) -> bool| {
            found.iter().filter(|verdict| holds(verdict)).count() as f64 / found.len().max(1) as f64
        };
        let mean = found.iter().map(|verdict| verdict.own).sum::<f64>() / found.len().max(1) as f64;
        println!(
            "{} {}: mean cosine {mean:.3}, below the threshold {:.3}, another shape nearer {:.3}",
            found.len(),
            if is_right { "right" } else { "wrong" },
            share(&|verdict| verdict.own < threshold),
            share(&|verdict| verdict.own < verdict.other),
        );
    }
    let missed = verdicts.iter().zip(&pictures);
    let missed = missed.filter(|(verdict, _)| !verdict.is_right && verdict.own >= threshold);
    let missed: Vec<_> = missed
        .map(|(_, picture)| picture.clone())
        .take(64)
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    write_png(
        &grid(&missed, 8),
        &workshop.root.join(format!("{name}-missed-{class:?}.png")),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::Batch;

    fn judge(threshold: f64) -> Judge {
        let workshop = Workshop {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature"),
            device: Device::flex(),
            seed: 0,
        };
        let weight = 2.0;
        Judge::load(&workshop, ClipRecipe { weight, threshold }).unwrap()
    }

    #[test]
    fn the_gradient_is_clipped_by_image_and_lowers_the_loss_until_the_threshold() {
        const COUNT: usize = 4;
        let judge_all = judge(1.0);
        let batch = Batch::new(5, 0, COUNT);
        let latents = judge_all
            .decoder
            .encode(batch.images(&Device::flex()))
            .mode();
        let mut wrong = batch.captions();
        wrong.rotate_left(1);
        let gradient = |judge: &Judge, latents: &Tensor<4>| {
            let leaf = latents.clone().autodiff().require_grad();
            let loss = judge.loss(leaf.clone(), &wrong);
            let grad = leaf.grad_remove(&mut loss.clone().backward()).unwrap();
            (loss.into_data().iter::<f64>().sum::<f64>(), grad)
        };
        let (before, grad) = gradient(&judge_all, &latents);
        let most = LARGEST_NORM / COUNT as f64;
        let norms = grad.clone().powi_scalar(2).reshape([COUNT as i32, -1]);
        let norms = norms.sum_dim(1).sqrt().into_data();
        assert!(
            norms
                .iter::<f64>()
                .all(|norm| norm > 0.0 && norm < most * 1.001),
            "{norms:?}, at most {most}"
        );
        let (after, _) = gradient(&judge_all, &(latents.clone() - grad * 20.0));
        assert!(after < before, "{after} after {before}");
        let (loss, grad) = gradient(&judge(-1.0), &latents);
        assert_eq!((loss, grad.abs().max().into_scalar::<f32>()), (0.0, 0.0));
    }

    #[test]
    fn the_weight_is_constant_and_settings_are_told_apart() {
        let [first, other] = [0.9, 0.8].map(judge);
        assert_eq!([0, 5, 9].map(|step| first.weight(step, 10)), [2.0; 3]);
        assert_ne!(first.hash(), other.hash());
    }

    #[test]
    fn larger_gradients_keep_their_direction() {
        let grad = Tensor::<4>::from_data([[[[3.0, 4.0]]], [[[0.3, 0.4]]]], &Device::flex());
        let expected = Tensor::<4>::from_data([[[[0.6, 0.8]]], [[[0.3, 0.4]]]], &Device::flex());
        clipped(grad, 1.0).into_data().assert_approx_eq::<f32>(
            &expected.into_data(),
            burn::tensor::Tolerance::absolute(1e-6),
        );
    }
}
