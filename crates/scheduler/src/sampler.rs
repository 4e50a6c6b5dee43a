//! Deterministic samplers: from noise to latents in a handful of network calls.

use burn::tensor::{FloatDType, Tensor};

use crate::{NoiseSchedule, SchedulerConfig, TimestepSpacing};

/// One step of a sampler: what the network is given and how its answer is used.
///
/// The network sees `x · input_scale` at `timestep`; with ε̂ its answer, the next latents are
/// `x · keep + ε̂ · noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The timestep given to the network; Euler's linspace visits fractional ones.
    pub timestep: f64,
    /// What the latents are multiplied by before the network sees them.
    pub input_scale: f64,
    /// Factor of the latents in the result.
    pub keep: f64,
    /// Factor of the predicted noise in the result.
    pub noise: f64,
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
    /// - latents, noise, and the result: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    pub fn advance(&self, latents: Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
        assert_eq!(
            latents.dims(),
            noise.dims(),
            "latents and noise differ in shape"
        );
        let dtype = latents.dtype();
        let next =
            latents.cast(FloatDType::F32) * self.keep + noise.cast(FloatDType::F32) * self.noise;
        next.cast(dtype)
    }
}

/// A sampler that runs through a list of [`Step`]s.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampler {
    /// See [`Ddim`].
    Ddim(Ddim),
    /// See [`Euler`].
    Euler(Euler),
}

impl Sampler {
    /// The sampler that stands for a scheduler class of diffusers: Euler for `EulerDiscreteScheduler`,
    /// DDIM for every other, since with the deterministic rule it needs nothing but the schedule.
    pub fn for_class(config: &SchedulerConfig, n_steps: usize) -> Self {
        match config.class_name.as_str() {
            "EulerDiscreteScheduler" => Self::Euler(Euler::new(config, n_steps)),
            _ => Self::Ddim(Ddim::new(config, n_steps)),
        }
    }

    /// The steps, first to last.
    pub fn steps(&self) -> &[Step] {
        match self {
            Self::Ddim(sampler) => &sampler.steps,
            Self::Euler(sampler) => &sampler.steps,
        }
    }

    /// What unit noise is multiplied by to start.
    pub fn initial_scale(&self) -> f64 {
        match self {
            Self::Ddim(_) => 1.0,
            Self::Euler(sampler) => sampler.initial_scale,
        }
    }
}

/// DDIM with η = 0 (Song et al., arXiv 2010.02502, equation 12), as diffusers' `DDIMScheduler`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ddim {
    steps: Vec<Step>,
}

impl Ddim {
    /// A run of `n_steps`.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than the training timesteps.
    pub fn new(config: &SchedulerConfig, n_steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let stride = config.num_train_timesteps / n_steps;
        let end = if config.set_alpha_to_one {
            1.0
        } else {
            schedule.alpha_cumprod(0)
        };
        let steps = whole_timesteps(config, n_steps)
            .into_iter()
            .map(|timestep| {
                let now = schedule.alpha_cumprod(timestep);
                let next = timestep
                    .checked_sub(stride)
                    .map_or(end, |t| schedule.alpha_cumprod(t));
                let keep = (next / now).sqrt();
                let noise = (1.0 - next).sqrt() - keep * (1.0 - now).sqrt();
                Step {
                    timestep: timestep as f64,
                    input_scale: 1.0,
                    keep,
                    noise,
                }
            })
            .collect();
        Self { steps }
    }
}

/// Euler's method on the probability-flow ODE (Karras et al., arXiv 2206.00364, algorithm 2 without
/// noise), as diffusers' `EulerDiscreteScheduler`: latents are carried as `x₀ + (σ/α)·ε`.
#[derive(Clone, Debug, PartialEq)]
pub struct Euler {
    steps: Vec<Step>,
    initial_scale: f64,
}

impl Euler {
    /// A run of `n_steps`.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than the training timesteps.
    pub fn new(config: &SchedulerConfig, n_steps: usize) -> Self {
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
                noise: next - level,
            })
            .collect();
        Self {
            steps,
            initial_scale,
        }
    }
}

/// σ/α at a timestep, interpolated between whole ones.
fn level(schedule: &NoiseSchedule, timestep: f64) -> f64 {
    let at = |t: usize| schedule.sigma(t) / schedule.alpha(t);
    let below = timestep.floor() as usize;
    let above = (below + 1).min(schedule.last());
    at(below) + (at(above) - at(below)) * timestep.fract()
}

fn fractional_timesteps(config: &SchedulerConfig, n_steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    assert!(
        (1..=train).contains(&n_steps),
        "{n_steps} steps: there are 1 to {train}"
    );
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
    let train = config.num_train_timesteps;
    assert!(
        (1..=train).contains(&n_steps),
        "{n_steps} steps: there are 1 to {train}"
    );
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
        let euler = Euler::new(&config, 1);
        assert_eq!(euler.steps[0].timestep, 999.0);
        assert!((euler.initial_scale - 14.614_641).abs() < 1e-5);
        // SD-Turbo: x̂₀ = (σ/α)·(z − ε); the network is fed σ·z.
        assert!(
            (euler.initial_scale * euler.steps[0].input_scale - schedule.sigma(999)).abs() < 1e-12
        );
        assert!((euler.steps[0].noise + euler.initial_scale).abs() < 1e-12);
    }

    #[test]
    fn ddim_with_the_true_noise_returns_the_clean_latents() {
        let config = SchedulerConfig {
            set_alpha_to_one: true,
            ..Default::default()
        };
        let schedule = NoiseSchedule::new(&config);
        for n_steps in [1, 4, 25] {
            let (x0, noise) = (0.7, -1.3);
            let x = schedule.alpha(999) * x0 + schedule.sigma(999) * noise;
            let end = Ddim::new(&config, n_steps)
                .steps
                .iter()
                .fold(x, |x, step| x * step.keep + noise * step.noise);
            assert!((end - x0).abs() < 1e-9, "{n_steps} steps end at {end}");
        }
    }
}
