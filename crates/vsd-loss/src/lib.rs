//! Variational score distillation (Wang et al., arXiv 2305.16213) as used by SwiftBrush
//! (arXiv 2312.05239): pure functions of tensors, independent of any network.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use swiftbrush_vsd_loss::{vsd_gradient, vsd_loss};
//!
//! let device = Device::flex();
//! let teacher_noise = Tensor::<4>::ones([1, 4, 8, 8], &device);
//! let fake_noise = Tensor::<4>::zeros([1, 4, 8, 8], &device);
//! let weight = Tensor::<4>::full([1, 1, 1, 1], 0.25, &device);
//! let gradient = vsd_gradient(teacher_noise, fake_noise, weight);
//!
//! // Descending on the loss moves the latents by −gradient / elements.
//! let latents = Tensor::<4>::zeros([1, 4, 8, 8], &device.autodiff()).require_grad();
//! let grads = vsd_loss(latents.clone(), gradient.autodiff()).backward();
//! let moved = latents.grad(&grads).unwrap().sum().into_scalar::<f32>();
//! assert!((moved - 0.25).abs() < 1e-6);
//! ```
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

use burn::tensor::{FloatDType, Tensor, assert_shape};

/// The direction in which variational score distillation moves the student's latents,
/// `g = w(t)·(ε̂_teacher − ε̂_fake)` (arXiv 2408.14176, §3, with SwiftBrush's `w(t) = σ_t²`).
///
/// Descending on [`vsd_loss`] with this direction pulls the latents towards the teacher's denoised
/// estimate and away from the student's own distribution. The result is detached: neither network
/// receives a gradient.
///
/// # Shapes
///
/// - teacher_noise, fake_noise: `[batch, channels, height, width]`, guidance already applied
/// - weight: `[batch, 1, 1, 1]`
/// - returns: `[batch, channels, height, width]`, f32
///
/// # Panics
///
/// If the shapes do not match.
#[track_caller]
pub fn vsd_gradient(
    teacher_noise: Tensor<4>,
    fake_noise: Tensor<4>,
    weight: Tensor<4>,
) -> Tensor<4> {
    let [batch, channels, height, width] = teacher_noise.dims();
    assert_shape!(fake_noise, [batch, channels, height, width]);
    assert_shape!(weight, [batch, 1, 1, 1]);
    let difference = teacher_noise.cast(FloatDType::F32) - fake_noise.cast(FloatDType::F32);
    (difference * weight).detach()
}

/// The same direction, normalised as in DMD (Yin et al., arXiv 2311.18828, equation 8):
/// `g = (x̂_fake − x̂_teacher) / mean|x − x̂_teacher|`, with a mean per sample.
///
/// The denoised estimates are compared instead of the noise, so the timestep does not weight the
/// difference; samples that the teacher would change a lot count less. If the teacher would not change
/// a sample at all, the result is not finite.
///
/// # Shapes
///
/// - latents, teacher_latents, fake_latents: `[batch, channels, height, width]`, guidance already applied
/// - returns: `[batch, channels, height, width]`, f32, detached
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn normalized_vsd_gradient(
    latents: Tensor<4>,
    teacher_latents: Tensor<4>,
    fake_latents: Tensor<4>,
) -> Tensor<4> {
    let [batch, channels, height, width] = latents.dims();
    assert_shape!(teacher_latents, [batch, channels, height, width]);
    assert_shape!(fake_latents, [batch, channels, height, width]);
    let teacher_latents = teacher_latents.cast(FloatDType::F32);
    let change = (latents.cast(FloatDType::F32) - teacher_latents.clone()).abs();
    let scale = change.mean_dim(1).mean_dim(2).mean_dim(3);
    ((fake_latents.cast(FloatDType::F32) - teacher_latents) / scale).detach()
}

/// Half the mean squared distance between the latents and the latents moved by `−gradient`.
///
/// Its value says little about progress, but its derivative is `gradient / elements`.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, on the student's graph
/// - gradient: the same, from [`vsd_gradient`] or [`normalized_vsd_gradient`]
/// - returns: `[1]`
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn vsd_loss(latents: Tensor<4>, gradient: Tensor<4>) -> Tensor<1> {
    assert_eq!(
        latents.dims(),
        gradient.dims(),
        "latents and gradient differ in shape"
    );
    let latents = latents.cast(FloatDType::F32);
    let target = (latents.clone() - gradient).detach();
    (latents - target).powi_scalar(2).mean() * 0.5
}

