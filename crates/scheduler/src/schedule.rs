//! The tables α and σ, and conversions between noise, clean latents and velocity.

use burn::tensor::{Device, FloatDType, Tensor, TensorData, assert_shape};

use crate::{BetaSchedule, PredictionType, SchedulerConfig};

/// The forward process `x_t = α_t·x₀ + σ_t·ε` with α² + σ² = 1, for every training timestep.
///
/// ```
/// use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
///
/// let schedule = NoiseSchedule::new(&SchedulerConfig::default());
/// assert_eq!(schedule.last(), 999);
/// assert!((schedule.sigma(999) / schedule.alpha(999) - 14.6146).abs() < 1e-4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// ᾱ_t = α_t², the running product of `1 − β`.
    alphas_cumprod: Vec<f64>,
    prediction_type: PredictionType,
}

impl NoiseSchedule {
    /// Creates the schedule of a configuration.
    pub fn new(config: &SchedulerConfig) -> Self {
        let last = (config.num_train_timesteps - 1) as f64;
        let between =
            |start: f64, end: f64, step: usize| start + (end - start) * step as f64 / last;
        let beta = |step| match config.beta_schedule {
            BetaSchedule::Linear => between(config.beta_start, config.beta_end, step),
            BetaSchedule::ScaledLinear => {
                between(config.beta_start.sqrt(), config.beta_end.sqrt(), step).powi(2)
            }
        };
        let mut alphas_cumprod: Vec<f64> = (0..config.num_train_timesteps)
            .scan(1.0, |product, step| {
                *product *= 1.0 - beta(step);
                Some(*product)
            })
            .collect();
        if config.rescale_betas_zero_snr {
            let (first, last) = (
                alphas_cumprod[0].sqrt(),
                alphas_cumprod[last as usize].sqrt(),
            );
            for product in &mut alphas_cumprod {
                *product = ((product.sqrt() - last) * first / (first - last)).powi(2);
            }
        }
        Self {
            alphas_cumprod,
            prediction_type: config.prediction_type,
        }
    }

    /// Returns the schedule with ᾱ at least `least`, so that σ/α is finite.
    pub(crate) fn floored(mut self, least: f64) -> Self {
        for product in &mut self.alphas_cumprod {
            *product = product.max(least);
        }
        self
    }

    /// The factors of `x̂₀ = a·x + b·output`, where `x = alpha·x₀ + sigma·ε`.
    pub(crate) fn to_latents(&self, alpha: f64, sigma: f64) -> [f64; 2] {
        match self.prediction_type {
            PredictionType::Epsilon => [1.0 / alpha, -sigma / alpha],
            PredictionType::VPrediction => [alpha, -sigma],
            PredictionType::Sample => [0.0, 1.0],
        }
    }

    /// The factors of `ε̂ = a·x + b·output`, where `x = alpha·x₀ + sigma·ε`.
    pub(crate) fn to_noise(&self, alpha: f64, sigma: f64) -> [f64; 2] {
        match self.prediction_type {
            PredictionType::Epsilon => [0.0, 1.0],
            PredictionType::VPrediction => [sigma, alpha],
            PredictionType::Sample => [1.0 / sigma, -alpha / sigma],
        }
    }

    /// Number of timesteps, which are numbered from 0.
    pub fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Always false, because configurations have at least two timesteps.
    pub fn is_empty(&self) -> bool {
        self.alphas_cumprod.is_empty()
    }

    /// The noisiest timestep, 999 for Stable Diffusion.
    pub fn last(&self) -> usize {
        self.len() - 1
    }

    /// ᾱ_t.
    ///
    /// # Panics
    ///
    /// If the timestep lies outside the schedule.
    #[track_caller]
    pub fn alpha_cumprod(&self, timestep: usize) -> f64 {
        self.alphas_cumprod[timestep]
    }

    /// α_t, the factor of the clean latents. Panics as [`alpha_cumprod`](Self::alpha_cumprod).
    pub fn alpha(&self, timestep: usize) -> f64 {
        self.alpha_cumprod(timestep).sqrt()
    }

