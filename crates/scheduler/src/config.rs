//! `scheduler_config.json`, as diffusers writes it.

use serde::{Deserialize, Serialize};

/// How the betas run from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Evenly in their square roots (Stable Diffusion).
    ScaledLinear,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise, ε.
    Epsilon,
    /// The velocity, `v = α·ε − σ·x₀` (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
    /// The clean latents, x₀.
    Sample,
}

/// Which of the training timesteps a sampler with fewer steps visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `train / n`, shifted by `steps_offset`.
    Leading,
    /// Evenly from 0 to the last, both included.
    Linspace,
    /// Counted down from the last in steps of `train / n`; one step means the last timestep.
    Trailing,
}

/// The fields of `scheduler_config.json` that matter here. Defaults are those of diffusers'
/// `EulerDiscreteScheduler` with Stable Diffusion's betas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The scheduler class that the folder names.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Timesteps of the diffusion that the network was trained on.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// How the betas run between the two.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps a sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether DDIM's last step ends at ᾱ = 1 instead of ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Whether samplers clip x₀ to ±1. Refused when true: latents are not bounded.
    pub clip_sample: bool,
    /// Whether the schedule was rescaled to end at ᾱ = 0. Refused when true.
    pub rescale_betas_zero_snr: bool,
    /// Whether Euler uses Karras' noise levels. Refused when true.
    pub use_karras_sigmas: bool,
    /// Explicit betas. Refused when present.
    pub trained_betas: Option<Vec<f64>>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "EulerDiscreteScheduler".to_owned(),
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Trailing,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: false,
            trained_betas: None,
        }
    }
}

/// A configuration that cannot be read or asks for what is not implemented.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON of the expected form.
    #[error("scheduler config cannot be read")]
    Json(#[from] serde_json::Error),
    /// An option that would change the result and is not implemented.
    #[error("scheduler option {name} = {value} is not supported; expected {expected}")]
    Unsupported {
        /// Name of the field.
        name: &'static str,
        /// Value found.
        value: String,
        /// What can be handled.
        expected: &'static str,
    },
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// If the text is not such a file, or sets an option that is not supported.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |name, value: String, expected| {
            Err(ConfigError::Unsupported {
                name,
                value,
                expected,
            })
        };
        let no = "false";
        if self.clip_sample {
            return refuse("clip_sample", "true".into(), no);
        }
        if self.rescale_betas_zero_snr {
            return refuse("rescale_betas_zero_snr", "true".into(), no);
        }
        if self.use_karras_sigmas {
            return refuse("use_karras_sigmas", "true".into(), no);
        }
        if self.trained_betas.is_some() {
            return refuse("trained_betas", "a list".into(), "null");
        }
        if self.num_train_timesteps < 2 {
            return refuse(
                "num_train_timesteps",
                self.num_train_timesteps.to_string(),
                "at least 2",
            );
        }
        let betas =
            0.0 < self.beta_start && self.beta_start <= self.beta_end && self.beta_end < 1.0;
        if !betas {
            let value = format!("{}..{}", self.beta_start, self.beta_end);
            return refuse("beta_start..beta_end", value, "0 < start ≤ end < 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sd_turbo_ships() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.24.0.dev0",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
            "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "trailing",
            "timestep_type": "discrete", "trained_betas": null, "use_karras_sigmas": false}"#;
        assert_eq!(
            SchedulerConfig::from_json(text).unwrap(),
            SchedulerConfig::default()
        );
    }

    #[test]
    fn refuses_what_it_does_not_implement_by_name() {
        for (text, name) in [
            (r#"{"use_karras_sigmas": true}"#, "use_karras_sigmas"),
            (r#"{"clip_sample": true}"#, "clip_sample"),
            (
                r#"{"rescale_betas_zero_snr": true}"#,
                "rescale_betas_zero_snr",
            ),
            (r#"{"trained_betas": [0.1]}"#, "trained_betas"),
            (r#"{"beta_end": 2.0}"#, "beta_start..beta_end"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        ] {
            let error = SchedulerConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(SchedulerConfig::from_json(r#"{"beta_schedule": "sigmoid"}"#).is_err());
    }
}