/// Mean squared error of the fake teacher's noise, weighted per sample:
/// `E[w(t)·‖ε_ψ(x_t, t, y) − ε‖²]`. SwiftBrush's code has `w = ᾱ_t`, the papers have 1.
///
/// # Shapes
///
/// - predicted_noise, noise: `[batch, channels, height, width]`
/// - weight: `[batch, 1, 1, 1]`
/// - returns: `[1]`
///
/// # Panics
///
/// If the shapes do not match.
#[track_caller]
pub fn denoising_loss(
    predicted_noise: Tensor<4>,
    noise: Tensor<4>,
    weight: Tensor<4>,
) -> Tensor<1> {
    let [batch, channels, height, width] = predicted_noise.dims();
    assert_shape!(noise, [batch, channels, height, width]);
    assert_shape!(weight, [batch, 1, 1, 1]);
    let error = predicted_noise.cast(FloatDType::F32) - noise.cast(FloatDType::F32);
    (error.powi_scalar(2) * weight).mean()
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random, values};

    use super::*;

    #[test]
    fn derivative_is_the_gradient_over_the_number_of_elements() {
        let device = device().autodiff();
        let latents = random([2, 4, 3, 3], 0, &device).require_grad();
        let gradient = random([2, 4, 3, 3], 1, &device);
        let grads = vsd_loss(latents.clone(), gradient.clone()).backward();
        let expected = gradient.inner() / (2 * 4 * 3 * 3) as f64;
        assert_close(latents.grad(&grads).unwrap(), expected, 1e-5);
    }

    #[test]
    fn neither_teacher_receives_a_gradient() {
        let device = device().autodiff();
        let [teacher, fake, latents] =
            [0, 1, 2].map(|seed| random([1, 2, 2, 2], seed, &device).require_grad());
        let weight = Tensor::ones([1, 1, 1, 1], &device);
        let gradient = vsd_gradient(teacher.clone(), fake.clone(), weight);
        let grads = vsd_loss(latents.clone(), gradient).backward();
        assert!(teacher.grad(&grads).is_none() && fake.grad(&grads).is_none());
        assert!(latents.grad(&grads).is_some());
    }

    /// Teacher N(μ, 1) and fake N(m, 1): their noise at x_t = αx₀ + σε is known in closed form, and
    /// descent must move m to μ. A flipped sign moves it away.
    #[test]
    fn descent_moves_the_students_mean_to_the_teachers() {
        let device = device().autodiff();
        let (mu, alpha, sigma) = (1.5, 0.8, 0.6);
        let mut mean = -1.0;
        for step in 0..60 {
            let latents = (random([64, 1, 1, 1], 2 * step, &device) + mean)
                .detach()
                .require_grad();
            let noisy = latents.clone().detach() * alpha
                + random([64, 1, 1, 1], 2 * step + 1, &device) * sigma;
            // For data N(c, 1): E[ε | x_t] = σ·(x_t − αc), since α² + σ² = 1.
            let noise = |centre: f64| (noisy.clone() - alpha * centre) * sigma;
            let weight = Tensor::full([64, 1, 1, 1], sigma * sigma, &device);
            let gradient = vsd_gradient(noise(mu), noise(mean), weight);
            let grads = vsd_loss(latents.clone(), gradient).backward();
            let pull: f32 = values(latents.grad(&grads).unwrap()).iter().sum();
            mean -= f64::from(pull);
        }
        assert!(
            (mean - mu).abs() < 0.05,
            "the student's mean ended at {mean}, not at {mu}"
        );
    }

    #[test]
    fn the_denoising_loss_weights_each_sample() {
        let device = device();
        let noise = Tensor::zeros([2, 1, 1, 2], &device);
        let predicted = Tensor::<4>::from_data([[[[1., 3.]]], [[[2., 2.]]]], &device);
        let weight = Tensor::<4>::from_data([[[[1.0]]], [[[0.5]]]], &device);
        // (1·(1 + 9) + ½·(4 + 4)) / 4
        assert_close(
            denoising_loss(predicted, noise, weight),
            Tensor::from_data([3.5], &device),
            1e-6,
        );
    }

    /// Computed with PyTorch 2.15 as in DMD2's `compute_distribution_matching_loss`, from samples whose values are in
    /// the comments: `grad = (p_real - p_fake) / p_real.abs().mean([1, 2, 3], keepdim=True)`.
    #[test]
    fn the_normalized_gradient_is_that_of_dmd() {
        let device = device();
        let of = |values: [[[[f32; 2]; 1]; 1]; 2]| Tensor::<4>::from_data(values, &device);
        let latents = of([[[[1.0, -2.0]]], [[[0.5, 0.25]]]]);
        let teacher = of([[[[0.0, 1.0]]], [[[1.5, 0.0]]]]);
        let fake = of([[[[2.0, -1.0]]], [[[0.0, 0.5]]]]);
        // |x − x̂| has means of 2 and 0.625.
        let expected = of([[[[1.0, -1.0]]], [[[-2.4, 0.8]]]]);
        assert_close(
            normalized_vsd_gradient(latents, teacher, fake),
            expected,
            1e-6,
        );
    }
}
