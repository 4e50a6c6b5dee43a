//! Checks of a configuration, for all samplers and for one.

use super::{PredictionType, SchedulerConfig};
use crate::{ConfigError, SamplerKind, class};

/// The maximum number of timesteps, which limits the size of tables.
const MAX_TIMESTEPS: usize = 100_000;

impl SchedulerConfig {
    /// Checks the noise schedule, which every sampler uses.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let check = |holds: bool, name: &str, value: String, expected: &str| match holds {
            true => Ok(()),
            false => Err(ConfigError::unsupported(name, value, expected)),
        };
        check(
            (2..=MAX_TIMESTEPS).contains(&self.num_train_timesteps),
            "num_train_timesteps",
            self.num_train_timesteps.to_string(),
            "2 to 100000",
        )?;
        check(
            0.0 < self.beta_start && self.beta_start <= self.beta_end && self.beta_end < 1.0,
            "beta_start..beta_end",
            format!("{}..{}", self.beta_start, self.beta_end),
            "0 < start ≤ end < 1",
        )?;
        check(
            !self.rescale_betas_zero_snr || self.prediction_type != PredictionType::Epsilon,
            "prediction_type",
            "epsilon".to_owned(),
            "v_prediction or sample with rescale_betas_zero_snr",
        )?;
        check(
            self.steps_offset <= self.num_train_timesteps,
            "steps_offset",
            self.steps_offset.to_string(),
            "at most num_train_timesteps",
        )?;
        check(
            (1..=self.num_train_timesteps).contains(&self.original_inference_steps),
            "original_inference_steps",
            self.original_inference_steps.to_string(),
            "1 to num_train_timesteps",
        )?;
        let scales = [self.timestep_scaling, self.clip_sample_range];
        check(
            scales.iter().all(|scale| scale.is_finite() && *scale > 0.0),
            "timestep_scaling, clip_sample_range",
            format!("{scales:?}"),
            "positive numbers",
        )?;
        match self.unsupported.get("use_flow_sigmas") {
            Some(value) => check(false, "use_flow_sigmas", value.to_string(), "false"),
            None => Ok(()),
        }
    }

    /// Checks the fields and options used by one sampler.
    pub(super) fn check_for(&self, kind: SamplerKind) -> Result<(), ConfigError> {
        let refuse = |name: &str, value: String, expected: &str| {
            Err(ConfigError::unsupported(name, value, expected))
        };
        let mut options = self.unsupported.iter();
        let option = options.find_map(|(name, value)| {
            let option = class::switched_off(name).filter(|option| option.concerns(kind))?;
            Some((option, value))
        });
        if let Some((option, value)) = option {
            return refuse(option.name, value.to_string(), &option.expected());
        }
        let is_sample = self.prediction_type == PredictionType::Sample;
        match kind {
            SamplerKind::Pndm if !self.skip_prk_steps => {
                let expected = "true for pndm (false is the default of PNDMScheduler); or choose another sampler";
                refuse("skip_prk_steps", "false".to_owned(), expected)
            }
            SamplerKind::Pndm if self.rescale_betas_zero_snr => {
                let expected = "false for pndm, which divides by zero if the schedule ends in pure noise; or choose another sampler";
                refuse("rescale_betas_zero_snr", "true".to_owned(), expected)
            }
            SamplerKind::Pndm | SamplerKind::EulerAncestral if is_sample => {
                let expected = format!("epsilon or v_prediction for {kind}");
                refuse("prediction_type", "sample".to_owned(), &expected)
            }
            SamplerKind::Lcm if self.clip_sample => {
                refuse("clip_sample", "true".to_owned(), "false for lcm")
            }
            _ => Ok(()),
        }
    }
}
