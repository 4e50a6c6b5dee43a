//! Samplers: from noise to latents in a few network calls.

use crate::step::Step;
use crate::{
    ConfigError, NoiseSchedule, PredictionType, SamplerKind, SchedulerConfig, TimestepSpacing,
    timesteps,
};

/// ᾱ of the last timestep if a schedule that ends in pure noise would make σ/α infinite; the constant is diffusers'.
const LEAST_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0;
/// Standard deviation of the data in the boundary conditions of latent consistency models.
const SIGMA_DATA: f64 = 0.5;

/// A sampler as a list of [`Step`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    steps: Vec<Step>,
    initial_scale: f64,
}

impl Sampler {
    /// Creates a sampler that starts from pure noise. The configuration is resolved with
    /// [`SchedulerConfig::for_sampler`].
    ///
    /// # Errors
    ///
    /// If the sampler does not support the configuration or the number of steps.
    ///
    /// # Examples
    ///
    /// ```
    /// use swiftbrush_scheduler::{Sampler, SamplerKind, SchedulerConfig};
    ///
    /// let sampler = Sampler::new(SamplerKind::Euler, &SchedulerConfig::default(), 1)?;
    /// assert_eq!(sampler.steps()[0].timestep, 999.0);
    /// assert!((sampler.initial_scale() - 14.6146).abs() < 1e-4);
    /// # Ok::<(), swiftbrush_scheduler::ConfigError>(())
    /// ```
    pub fn new(
        kind: SamplerKind,
        config: &SchedulerConfig,
        n_steps: usize,
    ) -> Result<Self, ConfigError> {
        Self::after(kind, config, n_steps, 0)
    }

    /// Creates a sampler of `n_steps` steps without the first `n_skipped`, for latents of an image with noise added
    /// ([`Step::entry`]).
    ///
    /// # Errors
    ///
    /// Same as [`new`](Self::new), or if no step is left.
    pub fn after(
        kind: SamplerKind,
        config: &SchedulerConfig,
        n_steps: usize,
        n_skipped: usize,
    ) -> Result<Self, ConfigError> {
        let config = &config.for_sampler(kind)?;
        let most = kind.max_steps(config);
        if !(1..=most).contains(&n_steps) {
            let found = n_steps;
            return Err(ConfigError::Steps { kind, found, most });
        }
        if n_skipped >= n_steps {
            return Err(ConfigError::NoSteps {
                steps: n_steps,
                skipped: n_skipped,
            });
        }
        let schedule = NoiseSchedule::new(config);
        Ok(match kind {
            SamplerKind::Ddim => Self::ddim(config, &schedule, n_steps, n_skipped),
            SamplerKind::Euler => Self::euler(config, schedule, n_steps, n_skipped, false),
            SamplerKind::EulerAncestral => Self::euler(config, schedule, n_steps, n_skipped, true),
            SamplerKind::DpmSolver => Self::dpm_solver(config, schedule, n_steps, n_skipped),
            SamplerKind::Pndm => Self::pndm(config, &schedule, n_steps, n_skipped),
            SamplerKind::Lcm => Self::lcm(config, &schedule, n_steps, n_skipped),
        })
    }

    /// The steps, first to last.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Factor of unit noise in the initial latents.
    pub fn initial_scale(&self) -> f64 {
        self.initial_scale
    }

