//! The losses of a step as pure functions of their inputs.
//!
//! Denoisers compute in the element type of the context, the CLIP loss in that of its latents;
//! network outputs are cast to f32 before anything else is computed from them.

use std::collections::BTreeMap;

use burn::tensor::{FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_clamped_clip_loss::clamped_loss;
use swiftbrush_clip::{Clip, preprocess};
use swiftbrush_kernels::input_grad;
use swiftbrush_pipeline::one_step_with;
use swiftbrush_scheduler::{NoiseSchedule, guide};
use swiftbrush_vae::AutoencoderTiny;
use swiftbrush_vsd_loss::{denoising_loss, normalized_vsd_gradient, vsd_gradient, vsd_loss};

use crate::Denoiser;

/// The losses of a step by name: tensors during a step, numbers in its report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Losses<T> {
    /// Variational score distillation, ½·mean(g²), which says little about progress.
    pub distillation: T,
    /// The rewards by name, and `pairs` and `denoise` if the recipe has them; unweighted.
    #[serde(flatten)]
    pub rewards: BTreeMap<String, T>,
    /// The fake teacher's denoising loss.
    pub fake: T,
}

impl<T> Losses<T> {
    /// Applies a function to each loss.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Losses<U> {
        Losses {
            distillation: f(self.distillation),
            rewards: self
                .rewards
                .into_iter()
                .map(|(name, loss)| (name, f(loss)))
                .collect(),
            fake: f(self.fake),
        }
    }

    /// Combines each loss with its counterpart.
    ///
    /// # Panics
    ///
    /// If the rewards differ.
    #[track_caller]
    pub fn zip<U, V>(self, other: Losses<U>, mut f: impl FnMut(T, U) -> V) -> Losses<V> {
        assert!(
            self.rewards.keys().eq(other.rewards.keys()),
            "the rewards differ"
        );
        Losses {
            distillation: f(self.distillation, other.distillation),
            rewards: self
                .rewards
                .into_iter()
                .zip(other.rewards.into_values())
                .map(|((name, a), b)| (name, f(a, b)))
                .collect(),
            fake: f(self.fake, other.fake),
        }
    }

    /// Names and values, in the order of [`map`](Self::map).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let rewards = self
            .rewards
            .iter()
            .map(|(name, loss)| (name.as_str(), loss));
        [("distillation", &self.distillation)]
            .into_iter()
            .chain(rewards)
            .chain([("fake", &self.fake)])
    }
}

/// Random inputs of the student's loss.
#[derive(Clone, Debug)]
pub struct StudentDraw {
    /// Input of the student, `[batch, channels, height, width]`, unit normal.
    pub noise: Tensor<4>,
    /// Timesteps at which the teachers are compared, one per sample.
    pub timesteps: Vec<usize>,
    /// Noise added to the student's latents for the comparison, shaped like `noise`.
    pub renoise: Tensor<4>,
}

/// Random inputs of the fake teacher's loss.
#[derive(Clone, Debug)]
pub struct FakeDraw {
    /// Timesteps, one per sample.
    pub timesteps: Vec<usize>,
    /// Noise to predict, `[batch, channels, height, width]`, unit normal.
    pub noise: Tensor<4>,
}

/// The student's latents for a batch, on its graph; shapes as in [`one_step`](swiftbrush_pipeline::one_step).
pub fn student_latents(
    student: &dyn Denoiser,
    schedule: &NoiseSchedule,
    draw: &StudentDraw,
    context: Tensor<3>,
) -> Tensor<4> {
    generated(student, schedule, draw.noise.clone(), context)
}

pub(crate) fn generated(
    student: &dyn Denoiser,
    schedule: &NoiseSchedule,
    noise: Tensor<4>,
    context: Tensor<3>,
) -> Tensor<4> {
    let (dtype, context) = (context.dtype(), context.autodiff());
    one_step_with(
        |noisy, timesteps| student.predict(noisy, timesteps, context),
        schedule,
        noise.autodiff(),
        dtype,
    )
}

/// A loss between the student's latents and known ones, averaged over all elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regression {
    /// The squared error.
    L2,
    /// Half the squared error up to this distance, and linear beyond it, as PyTorch's `huber_loss`.
    Huber(f64),
}

impl Regression {
    /// The loss of an error.
    ///
    /// # Shapes
    ///
    /// - error: any
    /// - returns: `[1]`
    pub fn of(self, error: Tensor<4>) -> Tensor<1> {
        match self {
            Self::L2 => error.powi_scalar(2).mean(),
            Self::Huber(delta) => {
                // With c = min(|e|, δ): c²/2 + δ·(|e| − c).
                let distance = error.abs();
                let near = distance.clone().clamp_max(delta);
                let far = (distance - near.clone()) * delta;
                (near.powi_scalar(2) * 0.5 + far).mean()
            }
        }
    }
}

