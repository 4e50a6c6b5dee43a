//! `scheduler_config.json`, as diffusers writes it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::SamplerKind;

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

/// The fields of `scheduler_config.json` that matter here. [`Default`] is what SD-Turbo ships; what a file does not
/// say is as the scheduler class takes it that the file names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Whether the last step of DDIM and PNDM ends at ᾱ = 1 instead of ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Whether the schedule is rescaled to end in pure noise, ᾱ_T = 0 (Lin et al., arXiv 2305.08891, algorithm 1).
    /// A network that predicts noise says nothing there, so it must not.
    pub rescale_betas_zero_snr: bool,
    /// Steps of the grid on which a latent consistency model was trained.
    pub original_inference_steps: usize,
    /// What timesteps are multiplied by in the boundary conditions of a latent consistency model.
    pub timestep_scaling: f64,
    /// Whether samplers clip x₀ to ±1. Refused when true: latents are not bounded.
    pub clip_sample: bool,
    /// Whether PNDM begins without Runge-Kutta steps. Refused when false and the class is PNDM.
    pub skip_prk_steps: bool,
    /// Whether noise levels are Karras'. Refused when true.
    pub use_karras_sigmas: bool,
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
            rescale_betas_zero_snr: false,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            clip_sample: false,
            skip_prk_steps: true,
            use_karras_sigmas: false,
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
        name: String,
        /// Value found.
        value: String,
        /// What can be handled.
        expected: String,
    },
}

