//! The clamped CLIP loss (SwiftBrush v2, arXiv 2408.14176, §4.3): a pure function on embeddings.

use burn::tensor::{FloatDType, Tensor, assert_shape};

/// τ of the paper, for ViT-B/32. Other encoders have other ranges of cosines.
pub const DEFAULT_THRESHOLD: f64 = 0.35;

/// `mean(max(0, τ − cos(image, text)))`: the clamp is taken for each sample, so one that fits well
/// receives no gradient whatever the others do.
///
/// # Shapes
///
/// - image_embeds, text_embeds: `[batch, width]`, of length one
/// - returns: `[1]`
///
/// # Panics
///
/// If the shapes differ.
pub fn clamped_clip_loss(
    image_embeds: Tensor<2>,
    text_embeds: Tensor<2>,
    threshold: f64,
) -> Tensor<1> {
    let [batch, width] = image_embeds.dims();
    assert_shape!(text_embeds, [batch, width]);
    let images = image_embeds.cast(FloatDType::F32);
    let cosine = (images * text_embeds.cast(FloatDType::F32)).sum_dim(1);
    (cosine.neg() + threshold).clamp_min(0.0).mean()
}

/// The loss's weight in a run: from `initial` at the first step linearly to 0 at the last
/// (0.1 in the paper, which does not give the shape).
///
/// # Panics
///
/// If `steps` is zero.
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
    fn only_samples_below_the_threshold_count_and_are_pulled() {
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
            "the second image fits and must be left alone"
        );
        assert!(
            (grad[0] + 0.5).abs() < 1e-6,
            "descent must raise the first cosine, gradient {grad:?}"
        );
    }

    #[test]
    fn the_weight_falls_to_nothing() {
        assert_eq!(linear_decay(0.1, 0, 10), 0.1);
        assert_eq!(linear_decay(0.1, 5, 10), 0.05);
        assert_eq!(linear_decay(0.1, 10, 10), 0.0);
        assert_eq!(linear_decay(0.1, 11, 10), 0.0);
    }
}