    /// σ_t, the factor of the noise. Panics as [`alpha_cumprod`](Self::alpha_cumprod).
    pub fn sigma(&self, timestep: usize) -> f64 {
        (1.0 - self.alpha_cumprod(timestep)).sqrt()
    }

    /// α and σ of each sample, `[batch, 1, 1, 1]`, to multiply latents with.
    ///
    /// # Panics
    ///
    /// If a timestep lies outside the schedule.
    #[track_caller]
    pub fn alpha_sigma(&self, timesteps: &[usize], device: &Device) -> (Tensor<4>, Tensor<4>) {
        let column = |value: &dyn Fn(usize) -> f64| {
            let values = timesteps
                .iter()
                .map(|&t| value(t) as f32)
                .collect::<Vec<_>>();
            Tensor::from_data(TensorData::new(values, [timesteps.len(), 1, 1, 1]), device)
        };
        (column(&|t| self.alpha(t)), column(&|t| self.sigma(t)))
    }

    /// Adds noise: `x_t = α_t·x₀ + σ_t·ε`, each sample at its own timestep.
    ///
    /// # Shapes
    ///
    /// - latents, noise, and the result: `[batch, channels, height, width]`
    /// - timesteps: one per sample
    ///
    /// # Panics
    ///
    /// If the shapes do not match or a timestep lies outside the schedule.
    #[track_caller]
    pub fn add_noise(
        &self,
        latents: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> Tensor<4> {
        let [batch, channels, height, width] = latents.dims();
        assert_shape!(noise, [batch, channels, height, width]);
        assert_eq!(timesteps.len(), batch, "one timestep per sample");
        let (alpha, sigma) = self.alpha_sigma(timesteps, &latents.device());
        let dtype = latents.dtype();
        let noisy = latents.cast(FloatDType::F32) * alpha + noise.cast(FloatDType::F32) * sigma;
        noisy.cast(dtype)
    }

    /// Converts a network's output to noise, whatever the network predicts.
    ///
    /// # Shapes
    ///
    /// - output, noisy, and the result: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the number of timesteps is not the batch, or one lies outside the schedule.
    #[track_caller]
    pub fn predicted_noise(
        &self,
        output: Tensor<4>,
        noisy: Tensor<4>,
        timesteps: &[usize],
    ) -> Tensor<4> {
        assert_eq!(timesteps.len(), output.dims()[0], "one timestep per sample");
        if self.prediction_type == PredictionType::Epsilon {
            return output;
        }
        let (alpha, sigma) = self.alpha_sigma(timesteps, &output.device());
        let dtype = output.dtype();
        let (output, noisy) = (output.cast(FloatDType::F32), noisy.cast(FloatDType::F32));
        let noise = match self.prediction_type {
            PredictionType::Epsilon => unreachable!("returned above"),
            PredictionType::VPrediction => output * alpha + noisy * sigma,
            PredictionType::Sample => (noisy - output * alpha) / sigma,
        };
        noise.cast(dtype)
    }

    /// Converts noise to clean latents, `x̂₀ = (x_t − σ_t·ε̂) / α_t`. Always computed in f32, because at the last
    /// timestep the division multiplies every error of ε̂ by 14.6.
    ///
    /// At the last timestep and with pure noise this is SwiftBrush's one-step rule (arXiv 2312.05239, equation 6).
    ///
    /// # Shapes
    ///
    /// - noisy, noise, and the result: `[batch, channels, height, width]`; the result is f32
    ///
    /// # Panics
    ///
    /// If the number of timesteps is not the batch, or one lies outside the schedule.
    #[track_caller]
    pub fn predicted_latents(
        &self,
        noisy: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> Tensor<4> {
        assert_eq!(timesteps.len(), noisy.dims()[0], "one timestep per sample");
        let (alpha, sigma) = self.alpha_sigma(timesteps, &noisy.device());
        (noisy.cast(FloatDType::F32) - noise.cast(FloatDType::F32) * sigma) / alpha
    }

    /// Converts a network's output to clean latents in f32. Unlike [`predicted_noise`](Self::predicted_noise) followed by
    /// [`predicted_latents`](Self::predicted_latents), it does not divide if the network predicts velocity, so it works
    /// at ᾱ = 0.
    ///
    /// # Shapes
    ///
    /// - output, noisy, and the result: `[batch, channels, height, width]`; the result is f32
    ///
    /// # Panics
    ///
    /// If the shapes differ or the timestep lies outside the schedule.
    #[track_caller]
    pub fn clean_latents(&self, output: Tensor<4>, noisy: Tensor<4>, timestep: usize) -> Tensor<4> {
        let [of_noisy, of_output] = self.to_latents(self.alpha(timestep), self.sigma(timestep));
        noisy.cast(FloatDType::F32) * of_noisy + output.cast(FloatDType::F32) * of_output
    }

    /// The velocity `v = α_t·ε − σ_t·x₀` of a pair. Shapes and panics as [`add_noise`](Self::add_noise).
    pub fn velocity(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        let (alpha, sigma) = self.alpha_sigma(timesteps, &latents.device());
        noise * alpha - latents * sigma
    }
}

/// Classifier-free guidance, `ε̂ = ε_u + s·(ε_c − ε_u)`: scale 1 is the conditional prediction, scale 0 the
/// unconditional one. (Pipelines skip guidance for scales up to 1, as diffusers does.)
///
/// The paper's γ is `s − 1` (arXiv 2408.14176, equation 3); its code and this function use s.
///
/// # Shapes
///
/// - conditional, unconditional, and the result: `[batch, channels, height, width]`
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn guide(conditional: Tensor<4>, unconditional: Tensor<4>, scale: f64) -> Tensor<4> {
    assert_eq!(
        conditional.dims(),
        unconditional.dims(),
        "the two predictions differ in shape"
    );
    unconditional.clone() + (conditional - unconditional) * scale
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    fn schedule(prediction_type: PredictionType) -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig {
            prediction_type,
            ..Default::default()
        })
    }

