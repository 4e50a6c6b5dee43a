//! Samplers: from noise to latents in a handful of network calls.

use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{NoiseSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

/// ᾱ of the last timestep where a schedule that ends in pure noise would make σ/α infinite; diffusers' number.
const LEAST_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0;
/// Deviation of the data in the boundary conditions of latent consistency models.
const SIGMA_DATA: f64 = 0.5;

/// One step of a sampler: what the network is given and how its answers are used.
///
/// The network sees `x · input_scale` at `timestep`. What it says becomes a prediction (its output itself, or the
/// clean latents), and the next latents are `x · keep` plus the predictions of this step and some before it, each
/// times its factor, plus new noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The timestep given to the network; Euler's linspace visits fractional ones.
    pub timestep: f64,
    /// What the latents are multiplied by before the network sees them.
    pub input_scale: f64,
    /// Factors of the latents and of the network's output in the prediction.
    pub prediction: [f64; 2],
    /// Factors of the latents and of the network's output in the clean latents that it expects.
    pub clean: [f64; 2],
    /// Factor of the latents in the result.
    pub keep: f64,
    /// Factors of the prediction of this step, of the one before, and so on.
    pub predicted: Vec<f64>,
    /// Factor of new unit noise in the result; 0 in samplers without chance.
    pub fresh: f64,
    /// Shares of clean latents and of unit noise in latents that begin at this step, to paint over an image.
    pub entry: [f64; 2],
}

impl Step {
    /// What the network is given. Shapes as the latents'.
    pub fn input(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.input_scale
    }

    /// What the network's output stands for, in f32. Shapes as the latents'.
    pub fn predict(&self, latents: Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        let [of_latents, of_output] = self.prediction;
        let prediction = output.cast(FloatDType::F32) * of_output;
        if of_latents == 0.0 {
            return prediction;
        }
        prediction + latents.cast(FloatDType::F32) * of_latents
    }

    /// The clean latents that the network expects, in f32. Shapes as the latents'.
    pub fn clean(&self, latents: Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        let [of_latents, of_output] = self.clean;
        latents.cast(FloatDType::F32) * of_latents + output.cast(FloatDType::F32) * of_output
    }

    /// The next latents, combined in f32. With [`fresh`](Self::fresh) not 0, noise times that is to be added.
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

/// The samplers that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// DDIM with η = 0 (Song et al., arXiv 2010.02502, equation 12), as diffusers' `DDIMScheduler`.
    Ddim,
    /// Euler's method on the probability-flow ODE (Karras et al., arXiv 2206.00364, algorithm 2 without noise), as
    /// diffusers' `EulerDiscreteScheduler`: latents are carried as `x₀ + (σ/α)·ε`.
    Euler,
    /// Euler's method down to a lower level of noise, from which new noise leads up again, as diffusers'
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2), as diffusers' `DPMSolverMultistepScheduler` with
    /// its defaults: two predictions, the midpoint rule, first order in the first step and in the last, which
    /// ends at the predicted latents.
    DpmSolver,
    /// Pseudo linear multi-step sampling (Liu et al., arXiv 2202.09778, with the start of its appendix), as
    /// diffusers' `PNDMScheduler` with `skip_prk_steps`: the second timestep is visited twice, so the network
    /// is called once more than there are steps, unless that is one.
    Pndm,
    /// Multi-step sampling of latent consistency models (Luo et al., arXiv 2310.04378, algorithm 3), as diffusers'
    /// `LCMScheduler`: each step predicts clean latents and adds new noise to them.
    Lcm,
}

impl SamplerKind {
    /// The sampler that a scheduler class of diffusers is.
    pub fn of_class(name: &str) -> Option<Self> {
        Some(match name {
            "DDIMScheduler" => Self::Ddim,
            "EulerDiscreteScheduler" => Self::Euler,
            "EulerAncestralDiscreteScheduler" => Self::EulerAncestral,
            "DPMSolverMultistepScheduler" => Self::DpmSolver,
            "PNDMScheduler" => Self::Pndm,
            "LCMScheduler" => Self::Lcm,
            _ => return None,
        })
    }

    /// The most steps that it can take.
    pub fn max_steps(self, config: &SchedulerConfig) -> usize {
        match self {
            // With as many as there are timesteps, one would be visited twice.
            Self::DpmSolver => config.num_train_timesteps - 1,
            Self::Lcm => config.original_inference_steps,
            _ => config.num_train_timesteps,
        }
    }
}

