//! The losses of one step as functions of everything that goes into them.
//!
//! Denoisers compute in the element type of the context that they are given, the clamped CLIP loss in that of its
//! latents; what comes out of networks is f32 again before anything is done with it.

use burn::tensor::{FloatDType, Tensor, TensorData};
use swiftbrush_clamped_clip_loss::clamped_clip_loss;
use swiftbrush_clip::{Clip, preprocess};
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::{NoiseSchedule, guide};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderTiny;
use swiftbrush_vsd_loss::{denoising_loss, vsd_gradient, vsd_loss};

/// What is drawn at random for the student's loss.
#[derive(Clone, Debug)]
pub struct StudentDraw {
    /// What the student makes latents of, `[batch, channels, height, width]`.
    pub noise: Tensor<4>,
    /// At which timesteps the teachers look at them, one per sample.
    pub timesteps: Vec<usize>,
    /// The noise that is added to them for that, as `noise`.
    pub renoise: Tensor<4>,
}

/// What is drawn at random for the fake teacher's loss.
#[derive(Clone, Debug)]
pub struct FakeDraw {
    /// Timesteps, one per sample.
    pub timesteps: Vec<usize>,
    /// The noise that is to be predicted, `[batch, channels, height, width]`.
    pub noise: Tensor<4>,
}

/// The student's latents for a batch, on its graph; shapes as of [`one_step`].
pub fn student_latents(
    student: &UNet,
    schedule: &NoiseSchedule,
    draw: &StudentDraw,
    context: Tensor<3>,
) -> Tensor<4> {
    one_step(
        student,
        schedule,
        draw.noise.clone().autodiff(),
        context.autodiff(),
    )
}

/// Scales of classifier-free guidance with which the two teachers are asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The teacher's.
    pub teacher: f64,
    /// The fake teacher's.
    pub fake: f64,
}

/// The direction of variational score distillation at some latents: the difference of what the two
/// teachers predict, weighed by σ_t² (arXiv 2408.14176, §3).
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`, null_context: `[1, length, width]`
/// - returns: as latents
pub fn distillation_gradient(
    teacher: &UNet,
    fake: &UNet,
    schedule: &NoiseSchedule,
    guidance: Guidance,
    latents: Tensor<4>,
    draw: &StudentDraw,
    context: Tensor<3>,
    null_context: Tensor<3>,
) -> Tensor<4> {
    let timesteps = &draw.timesteps;
    let noisy = schedule.add_noise(latents, draw.renoise.clone(), timesteps);
    let [batch, length, width] = context.dims();
    let null_context = null_context.expand([batch, length, width]);
    let guided = |unet: &UNet, scale| {
        let ask = |context| ask(unet, schedule, noisy.clone(), timesteps, context);
        let conditional = ask(context.clone());
        if scale == 1.0 {
            return conditional;
        }
        guide(conditional, ask(null_context.clone()), scale)
    };
    let (_, sigma) = schedule.alpha_sigma(timesteps, &noisy.device());
    let (teacher, fake) = (
        guided(teacher, guidance.teacher),
        guided(fake, guidance.fake),
    );
    vsd_gradient(teacher, fake, sigma.powi_scalar(2))
}

/// The student's loss of variational score distillation; see [`vsd_loss`].
pub fn distillation_loss(latents: Tensor<4>, gradient: Tensor<4>) -> Tensor<1> {
    vsd_loss(latents, gradient.autodiff())
}

/// The clamped CLIP loss of latents, through the tiny decoder.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, on the student's graph
/// - text_embeds: `[batch, width]`, of length one
/// - returns: `[1]`
pub fn clip_loss(
    clip: &Clip,
    decoder: &AutoencoderTiny,
    latents: Tensor<4>,
    text_embeds: Tensor<2>,
    threshold: f64,
) -> Tensor<1> {
    let dtype = latents.dtype();
    let images = decoder.decode(latents).cast(FloatDType::F32);
    let images = preprocess(images, clip.image_size()).cast(dtype);
    clamped_clip_loss(clip.embed_images(images), text_embeds.autodiff(), threshold)
}

/// The fake teacher's loss: it learns to denoise what the student makes, weighed by ᾱ_t.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`
/// - returns: `[1]`
pub fn fake_loss(
    fake: &UNet,
    schedule: &NoiseSchedule,
    latents: Tensor<4>,
    draw: &FakeDraw,
    context: Tensor<3>,
) -> Tensor<1> {
    let timesteps = &draw.timesteps;
    let noisy = schedule
        .add_noise(latents, draw.noise.clone(), timesteps)
        .autodiff();
    let predicted = ask(fake, schedule, noisy, timesteps, context.autodiff());
    let (alpha, _) = schedule.alpha_sigma(timesteps, &predicted.device());
    denoising_loss(
        predicted,
        draw.noise.clone().autodiff(),
        alpha.powi_scalar(2),
    )
}

fn ask(
    unet: &UNet,
    schedule: &NoiseSchedule,
    noisy: Tensor<4>,
    timesteps: &[usize],
    context: Tensor<3>,
) -> Tensor<4> {
    let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    let steps = Tensor::from_data(TensorData::new(values, [timesteps.len()]), &noisy.device());
    let output = unet.forward(noisy.clone().cast(context.dtype()), steps, context);
    schedule.predicted_noise(output.cast(FloatDType::F32), noisy, timesteps)
}
