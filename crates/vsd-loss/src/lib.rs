//! Variational score distillation (Wang et al., arXiv 2305.16213) as SwiftBrush uses it
//! (arXiv 2312.05239): pure functions on tensors that know no network.

use burn::tensor::{FloatDType, Tensor, assert_shape};

/// Direction in which variational score distillation moves the student's latents,
/// `g = w(t)·(ε̂_teacher − ε̂_fake)` (arXiv 2408.14176, §3, with `w(t) = σ_t²` as SwiftBrush weighs it).
///
/// Descending on [`vsd_loss`] with this direction pulls the latents towards what the teacher would
/// denoise them to and away from what the student already makes. The result is detached: neither
/// network receives a gradient.
///
/// # Shapes
///
/// - teacher_noise, fake_noise: `[batch, channels, height, width]`, guidance already applied
/// - weight: `[batch, 1, 1, 1]`
/// - returns: `[batch, channels, height, width]`, f32
///
/// # Panics
///
/// If the shapes do not agree.
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

/// Half the mean square of the distance between the latents and themselves moved by `−gradient`: its
/// value says little, its derivative is `gradient / elements`.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, on the student's graph
/// - gradient: the same, from [`vsd_gradient`]
/// - returns: `[1]`
///
/// # Panics
///
/// If the shapes differ.
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

/// Mean square error of the fake teacher's noise, weighed per sample:
/// `E[w(t)·‖ε_ψ(x_t, t, y) − ε‖²]`. SwiftBrush's code takes `w = ᾱ_t`, the papers 1.
///
/// # Shapes
///
/// - predicted_noise, noise: `[batch, channels, height, width]`
/// - weight: `[batch, 1, 1, 1]`
/// - returns: `[1]`
///
/// # Panics
///
/// If the shapes do not agree.
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
    fn neither_teacher_is_reached() {
        let device = device().autodiff();
        let [teacher, fake, latents] =
            [0, 1, 2].map(|seed| random([1, 2, 2, 2], seed, &device).require_grad());
        let weight = Tensor::ones([1, 1, 1, 1], &device);
        let gradient = vsd_gradient(teacher.clone(), fake.clone(), weight);
        let grads = vsd_loss(latents.clone(), gradient).backward();
        assert!(teacher.grad(&grads).is_none() && fake.grad(&grads).is_none());
        assert!(latents.grad(&grads).is_some());
    }

    /// Teacher N(μ, 1) and fake N(m, 1): their noise at x_t = αx₀ + σε is known, and descent must
    /// carry m to μ. A flipped sign carries it away.
    #[test]
    fn descent_carries_the_students_mean_to_the_teachers() {
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
    fn the_fake_teachers_loss_weighs_each_sample() {
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
}