impl ConfigError {
    fn unsupported(name: &str, value: impl ToString, expected: &str) -> Self {
        Self::Unsupported {
            name: name.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        }
    }
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// Of the schedulers that are implemented here every option is known, and one that would change the result is
    /// refused. Of others only the noise schedule is taken.
    ///
    /// # Errors
    ///
    /// If the text is not such a file, or sets an option that is not supported.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        // diffusers writes numbers that JSON does not have.
        let text = text.replace("-Infinity", "null");
        let file: Map<String, Value> = serde_json::from_str(&text)?;
        let class = file.get("_class_name").and_then(Value::as_str);
        let unsaid = Self::unsaid(class.unwrap_or_default());
        let is_ours = SamplerKind::of_class(&unsaid.class_name).is_some();
        let mut all: Map<String, Value> = serde_json::from_value(serde_json::to_value(&unsaid)?)?;
        for (name, value) in file {
            if let Some(field) = all.get_mut(&name) {
                *field = value;
            } else if is_ours {
                check_option(&name, &value)?;
            }
        }
        let config: Self = serde_json::from_value(Value::Object(all))?;
        config.check()?;
        Ok(config)
    }

    /// What diffusers' class of that name takes for options that a file leaves out.
    fn unsaid(class: &str) -> Self {
        let diffusers = Self {
            class_name: class.to_owned(),
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            skip_prk_steps: false,
            ..Self::default()
        };
        let linspace = TimestepSpacing::Linspace;
        match class {
            "DDIMScheduler" => Self {
                clip_sample: true,
                set_alpha_to_one: true,
                ..diffusers
            },
            "PNDMScheduler" | "DDPMScheduler" => diffusers,
            "EulerDiscreteScheduler"
            | "EulerAncestralDiscreteScheduler"
            | "DPMSolverMultistepScheduler" => Self {
                timestep_spacing: linspace,
                ..diffusers
            },
            "LCMScheduler" => Self {
                set_alpha_to_one: true,
                timestep_spacing: TimestepSpacing::Leading,
                steps_offset: 0,
                class_name: class.to_owned(),
                ..Self::default()
            },
            "" => Self::default(),
            _ => Self {
                class_name: class.to_owned(),
                ..Self::default()
            },
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |name, value: String, expected| Err(ConfigError::unsupported(name, value, expected));
        if self.clip_sample {
            return refuse("clip_sample", "true".into(), "false");
        }
        if self.use_karras_sigmas {
            return refuse("use_karras_sigmas", "true".into(), "false");
        }
        if self.class_name == "PNDMScheduler" && !self.skip_prk_steps {
            return refuse("skip_prk_steps", "false".into(), "true");
        }
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let expected = "v_prediction or sample with rescale_betas_zero_snr";
            return refuse("prediction_type", "epsilon".into(), expected);
        }
        if self.num_train_timesteps < 2 {
            let found = self.num_train_timesteps.to_string();
            return refuse("num_train_timesteps", found, "at least 2");
        }
        if !(1..=self.num_train_timesteps).contains(&self.original_inference_steps) {
            let found = self.original_inference_steps.to_string();
            return refuse(
                "original_inference_steps",
                found,
                "1 to num_train_timesteps",
            );
        }
        if !self.timestep_scaling.is_finite() {
            let found = self.timestep_scaling.to_string();
            return refuse("timestep_scaling", found, "a number");
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

/// Options of diffusers that are passed at the values at which they change nothing here.
fn check_option(name: &str, value: &Value) -> Result<(), ConfigError> {
    let accepted = match name {
        "algorithm_type" => json!("dpmsolver++"),
        "final_sigmas_type" => json!("zero"),
        "interpolation_type" => json!("linear"),
        "solver_order" => json!(2),
        "solver_type" => json!("midpoint"),
        "thresholding"
        | "use_beta_sigmas"
        | "use_dynamic_shifting"
        | "use_exponential_sigmas"
        | "use_flow_sigmas"
        | "use_lu_lambdas" => json!(false),
        "timestep_type" => json!("discrete"),
        // These belong to options that are off, or to what the last step, which ends at σ = 0, does anyway.
        "clip_sample_range"
        | "dynamic_thresholding_ratio"
        | "euler_at_final"
        | "flow_shift"
        | "lower_order_final"
        | "sample_max_value"
        | "time_shift_type"
        | "variance_type" => {
            return Ok(());
        }
        _ if name.starts_with('_') || value.is_null() => return Ok(()),
        _ => {
            return Err(ConfigError::unsupported(
                name,
                value,
                "an option that is known",
            ));
        }
    };
    if value.is_null() || *value == accepted {
        Ok(())
    } else {
        Err(ConfigError::unsupported(name, value, &accepted.to_string()))
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

    /// `lambda_min_clipped` is written as `-Infinity`, which JSON does not have.
    #[test]
    fn reads_what_diffusers_writes_for_its_solver() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
            "lambda_min_clipped": -Infinity, "lower_order_final": true, "solver_order": 2,
            "thresholding": false, "variance_type": null}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.timestep_spacing, TimestepSpacing::Linspace);
        assert_eq!((config.beta_start, config.beta_end), (0.0001, 0.02));
    }

    #[test]
    fn of_a_scheduler_that_is_not_implemented_the_noise_is_taken() {
        let text = r#"{"_class_name": "UniPCMultistepScheduler", "solver_p": null, "predict_x0": true,
            "beta_start": 0.001}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.beta_start, 0.001);
        assert_eq!(config.beta_schedule, BetaSchedule::ScaledLinear);
    }

    #[test]
    fn refuses_what_it_does_not_implement_by_name() {
        for (text, name) in [
            (r#"{"use_karras_sigmas": true}"#, "use_karras_sigmas"),
            (r#"{"clip_sample": true}"#, "clip_sample"),
            (r#"{"_class_name": "DDIMScheduler"}"#, "clip_sample"),
            (r#"{"_class_name": "PNDMScheduler"}"#, "skip_prk_steps"),
            (
                r#"{"rescale_betas_zero_snr": true}"#,
                "rescale_betas_zero_snr",
            ),
            (
                r#"{"_class_name": "LCMScheduler", "trained_betas": [0.1]}"#,
                "trained_betas",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#,
                "solver_order",
            ),
            (r#"{"beta_end": 2.0}"#, "beta_start..beta_end"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        ] {
            let error = SchedulerConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(SchedulerConfig::from_json(r#"{"beta_schedule": "sigmoid"}"#).is_err());
    }
}