/// A sampler as a list of [`Step`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    steps: Vec<Step>,
    initial_scale: f64,
}

impl Sampler {
    /// A sampler from pure noise.
    ///
    /// # Panics
    ///
    /// If `n_steps` is zero or more than [`SamplerKind::max_steps`], or if PNDM is asked of a schedule that ends at
    /// ᾱ = 0, where it divides by 0.
    pub fn new(kind: SamplerKind, config: &SchedulerConfig, n_steps: usize) -> Self {
        Self::after(kind, config, n_steps, 0)
    }

    /// What is left of a sampler of `n_steps` when its first `n_skipped` are left out, because the latents that it
    /// begins with are those of an image with as much noise as there would be.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new), or if no step is left.
    pub fn after(
        kind: SamplerKind,
        config: &SchedulerConfig,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let most = kind.max_steps(config);
        assert!(
            (1..=most).contains(&n_steps),
            "{n_steps} steps: there are 1 to {most}"
        );
        assert!(n_skipped < n_steps, "none of {n_steps} steps is left");
        let schedule = NoiseSchedule::new(config);
        match kind {
            SamplerKind::Ddim => Self::ddim(config, &schedule, n_steps, n_skipped),
            SamplerKind::Euler => Self::euler(config, schedule, n_steps, n_skipped, false),
            SamplerKind::EulerAncestral => Self::euler(config, schedule, n_steps, n_skipped, true),
            SamplerKind::DpmSolver => Self::dpm_solver(config, schedule, n_steps, n_skipped),
            SamplerKind::Pndm => Self::pndm(config, &schedule, n_steps, n_skipped),
            SamplerKind::Lcm => Self::lcm(config, &schedule, n_steps, n_skipped),
        }
    }