    fn ddim(
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let stride = config.num_train_timesteps / n_steps;
        let timesteps = timesteps::whole(config, n_steps);
        let steps = timesteps.into_iter().skip(n_skipped).map(|timestep| {
            let [alpha, sigma] = shares(schedule, timestep);
            let next = alpha_cumprod_before(config, schedule, timestep, stride);
            let clean = schedule.to_latents(alpha, sigma);
            let noise = schedule.to_noise(alpha, sigma);
            // x₀ enters through the prediction, or separately if it is clipped.
            let of_clean = if config.clip_sample { 0.0 } else { next.sqrt() };
            let factor = |i: usize| of_clean * clean[i] + (1.0 - next).sqrt() * noise[i];
            Step {
                keep: factor(0),
                predicted: vec![factor(1)],
                clipped: config
                    .clip_sample
                    .then_some([config.clip_sample_range, next.sqrt()]),
                ..Step::at(timestep as f64, clean, [alpha, sigma])
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale: 1.0,
        }
    }

    fn euler(
        config: &SchedulerConfig,
        schedule: NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
        is_ancestral: bool,
    ) -> Self {
        let schedule = schedule.floored(LEAST_ALPHA_CUMPROD);
        let timesteps = timesteps::fractional(config, n_steps);
        let levels: Vec<f64> = timesteps.iter().map(|&t| level(&schedule, t)).collect();
        let highest = levels.iter().copied().fold(0.0, f64::max);
        let initial_scale = match config.timestep_spacing {
            TimestepSpacing::Leading => (highest.powi(2) + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => highest,
        };
        let next = levels.iter().copied().skip(1).chain([0.0]);
        let steps = timesteps.iter().zip(&levels).zip(next).skip(n_skipped);
        let steps = steps.map(|((&timestep, &level), next): ((&f64, &f64), f64)| {
            let input_scale = 1.0 / (level.powi(2) + 1.0).sqrt();
            // The network sees x/√(σ² + 1) with these factors of x₀ and ε; the slope is the noise.
            let slope = schedule.to_noise(input_scale, level * input_scale);
            let fresh = match is_ancestral {
                true => (next.powi(2) * (level.powi(2) - next.powi(2)) / level.powi(2)).sqrt(),
                false => 0.0,
            };
            let down = (next.powi(2) - fresh.powi(2)).sqrt();
            Step {
                input_scale,
                keep: 1.0 + (down - level) * slope[0] * input_scale,
                predicted: vec![(down - level) * slope[1]],
                fresh,
                ..Step::at(
                    timestep,
                    [1.0 - level * slope[0] * input_scale, -level * slope[1]],
                    [1.0, level],
                )
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale,
        }
    }

    fn dpm_solver(
        config: &SchedulerConfig,
        schedule: NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let schedule = schedule.floored(LEAST_ALPHA_CUMPROD);
        let timesteps = &timesteps::of_solver(config, n_steps)[n_skipped..];
        let log_ratio = |t: usize| (schedule.alpha(t) / schedule.sigma(t)).ln();
        let steps = timesteps.iter().enumerate().map(|(i, &now)| {
            let (keep, predicted) = match timesteps.get(i + 1) {
                None => (0.0, vec![1.0]),
                Some(&next) => {
                    let reach = log_ratio(next) - log_ratio(now);
                    let all = -schedule.alpha(next) * (-reach).exp_m1();
                    let predicted = match i.checked_sub(1) {
                        None => vec![all],
                        Some(before) => {
                            let behind = log_ratio(now) - log_ratio(timesteps[before]);
                            let slope = 0.5 * reach / behind;
                            vec![all * (1.0 + slope), -all * slope]
                        }
                    };
                    (schedule.sigma(next) / schedule.sigma(now), predicted)
                }
            };
            let [alpha, sigma] = shares(&schedule, now);
            Step {
                prediction: schedule.to_latents(alpha, sigma),
                keep,
                predicted,
                ..Step::at(
                    now as f64,
                    schedule.to_latents(alpha, sigma),
                    [alpha, sigma],
                )
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale: 1.0,
        }
    }

    /// PNDM advances `x ← keep·x + factor·prediction`, where the prediction combines up to four. For noise this is the
    /// paper's equation 11, rearranged. For velocity, as in diffusers, the network's outputs are combined and the noise
    /// is computed from the current latents. If steps are skipped, the first remaining one is still followed by the
    /// second visit, as in diffusers.
    fn pndm(
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let stride = config.num_train_timesteps / n_steps;
        let combines_outputs = config.prediction_type == PredictionType::VPrediction;
        // From a timestep to the one a stride before it.
        let factors = |timestep: usize| {
            let now = schedule.alpha_cumprod(timestep.min(schedule.last()));
            let next = alpha_cumprod_before(config, schedule, timestep, stride);
            let divisor = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
            let (keep, noise) = ((next / now).sqrt(), (now - next) / divisor);
            match combines_outputs {
                true => (keep + noise * (1.0 - now).sqrt(), noise * now.sqrt()),
                false => (keep, noise),
            }
        };
        // Factors of the predictions so far, latest first. The second call's is used only in its own step.
        const WEIGHTS: [&[f64]; 4] = [
            &[1.5, 0.0, -0.5],
            &[23.0 / 12.0, -16.0 / 12.0, 0.0, 5.0 / 12.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, 0.0, -9.0 / 24.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        ];
        let mut timesteps = timesteps::whole(config, n_steps);
        if n_steps > 1 {
            timesteps.insert(1, timesteps[1]);
        }
        let timesteps = &timesteps[n_skipped..];
        let (first_keep, first) = factors(timesteps[0]);
        let steps = timesteps.iter().enumerate().map(|(index, &timestep)| {
            let (keep, predicted) = match index {
                0 => (first_keep, vec![first]),
                1 => {
                    // Heun's correction of the first step, whose start is recovered from its end.
                    let (again, mean) = factors(timestep + stride);
                    let back = again / first_keep;
                    (back, vec![0.5 * mean, 0.5 * mean - back * first])
                }
                _ => {
                    let (keep, factor) = factors(timestep);
                    let weights = WEIGHTS[(index - 2).min(WEIGHTS.len() - 1)];
                    (keep, weights.iter().map(|weight| weight * factor).collect())
                }
            };
            let [alpha, sigma] = shares(schedule, timestep);
            Step {
                prediction: match combines_outputs {
                    true => [0.0, 1.0],
                    false => schedule.to_noise(alpha, sigma),
                },
                keep,
                predicted,
                ..Step::at(
                    timestep as f64,
                    schedule.to_latents(alpha, sigma),
                    [alpha, sigma],
                )
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale: 1.0,
        }
    }

    fn lcm(
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let original = config.original_inference_steps;
        let stride = config.num_train_timesteps / original;
        let timesteps: Vec<_> = (0..n_steps)
            .map(|i| (original - i * original / n_steps) * stride - 1)
            .collect();
        let steps = timesteps.iter().enumerate().skip(n_skipped);
        let steps = steps.map(|(index, &timestep)| {
            let [alpha, sigma] = shares(schedule, timestep);
            let scaled = timestep as f64 * config.timestep_scaling;
            let length = scaled.hypot(SIGMA_DATA);
            let (skip, out) = ((SIGMA_DATA / length).powi(2), scaled / length);
            let [of_latents, of_output] = schedule.to_latents(alpha, sigma);
            let [clean, fresh] = match timesteps.get(index + 1) {
                Some(&next) => shares(schedule, next),
                None => [1.0, 0.0],
            };
            Step {
                keep: clean * (skip + out * of_latents),
                predicted: vec![clean * out * of_output],
                fresh,
                ..Step::at(timestep as f64, [of_latents, of_output], [alpha, sigma])
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale: 1.0,
        }
    }
}

/// α and σ of a timestep.
fn shares(schedule: &NoiseSchedule, timestep: usize) -> [f64; 2] {
    [schedule.alpha(timestep), schedule.sigma(timestep)]
}
/// ᾱ one stride before a timestep; before the first timestep it is ᾱ₀, or 1.
fn alpha_cumprod_before(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    timestep: usize,
    stride: usize,
) -> f64 {
    match timestep.checked_sub(stride) {
        Some(timestep) => schedule.alpha_cumprod(timestep),
        None if config.set_alpha_to_one => 1.0,
        None => schedule.alpha_cumprod(0),
    }
}

/// σ/α at a timestep, interpolated linearly between whole ones.
fn level(schedule: &NoiseSchedule, timestep: f64) -> f64 {
    let at = |t: usize| schedule.sigma(t) / schedule.alpha(t);
    let below = timestep.floor() as usize;
    let above = (below + 1).min(schedule.last());
    at(below) + (at(above) - at(below)) * timestep.fract()
}

#[cfg(test)]
mod tests;
