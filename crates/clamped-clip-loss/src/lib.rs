//! The clamped CLIP loss (SwiftBrush v2, arXiv 2408.14176, §4.3): pure functions of embeddings.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use swiftbrush_clamped_clip_loss::{DEFAULT_THRESHOLD, clamped_clip_loss, linear_decay};
//!
//! let device = Device::flex();
//! let images = Tensor::<2>::from_data([[0.0f32, 3.0], [2.0, 0.0]], &device);
//! let texts = Tensor::<2>::from_data([[1.0f32, 0.0], [5.0, 0.0]], &device);
//! // Cosines of 0 and 1: the second image is beyond the threshold.
//! let loss = clamped_clip_loss(images, texts, DEFAULT_THRESHOLD);
//! assert!((loss.into_scalar::<f32>() - 0.35 / 2.0).abs() < 1e-6);
//! assert_eq!(linear_decay(0.1, 20_000, 40_000), 0.05);
//! ```
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

use burn::tensor::{FloatDType, Tensor, assert_shape};

/// τ of the paper, for ViT-B/32. Other encoders have other ranges of cosines.
pub const DEFAULT_THRESHOLD: f64 = 0.35;

/// Lower bound of the length that a vector is divided by, as in PyTorch's `cosine_similarity`.
const LEAST_LENGTH: f64 = 1e-8;

/// `mean(max(0, τ − cos(image, text)))`, which normalises the vectors itself.
///
/// The clamp applies to each sample, so a sample beyond the threshold receives no gradient, regardless
/// of the others. For embeddings that already have unit length, [`clamped_loss`] of their products
/// avoids the normalisation.
///
/// # Shapes
///
/// - image_embeds, text_embeds: `[batch, width]`, of any length
/// - returns: `[1]`, between 0 and τ + 1
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn clamped_clip_loss(
    image_embeds: Tensor<2>,
    text_embeds: Tensor<2>,
    threshold: f64,
) -> Tensor<1> {
    let [batch, width] = image_embeds.dims();
    assert_shape!(text_embeds, [batch, width]);
    let cosine = (normalize(image_embeds) * normalize(text_embeds)).sum_dim(1);
    clamped_loss(cosine, threshold)
}

/// `mean(max(0, τ − cos))` of cosines, or of any score that increases with quality.
///
/// # Shapes
///
/// - cosines: `[batch, 1]`
/// - returns: `[1]`
pub fn clamped_loss(cosines: Tensor<2>, threshold: f64) -> Tensor<1> {
    let cosines = cosines.cast(FloatDType::F32);
    (cosines.neg() + threshold).clamp_min(0.0).mean()
}

fn normalize(embeds: Tensor<2>) -> Tensor<2> {
    let embeds = embeds.cast(FloatDType::F32);
    let length = embeds.clone().powi_scalar(2).sum_dim(1).sqrt();
    embeds / length.clamp_min(LEAST_LENGTH)
}

/// Weight of the loss at a step: linear from `initial` at step 0 (0.1 in the paper, which does not
/// specify the shape) to 0 at the last step.
///
/// # Panics
///
/// If `steps` is zero.
#[track_caller]
pub fn linear_decay(initial: f64, step: u64, steps: u64) -> f64 {
    assert!(steps > 0, "a run has at least one step");
    initial * (1.0 - step.min(steps) as f64 / steps as f64)
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, values};

    use super::*;

    /// Texts along the first axis; images at cosines of 0.2 and 0.9 to them.
    fn embeddings(device: &burn::tensor::Device) -> (Tensor<2>, Tensor<2>) {
        let images = [[0.2f32, 0.96f32.sqrt()], [0.9, 0.19f32.sqrt()]];
        let texts = Tensor::from_data([[1.0f32, 0.0], [1.0, 0.0]], device);
        (Tensor::from_data(images, device), texts)
    }

    #[test]
    fn only_samples_below_the_threshold_receive_a_gradient() {
        let device = device().autodiff();
        let (images, texts) = embeddings(&device);
        let images = images.require_grad();
        let loss = clamped_clip_loss(images.clone(), texts, 0.35);
        assert_close(
            loss.clone().inner(),
            Tensor::from_data([0.15 / 2.0], &device.inner()),
            1e-5,
        );
        // Clamping the mean instead would give max(0, 0.35 − 0.55) = 0.
        let grads = loss.backward();
        let grad = values(images.grad(&grads).unwrap());
        assert_eq!(
            grad[2..],
            [0.0, 0.0],
            "the second image is beyond the threshold"
        );
        assert!(
            (grad[0] + 0.5 * 0.96).abs() < 1e-6,
            "descent must increase the first cosine by rotating its image, gradient {grad:?}"
        );
    }

    #[test]
    fn the_weight_decays_to_zero() {
        assert_eq!(linear_decay(0.1, 0, 10), 0.1);
        assert_eq!(linear_decay(0.1, 5, 10), 0.05);
        assert_eq!(linear_decay(0.1, 10, 10), 0.0);
        assert_eq!(linear_decay(0.1, 11, 10), 0.0);
    }

    /// PyTorch 2.15: `(0.35 - F.cosine_similarity(images, texts)).clamp(min=0).mean()`.
    #[test]
    fn vectors_of_any_length_are_normalized() {
        let device = device();
        let images = Tensor::from_data([[3.0f32, 4.0], [-2.0, 0.0], [0.0, 0.0]], &device);
        let texts = Tensor::from_data([[0.0f32, 10.0], [7.0, 0.0], [1.0, 1.0]], &device);
        // Cosines of 0.8, −1 and, for lack of a direction, 0.
        let expected = (0.0 + 1.35 + 0.35) / 3.0;
        assert_close(
            clamped_clip_loss(images, texts, 0.35),
            Tensor::from_data([expected], &device),
            1e-6,
        );
    }
}