/// The student's regression to known latents: those that a teacher generates from the same noise (DMD, arXiv 2311.18828, §4.2),
/// or real ones from their [`denoising_input`].
///
/// # Shapes
///
/// - input, target: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`
/// - returns: `[1]`, on the student's graph
pub fn regression_loss(
    student: &dyn Denoiser,
    schedule: &NoiseSchedule,
    input: Tensor<4>,
    target: Tensor<4>,
    context: Tensor<3>,
    loss: Regression,
) -> Tensor<1> {
    loss.of(generated(student, schedule, input, context) - target.autodiff())
}

/// Latents at the last timestep, the student's input: α_T·x₀ + σ_T·ε. With α_T = 0.068, little of x₀ is left.
///
/// # Shapes
///
/// - latents, noise and result: `[batch, channels, height, width]`
pub fn denoising_input(
    schedule: &NoiseSchedule,
    latents: Tensor<4>,
    noise: Tensor<4>,
) -> Tensor<4> {
    let timesteps = vec![schedule.last(); latents.dims()[0]];
    schedule.add_noise(latents, noise, &timesteps)
}

/// Scales of classifier-free guidance, one per sample; 1 is no guidance.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// Scales of the teacher.
    pub teacher: Vec<f64>,
    /// Scales of the fake teacher.
    pub fake: Vec<f64>,
}

impl Guidance {
    /// Creates the same scales for every sample of a batch.
    pub fn constant(teacher: f64, fake: f64, batch: usize) -> Self {
        Self {
            teacher: vec![teacher; batch],
            fake: vec![fake; batch],
        }
    }
}

/// Weight of the difference between the two teachers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientWeight {
    /// σ_t² times the difference of the noise, as in SwiftBrush.
    #[default]
    Variance,
    /// The difference of the denoised estimates over their distance from the sample, as in DMD
    /// ([`normalized_vsd_gradient`]).
    Normalized,
}

/// The two teachers and the schedule of both.
#[derive(Clone, Copy, Debug)]
pub struct Teachers<'a> {
    /// The frozen multi-step model.
    pub teacher: &'a dyn Denoiser,
    /// The fake teacher.
    pub fake: &'a dyn Denoiser,
    /// The schedule of both, which also converts the output of networks that predict velocity or x₀.
    pub schedule: &'a NoiseSchedule,
}

/// The direction of variational score distillation: the weighted difference between the predictions
/// of the two teachers at the student's latents (arXiv 2408.14176, §3).
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`, null_context: `[1, length, width]`
/// - returns: the shape of the latents
///
/// # Panics
///
/// If the shapes, or the lengths of timesteps and guidance, do not agree.
#[track_caller]
pub fn distillation_gradient(
    teachers: Teachers<'_>,
    guidance: &Guidance,
    weight: GradientWeight,
    latents: Tensor<4>,
    draw: &StudentDraw,
    context: Tensor<3>,
    null_context: Tensor<3>,
) -> Tensor<4> {
    let (schedule, timesteps) = (teachers.schedule, &draw.timesteps);
    let noisy = schedule.add_noise(latents.clone(), draw.renoise.clone(), timesteps);
    let null_context = null_context.expand(context.dims());
    let guided = |network: &dyn Denoiser, scales: &[f64]| {
        let predict =
            |context| predicted_noise(network, schedule, noisy.clone(), timesteps, context);
        let conditional = predict(context.clone());
        if scales.iter().all(|&scale| scale == 1.0) {
            return conditional;
        }
        guide_each(conditional, predict(null_context.clone()), scales)
    };
    let teacher = guided(teachers.teacher, &guidance.teacher);
    let fake = guided(teachers.fake, &guidance.fake);
    match weight {
        GradientWeight::Variance => {
            let (_, sigma) = schedule.alpha_sigma(timesteps, &noisy.device());
            vsd_gradient(teacher, fake, sigma.powi_scalar(2))
        }
        GradientWeight::Normalized => {
            let clean = |noise| schedule.predicted_latents(noisy.clone(), noise, timesteps);
            normalized_vsd_gradient(latents, clean(teacher), clean(fake))
        }
    }
}

/// Classifier-free guidance with a scale for each sample.
fn guide_each(conditional: Tensor<4>, unconditional: Tensor<4>, scales: &[f64]) -> Tensor<4> {
    assert_eq!(scales.len(), conditional.dims()[0], "one scale per sample");
    if scales.iter().all(|&scale| scale == scales[0]) {
        return guide(conditional, unconditional, scales[0]);
    }
    let values: Vec<f32> = scales.iter().map(|&scale| scale as f32).collect();
    let values = TensorData::new(values, [scales.len(), 1, 1, 1]);
    let scales = Tensor::from_data(values, &conditional.device());
    unconditional.clone() + (conditional - unconditional) * scales
}

/// The student's variational score distillation loss; see [`vsd_loss`].
pub fn distillation_loss(latents: Tensor<4>, gradient: Tensor<4>) -> Tensor<1> {
    vsd_loss(latents, gradient.autodiff())
}

/// The clamped CLIP loss of latents, decoded by the tiny autoencoder.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, on the student's graph
/// - text_embeds: `[batch, width]`, of unit length, from [`Clip::embed_texts`]; of another length if the score is a multiple of
///   the cosine
/// - returns: `[1]`
pub fn clip_loss(
    clip: &Clip,
    decoder: &AutoencoderTiny,
    latents: Tensor<4>,
    text_embeds: Tensor<2>,
    threshold: f64,
) -> Tensor<1> {
    let cosines = clip_cosines(clip, decoder, latents, text_embeds.autodiff());
    clamped_loss(cosines, threshold)
}

/// Cosines between latents, decoded by the tiny autoencoder, and texts.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`
/// - text_embeds: `[batch, width]` or `[1, width]`, of unit length
/// - returns: `[batch, 1]`
pub(crate) fn clip_cosines(
    clip: &Clip,
    decoder: &AutoencoderTiny,
    latents: Tensor<4>,
    text_embeds: Tensor<2>,
) -> Tensor<2> {
    let dtype = latents.dtype();
    let images = decoder.decode(latents).cast(FloatDType::F32);
    let images = preprocess(images, clip.image_size()).cast(dtype);
    (clip.embed_images(images) * text_embeds).sum_dim(1)
}