    fn ddim(
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        let stride = config.num_train_timesteps / n_steps;
        let timesteps = whole_timesteps(config, n_steps);
        let steps = timesteps.into_iter().skip(n_skipped).map(|timestep| {
            let [alpha, sigma] = shares(schedule, timestep);
            let next = alpha_cumprod_before(config, schedule, timestep, stride);
            let clean = schedule.to_latents(alpha, sigma);
            let noise = schedule.to_noise(alpha, sigma);
            let mix = |i: usize| next.sqrt() * clean[i] + (1.0 - next).sqrt() * noise[i];
            Step {
                keep: mix(0),
                predicted: vec![mix(1)],
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
        let timesteps = fractional_timesteps(config, n_steps);
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
            // The network sees x/√(σ² + 1), in which these are the shares; the noise is the slope.
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
        let timesteps = &solver_timesteps(config, n_steps)[n_skipped..];
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

    /// PNDM advances `x ← keep·x + factor·prediction`, where the prediction is combined of up to four. For noise
    /// the paper's equation 11 is rearranged; for velocity the network's outputs are combined, as in diffusers, and
    /// the noise follows from the latents of the moment. When steps are skipped, the start still visits the
    /// timestep before the second, as diffusers' does.
    fn pndm(
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        n_steps: usize,
        n_skipped: usize,
    ) -> Self {
        assert!(!config.rescale_betas_zero_snr, "PNDM cannot begin at ᾱ = 0");
        let stride = config.num_train_timesteps / n_steps;
        let combines_outputs = config.prediction_type == PredictionType::VPrediction;
        // From a timestep to that a stride before it.
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
        // Of the predictions so far, the latest first. The one of the second call is used there alone.
        const WEIGHTS: [&[f64]; 4] = [
            &[1.5, 0.0, -0.5],
            &[23.0 / 12.0, -16.0 / 12.0, 0.0, 5.0 / 12.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, 0.0, -9.0 / 24.0],
            &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        ];
        let mut timesteps = whole_timesteps(config, n_steps);
        if n_steps > 1 {
            timesteps.insert(1, timesteps[1]);
        }
        let timesteps = &timesteps[n_skipped..];
        let (first_keep, first) = factors(timesteps[0]);
        let steps = timesteps.iter().enumerate().map(|(index, &timestep)| {
            let (keep, predicted) = match index {
                0 => (first_keep, vec![first]),
                1 => {
                    // Heun's correction of the first step: its own beginning is had back from where it led.
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
}

impl Step {
    /// A step that predicts what the network says and adds nothing.
    fn at(timestep: f64, clean: [f64; 2], entry: [f64; 2]) -> Self {
        Self {
            timestep,
            input_scale: 1.0,
            prediction: [0.0, 1.0],
            clean,
            keep: 1.0,
            predicted: Vec::new(),
            fresh: 0.0,
            entry,
        }
    }
}

/// α and σ of a timestep.
fn shares(schedule: &NoiseSchedule, timestep: usize) -> [f64; 2] {
    [schedule.alpha(timestep), schedule.sigma(timestep)]
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

fn fractional_timesteps(config: &SchedulerConfig, n_steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
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
    let train = config.num_train_timesteps;
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
        let euler = Sampler::new(SamplerKind::Euler, &config, 1);
        assert_eq!(euler.steps[0].timestep, 999.0);
        assert!((euler.initial_scale - 14.614_641).abs() < 1e-5);
        // SD-Turbo: x̂₀ = (σ/α)·(z − ε); the network is fed σ·z.
        assert!(
            (euler.initial_scale * euler.steps[0].input_scale - schedule.sigma(999)).abs() < 1e-12
        );
        assert!((euler.steps[0].predicted[0] + euler.initial_scale).abs() < 1e-12);
    }

    const KINDS: [SamplerKind; 6] = [
        SamplerKind::Ddim,
        SamplerKind::Euler,
        SamplerKind::EulerAncestral,
        SamplerKind::DpmSolver,
        SamplerKind::Pndm,
        SamplerKind::Lcm,
    ];

    /// Latents that begin anywhere as the sampler says, and a network that is right: the clean latents come out,
    /// whatever the network predicts. New noise is left out, so samplers that add it are tried with one step.
    #[test]
    fn with_a_true_network_every_sampler_returns_the_clean_latents() {
        let (x0, noise) = (0.7, -1.3);
        for prediction_type in [
            PredictionType::Epsilon,
            PredictionType::VPrediction,
            PredictionType::Sample,
        ] {
            let config = SchedulerConfig {
                set_alpha_to_one: true,
                prediction_type,
                // The boundary condition of a consistency model keeps some of the noise otherwise.
                timestep_scaling: 1e9,
                ..Default::default()
            };
            for (kind, n_steps, n_skipped) in KINDS.into_iter().flat_map(|kind| {
                [(1, 0), (2, 0), (4, 0), (25, 0), (25, 24)].map(|(n, s)| (kind, n, s))
            }) {
                let sampler = Sampler::after(kind, &config, n_steps, n_skipped);
                if sampler.steps.len() > 1 && sampler.steps[0].fresh != 0.0 {
                    continue;
                }
                // diffusers' PNDM goes astray when it begins in the middle.
                if kind == SamplerKind::Pndm && n_skipped > 0 {
                    continue;
                }
                let [clean, level] = sampler.steps[0].entry;
                let mut x = clean * x0 + level * noise;
                let mut predictions = Vec::new();
                for step in &sampler.steps {
                    let input = x * step.input_scale;
                    // Of x = a·x₀ + s·ε with a² + s² = 1, as the network sees it.
                    let (alpha, sigma) = {
                        let [clean, level] = step.entry;
                        (clean * step.input_scale, level * step.input_scale)
                    };
                    let noise = (input - alpha * x0) / sigma;
                    let output = match prediction_type {
                        PredictionType::Epsilon => noise,
                        PredictionType::VPrediction => alpha * noise - sigma * x0,
                        PredictionType::Sample => x0,
                    };
                    let [of_latents, of_output] = step.prediction;
                    predictions.insert(0, of_latents * x + of_output * output);
                    let terms = step.predicted.iter().zip(&predictions);
                    x = x * step.keep + terms.map(|(factor, value)| factor * value).sum::<f64>();
                }
                let case = format!("{kind:?} {prediction_type:?} {n_steps} {n_skipped}");
                let velocity_by_pndm = kind == SamplerKind::Pndm
                    && prediction_type == PredictionType::VPrediction
                    && n_steps > 1;
                // Velocities of different timesteps are not the same even if all are true.
                let tolerance = if velocity_by_pndm { 0.5 } else { 1e-6 };
                assert!((x - x0).abs() < tolerance, "{case} ends at {x}");
            }
        }
    }
}
