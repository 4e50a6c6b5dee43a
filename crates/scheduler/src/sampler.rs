//! Deterministic samplers: from noise to latents in a handful of network calls.

use burn::tensor::{FloatDType, Tensor};

use crate::{NoiseSchedule, SchedulerConfig, TimestepSpacing};

/// One step of a sampler: what the network is given and how its answers are used.
///
/// The network sees `x · input_scale` at `timestep`; the next latents are `x · keep` plus what was
/// predicted in this step and some before it, each times its factor.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The timestep given to the network; Euler's linspace visits fractional ones.
    pub timestep: f64,
    /// What the latents are multiplied by before the network sees them.
    pub input_scale: f64,
    /// Factor of the latents in the result.
    pub keep: f64,
    /// Factors of what was predicted in this step, in the one before, and so on; see [`Sampler::predicts`].
    pub predicted: Vec<f64>,
}

impl Step {
    /// What the network is given. Shapes as the latents'.
    pub fn input(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.input_scale
    }

    /// The next latents, combined in f32.
    ///
    /// # Shapes
    ///
    /// - latents, all predictions (the latest first), and the result: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shapes differ, or there are fewer predictions than factors.
    pub fn advance(&self, latents: Tensor<4>, predictions: &[Tensor<4>]) -> Tensor<4> {
        assert!(
            predictions.len() >= self.predicted.len(),
            "this step needs {} predictions, there are {}",
            self.predicted.len(),
            predictions.len()
        );
        let dtype = latents.dtype();
        let start = latents.cast(FloatDType::F32) * self.keep;
        let terms = predictions.iter().zip(&self.predicted);
        let next = terms.fold(start, |sum, (prediction, &factor)| {
            assert_eq!(
                sum.dims(),
                prediction.dims(),
                "latents and predictions differ in shape"
            );
            sum + prediction.clone().cast(FloatDType::F32) * factor
        });
        next.cast(dtype)
    }
}

/// What the factors of a sampler's steps are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predicts {
    /// The predicted noise, ε̂.
    Noise,
    /// The predicted clean latents, x̂₀.
    Latents,
}

/// A sampler as a list of [`Step`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    steps: Vec<Step>,
    initial_scale: f64,
    predicts: Predicts,
}

impl Sampler {
    /// DDIM with η = 0 (Song et al., arXiv 2010.02502, equation 12), as diffusers' `DDIMScheduler`.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than the training timesteps.
    pub fn ddim(config: &SchedulerConfig, n_steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let stride = train_timesteps(config, n_steps) / n_steps;
        let steps = whole_timesteps(config, n_steps)
            .into_iter()
            .map(|timestep| {
                let now = schedule.alpha_cumprod(timestep);
                let next = alpha_cumprod_before(config, &schedule, timestep, stride);
                let keep = (next / now).sqrt();
                let noise = (1.0 - next).sqrt() - keep * (1.0 - now).sqrt();
                Step {
                    timestep: timestep as f64,
                    input_scale: 1.0,
                    keep,
                    predicted: vec![noise],
                }
            })
            .collect();
        Self {
            steps,
            initial_scale: 1.0,
            predicts: Predicts::Noise,
        }
    }