    /// Values of Stable Diffusion's table that are printed in papers and code.
    #[test]
    fn the_table_is_that_of_stable_diffusion() {
        let schedule = schedule(PredictionType::Epsilon);
        for (t, alpha_cumprod) in [
            (0, 0.999_150_000),
            (20, 0.981_314_362),
            (499, 0.277_669_650),
            (980, 0.005_843_783),
            (999, 0.004_660_099),
        ] {
            assert!(
                (schedule.alpha_cumprod(t) - alpha_cumprod).abs() < 5e-10,
                "at {t}"
            );
        }
        assert!((schedule.sigma(999) / schedule.alpha(999) - 14.614_641).abs() < 1e-5);
    }

    #[test]
    fn conversions_are_inverse_to_each_other() {
        let device = device();
        let [latents, noise] = [0, 1].map(|seed| random([3, 4, 2, 5], seed, &device));
        let timesteps = [0, 400, 999];
        for kind in [
            PredictionType::Epsilon,
            PredictionType::VPrediction,
            PredictionType::Sample,
        ] {
            let schedule = schedule(kind);
            let noisy = schedule.add_noise(latents.clone(), noise.clone(), &timesteps);
            let output = match kind {
                PredictionType::Epsilon => noise.clone(),
                PredictionType::VPrediction => {
                    schedule.velocity(latents.clone(), noise.clone(), &timesteps)
                }
                PredictionType::Sample => latents.clone(),
            };
            let found = schedule.predicted_noise(output, noisy.clone(), &timesteps);
            assert_close(found.clone(), noise.clone(), 1e-5);
            assert_close(
                schedule.predicted_latents(noisy, found, &timesteps),
                latents.clone(),
                2e-5,
            );
        }
    }

    #[test]
    fn guidance_of_one_is_the_conditional_prediction_and_of_zero_the_other() {
        let device = device();
        let [conditional, unconditional] = [0, 1].map(|seed| random([2, 4, 2, 2], seed, &device));
        let at = |scale| guide(conditional.clone(), unconditional.clone(), scale);
        assert_close(at(1.0), conditional.clone(), 1e-6);
        assert_close(at(0.0), unconditional.clone(), 1e-6);
        assert_close(
            at(4.5),
            conditional.clone() * 4.5 - unconditional.clone() * 3.5,
            1e-5,
        );
    }
}