/// [`clip_loss`] with checkpoints: only the inputs of the decoder's stages and of the vision tower's layers are kept, and
/// there is no graph beside that of the latents.
///
/// # Shapes
///
/// Same as [`clip_loss`].
pub fn clip_loss_checkpointed(
    clip: &Clip,
    decoder: &AutoencoderTiny,
    latents: Tensor<4>,
    text_embeds: Tensor<2>,
    threshold: f64,
) -> Tensor<1> {
    let dtype = latents.dtype();
    let prepare =
        |images: Tensor<4>| preprocess(images.cast(FloatDType::F32), clip.image_size()).cast(dtype);
    let decoding = decoder.decode_checkpointed(latents.clone());
    let embedding = clip.embed_images_checkpointed(prepare(decoding.images()));
    let embeds = embedding.embeds().autodiff().require_grad();
    let cosines = embeds.clone() * text_embeds.autodiff();
    let loss = clamped_loss(cosines.sum_dim(1), threshold);
    let grad = embeds.grad_remove(&mut loss.clone().backward());
    let grad = grad.expect("the loss depends on the embeddings");
    let grad = embedding.backward(clip, grad);
    let grad = input_grad(decoding.images(), grad, prepare);
    with_gradient(latents, loss.inner(), decoding.backward(decoder, grad))
}

/// A loss with known value and gradient, attached to the graph of the latents.
///
/// # Shapes
///
/// - latents, gradient: `[batch, channels, height, width]`; the gradient is without autodiff
/// - loss and result: `[1]`; the loss is without autodiff
pub fn with_gradient(latents: Tensor<4>, loss: Tensor<1>, gradient: Tensor<4>) -> Tensor<1> {
    let dtype = FloatDType::from(loss.dtype());
    // Zero, with the gradient as its gradient.
    let distance = latents.clone() - latents.inner().autodiff();
    let nothing = (distance * gradient.autodiff()).sum();
    loss.autodiff() + nothing.cast(dtype)
}

/// The fake teacher's loss: it learns to denoise the student's latents, weighted by ᾱ_t.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`
/// - returns: `[1]`
pub fn fake_loss(
    fake: &dyn Denoiser,
    schedule: &NoiseSchedule,
    latents: Tensor<4>,
    draw: &FakeDraw,
    context: Tensor<3>,
) -> Tensor<1> {
    let timesteps = &draw.timesteps;
    let noisy = schedule
        .add_noise(latents, draw.noise.clone(), timesteps)
        .autodiff();
    let predicted = predicted_noise(fake, schedule, noisy, timesteps, context.autodiff());
    let (alpha, _) = schedule.alpha_sigma(timesteps, &predicted.device());
    denoising_loss(
        predicted,
        draw.noise.clone().autodiff(),
        alpha.powi_scalar(2),
    )
}

/// The noise that a network predicts, in f32; its output is converted as the schedule says.
pub(crate) fn predicted_noise(
    network: &dyn Denoiser,
    schedule: &NoiseSchedule,
    noisy: Tensor<4>,
    timesteps: &[usize],
    context: Tensor<3>,
) -> Tensor<4> {
    let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    let steps = Tensor::from_data(TensorData::new(values, [timesteps.len()]), &noisy.device());
    let output = network.predict(noisy.clone().cast(context.dtype()), steps, context);
    schedule.predicted_noise(output.cast(FloatDType::F32), noisy, timesteps)
}