    /// Euler's method on the probability-flow ODE (Karras et al., arXiv 2206.00364, algorithm 2 without
    /// noise), as diffusers' `EulerDiscreteScheduler`: latents are carried as `x₀ + (σ/α)·ε`.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than the training timesteps.
    pub fn euler(config: &SchedulerConfig, n_steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let timesteps = fractional_timesteps(config, n_steps);
        let levels: Vec<f64> = timesteps.iter().map(|&t| level(&schedule, t)).collect();
        let highest = levels.iter().copied().fold(0.0, f64::max);
        let initial_scale = match config.timestep_spacing {
            TimestepSpacing::Leading => (highest.powi(2) + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => highest,
        };
        let next = levels.iter().copied().skip(1).chain([0.0]);
        let steps = timesteps
            .iter()
            .zip(&levels)
            .zip(next)
            .map(|((&timestep, &level), next)| Step {
                timestep,
                input_scale: 1.0 / (level.powi(2) + 1.0).sqrt(),
                keep: 1.0,
                predicted: vec![next - level],
            })
            .collect();
        Self {
            steps,
            initial_scale,
            predicts: Predicts::Noise,
        }
    }

    /// DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2), as diffusers'
    /// `DPMSolverMultistepScheduler` with its defaults: two predictions, the midpoint rule, first order in
    /// the first step and in the last, which ends at the predicted latents.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero, or not less than the training timesteps: some would be visited twice.
    pub fn dpm_solver(config: &SchedulerConfig, n_steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let timesteps = solver_timesteps(config, n_steps);
        let log_ratio = |t: usize| (schedule.alpha(t) / schedule.sigma(t)).ln();
        let steps = (0..n_steps).map(|i| {
            let now = timesteps[i];
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
            Step {
                timestep: now as f64,
                input_scale: 1.0,
                keep,
                predicted,
            }
        });
        Self {
            steps: steps.collect(),
            initial_scale: 1.0,
            predicts: Predicts::Latents,
        }
    }

    /// Pseudo linear multi-step sampling (Liu et al., arXiv 2202.09778, with the start of its appendix), as
    /// diffusers' `PNDMScheduler` with `skip_prk_steps`: the second timestep is visited twice, so the network
    /// is called once more than `n_steps`, unless that is one.
    ///
    /// The steps are diffusers' for models that predict noise. For others it combines what the network says,
    /// here the noise that follows from it is combined.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than the training timesteps.
    pub fn pndm(config: &SchedulerConfig, n_steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let stride = train_timesteps(config, n_steps) / n_steps;
        // x ← keep·x + noise·ε from a timestep to that a stride before it.
        let factors = |timestep: usize| {
            let now = schedule.alpha_cumprod(timestep.min(schedule.last()));
            let next = alpha_cumprod_before(config, &schedule, timestep, stride);
            let divisor = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
            ((next / now).sqrt(), (now - next) / divisor)
        };
        // Of the predictions so far, the latest first. The one of the second call is used there alone.
        const WEIGHTS: [&[f64]; 4] = [
            &[1.5, 0.0, -0.5],
            &[23.0 / 12.0, -16.0 / 12.0, 0.0, 5.0 / 12.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, 0.0, -9.0 / 24.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        ];
        let timesteps = whole_timesteps(config, n_steps);
        let mut steps = Vec::with_capacity(n_steps + 1);
        let mut push = |timestep: usize, keep, predicted| {
            steps.push(Step {
                timestep: timestep as f64,
                input_scale: 1.0,
                keep,
                predicted,
            });
        };
        let (keep, noise) = factors(timesteps[0]);
        push(timesteps[0], keep, vec![noise]);
        if let Some(&second) = timesteps.get(1) {
            // Heun's correction of the first step: its own beginning is had back from where it led.
            let (again, mean) = factors(second + stride);
            let back = again / keep;
            let predicted = vec![0.5 * mean, 0.5 * mean - back * noise];
            push(second, back, predicted);
        }
        for (index, &timestep) in timesteps.iter().skip(1).enumerate() {
            let (keep, noise) = factors(timestep);
            let weights = WEIGHTS[index.min(WEIGHTS.len() - 1)];
            let predicted = weights.iter().map(|weight| weight * noise).collect();
            push(timestep, keep, predicted);
        }
        Self {
            steps,
            initial_scale: 1.0,
            predicts: Predicts::Noise,
        }
    }

    /// The steps, first to last.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What unit noise is multiplied by to start.
    pub fn initial_scale(&self) -> f64 {
        self.initial_scale
    }

    /// How many predictions the step with the longest memory combines.
    pub fn memory(&self) -> usize {
        let lengths = self.steps.iter().map(|step| step.predicted.len());
        lengths.max().unwrap_or_default()
    }

    /// What the steps combine with the latents.
    pub fn predicts(&self) -> Predicts {
        self.predicts
    }
}

/// ᾱ a stride before a timestep; before the first it is that of the first, or 1.
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

/// σ/α at a timestep, interpolated between whole ones.
fn level(schedule: &NoiseSchedule, timestep: f64) -> f64 {
    let at = |t: usize| schedule.sigma(t) / schedule.alpha(t);
    let below = timestep.floor() as usize;
    let above = (below + 1).min(schedule.last());
    at(below) + (at(above) - at(below)) * timestep.fract()
}

/// Timesteps of the training, of which a sampler can visit so many.
fn train_timesteps(config: &SchedulerConfig, n_steps: usize) -> usize {
    let train = config.num_train_timesteps;
    assert!(
        (1..=train).contains(&n_steps),
        "{n_steps} steps: there are 1 to {train}"
    );
    train
}

fn fractional_timesteps(config: &SchedulerConfig, n_steps: usize) -> Vec<f64> {
    let train = train_timesteps(config, n_steps);
    if config.timestep_spacing == TimestepSpacing::Linspace {
        let last = (train - 1) as f64;
        return match n_steps {
            1 => vec![0.0],
            n => (0..n)
                .rev()
                .map(|i| last * i as f64 / (n - 1) as f64)
                .collect(),
        };
    }
    whole_timesteps(config, n_steps)
        .into_iter()
        .map(|t| t as f64)
        .collect()
}

fn whole_timesteps(config: &SchedulerConfig, n_steps: usize) -> Vec<usize> {
    let train = train_timesteps(config, n_steps);
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = train / n_steps;
            (0..n_steps)
                .rev()
                .map(|i| (i * stride + config.steps_offset).min(train - 1))
                .collect()
        }
        TimestepSpacing::Linspace => {
            let last = (train - 1) as f64;
            let stride = if n_steps == 1 {
                0.0
            } else {
                last / (n_steps - 1) as f64
            };
            (0..n_steps)
                .rev()
                .map(|i| round_half_even(i as f64 * stride))
                .collect()
        }
        TimestepSpacing::Trailing => {
            let stride = train as f64 / n_steps as f64;
            (0..n_steps)
                .map(|i| round_half_even(train as f64 - i as f64 * stride) - 1)
                .collect()
        }
    }
}

/// DPM-Solver's: one more than the steps, of which the last, where it ends, is left out.
fn solver_timesteps(config: &SchedulerConfig, n_steps: usize) -> Vec<usize> {
    let train = train_timesteps(config, n_steps);
    assert!(
        n_steps < train,
        "{n_steps} steps: there are 1 to {}",
        train - 1
    );
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = train / (n_steps + 1);
            (1..=n_steps)
                .rev()
                .map(|i| (i * stride + config.steps_offset).min(train - 1))
                .collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (train - 1) as f64 / n_steps as f64;
            (1..=n_steps)
                .rev()
                .map(|i| round_half_even(i as f64 * stride))
                .collect()
        }
        TimestepSpacing::Trailing => whole_timesteps(config, n_steps),
    }
}

/// numpy's `round`.
fn round_half_even(x: f64) -> usize {
    x.round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_step_is_the_one_step_rule() {
        let config = SchedulerConfig::default();
        let schedule = NoiseSchedule::new(&config);
        let euler = Sampler::euler(&config, 1);
        assert_eq!(euler.steps[0].timestep, 999.0);
        assert!((euler.initial_scale - 14.614_641).abs() < 1e-5);
        // SD-Turbo: x̂₀ = (σ/α)·(z − ε); the network is fed σ·z.
        assert!(
            (euler.initial_scale * euler.steps[0].input_scale - schedule.sigma(999)).abs() < 1e-12
        );
        assert!((euler.steps[0].predicted[0] + euler.initial_scale).abs() < 1e-12);
    }

    #[test]
    fn with_the_true_noise_every_sampler_returns_the_clean_latents() {
        let config = SchedulerConfig {
            set_alpha_to_one: true,
            ..Default::default()
        };
        let schedule = NoiseSchedule::new(&config);
        for n_steps in [1, 2, 4, 25] {
            for sampler in [
                Sampler::ddim(&config, n_steps),
                Sampler::dpm_solver(&config, n_steps),
                Sampler::pndm(&config, n_steps),
            ] {
                let (x0, noise) = (0.7, -1.3);
                let predicted = match sampler.predicts {
                    Predicts::Noise => noise,
                    Predicts::Latents => x0,
                };
                let x = schedule.alpha(999) * x0 + schedule.sigma(999) * noise;
                let end = sampler.steps.iter().fold(x, |x, step| {
                    x * step.keep + predicted * step.predicted.iter().sum::<f64>()
                });
                assert!((end - x0).abs() < 1e-9, "{sampler:?} ends at {end}");
            }
        }
    }
}
