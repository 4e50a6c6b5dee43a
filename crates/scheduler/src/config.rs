//! diffusers' `scheduler_config.json`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{ConfigError, SamplerKind, class};

mod check;

/// The interpolation of betas between `beta_start` and `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linearly.
    Linear,
    /// Linearly in their square roots (Stable Diffusion).
    ScaledLinear,
}

/// The quantity predicted by the network.
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

/// The training timesteps that a sampler with fewer steps visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `train / n`, shifted by `steps_offset`.
    Leading,
    /// Evenly spaced from 0 to the last timestep, both included.
    Linspace,
    /// Counted down from the last timestep in strides of `train / n`; a single step visits the last timestep.
    Trailing,
}

/// The fields of `scheduler_config.json` used by samplers. [`Default`] is SD-Turbo's file.
///
/// The configuration records which fields its file sets. A sampler of another class than the file's uses those, and its
/// own class's defaults for all others, like `OtherScheduler.from_config(pipe.scheduler.config)` in diffusers; see
/// [`for_sampler`](Self::for_sampler). Use the `with_` methods to set a field for every sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// Scheduler class of diffusers; empty if the file names none.
    pub class_name: String,
    /// Number of timesteps of the diffusion process.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Interpolation between the two.
    pub beta_schedule: BetaSchedule,
    /// The quantity predicted by the network.
    pub prediction_type: PredictionType,
    /// The spacing of the timesteps that a sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Makes the last step of DDIM and PNDM end at ᾱ = 1 instead of ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Rescales the schedule to end in pure noise, ᾱ_T = 0 (Lin et al., arXiv 2305.08891, algorithm 1).
    /// Not for networks that predict noise, whose output carries no information there.
    pub rescale_betas_zero_snr: bool,
    /// Number of steps of the grid that a latent consistency model was trained on.
    pub original_inference_steps: usize,
    /// Factor of timesteps in the boundary conditions of a latent consistency model.
    pub timestep_scaling: f64,
    /// Clips x₀ to ±[`clip_sample_range`](Self::clip_sample_range) in DDIM. Latents are unbounded, so this is only for
    /// pixel-space models.
    pub clip_sample: bool,
    /// The bound of clipped x₀.
    pub clip_sample_range: f64,
    /// Starts PNDM without Runge-Kutta steps, the only supported way.
    pub skip_prk_steps: bool,
    /// Marks a one-step student: `"_swiftbrush_sampler": "one-step"`, which diffusers ignores like every key that starts
    /// with an underscore.
    pub is_one_step: bool,
    /// Names of the fields missing in the file.
    pub(crate) unset: Vec<String>,
    /// Options of the file that are not supported by every sampler.
    pub(crate) unsupported: BTreeMap<String, Value>,
    /// Keys of the file that no diffusers class has.
    pub(crate) unknown: Vec<String>,
}

/// The key and the value that mark a one-step student.
const SAMPLER: (&str, &str) = ("_swiftbrush_sampler", "one-step");
/// The key that lists fields missing in the original file, in a configuration written with its defaults.
const UNSET: &str = "_use_default_values";

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
            clip_sample_range: 1.0,
            skip_prk_steps: true,
            is_one_step: false,
            unset: Vec::new(),
            unsupported: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }
}

impl SchedulerConfig {
    /// Parses the text of a `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// If the text is not such a file, its class belongs to a process other than diffusion with betas (such as flow
    /// matching), or its noise schedule is not supported. Options read by only some samplers are checked by
    /// [`for_sampler`](Self::for_sampler).
    ///
    /// # Examples
    ///
    /// ```
    /// use swiftbrush_scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
    ///
    /// let text = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "skip_prk_steps": true}"#;
    /// let pndm = SchedulerConfig::from_json(text)?;
    /// assert_eq!(pndm.timestep_spacing, TimestepSpacing::Leading);
    /// let euler = pndm.for_sampler(SamplerKind::Euler)?;
    /// assert_eq!(euler.timestep_spacing, TimestepSpacing::Linspace);
    /// assert_eq!(euler.beta_start, 0.00085);
    /// # Ok::<(), swiftbrush_scheduler::ConfigError>(())
    /// ```
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        // diffusers writes this value, which is not JSON, for `lambda_min_clipped`.
        let text = text.replace("-Infinity", "null");
        serde_json::from_str::<Map<String, Value>>(&text)?.try_into()
    }

    /// The configuration that a sampler runs with: the fields set in the file, and the defaults of the sampler's own
    /// scheduler class for all others.
    ///
    /// # Errors
    ///
    /// If the sampler does not support a field or an option.
    pub fn for_sampler(&self, kind: SamplerKind) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        if self.class_name != kind.class() {
            let defaults = class::defaults(kind.class()).fields();
            for name in &self.unset {
                if let Some(value) = defaults.get(name) {
                    config.set(name, value)?;
                }
            }
            kind.class().clone_into(&mut config.class_name);
        }
        config.check()?;
        config.check_for(kind)?;
        Ok(config)
    }

    /// The sampler of the scheduler class, or the closest one if the class has none; see
    /// [`is_substituted`](Self::is_substituted).
    ///
    /// # Errors
    ///
    /// If no sampler is close enough, or the file names no class.
    pub fn sampler(&self) -> Result<SamplerKind, ConfigError> {
        SamplerKind::of_class(&self.class_name)
            .or_else(|| class::replacement(&self.class_name))
            .ok_or_else(|| ConfigError::Class {
                class: self.class_name.clone(),
            })
    }

    /// Returns whether [`sampler`](Self::sampler) is a replacement for an unimplemented class.
    pub fn is_substituted(&self) -> bool {
        SamplerKind::of_class(&self.class_name).is_none()
    }

    /// Keys of the file that no diffusers scheduler class has; they are ignored.
    pub fn unknown_keys(&self) -> &[String] {
        &self.unknown
    }

    /// Applies the two corrections that diffusers' `StableDiffusionPipeline` makes to the scheduler of a folder
    /// (`steps_offset` 1, `clip_sample` false), and returns a message for each.
    pub fn correct_for_stable_diffusion(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.steps_offset != 1 {
            let found = std::mem::replace(&mut self.steps_offset, 1);
            notes.push(format!(
                "steps_offset {found} is outdated; using 1, as diffusers' StableDiffusionPipeline does"
            ));
        }
        if std::mem::take(&mut self.clip_sample) {
            notes.push(
                "clip_sample is ignored, as in diffusers' StableDiffusionPipeline: latents are unbounded"
                    .to_owned(),
            );
        }
        notes
    }

    /// Sets the scheduler class.
    pub fn with_class(mut self, class_name: &str) -> Self {
        class_name.clone_into(&mut self.class_name);
        self
    }

    /// Sets the spacing of timesteps for every sampler.
    pub fn with_spacing(mut self, spacing: TimestepSpacing) -> Self {
        self.timestep_spacing = spacing;
        self.mark_set("timestep_spacing")
    }

    /// Sets the quantity predicted by the network.
    pub fn with_prediction_type(mut self, prediction_type: PredictionType) -> Self {
        self.prediction_type = prediction_type;
        self.mark_set("prediction_type")
    }

    /// Sets whether the schedule is rescaled to end in pure noise.
    pub fn with_zero_snr(mut self, rescale_betas_zero_snr: bool) -> Self {
        self.rescale_betas_zero_snr = rescale_betas_zero_snr;
        self.mark_set("rescale_betas_zero_snr")
    }

    /// Sets whether PNDM starts without Runge-Kutta steps.
    pub fn with_skip_prk_steps(mut self, skip_prk_steps: bool) -> Self {
        self.skip_prk_steps = skip_prk_steps;
        self.mark_set("skip_prk_steps")
    }

    /// Marks the model as a one-step student.
    pub fn with_one_step(mut self, is_one_step: bool) -> Self {
        self.is_one_step = is_one_step;
        self
    }

    fn mark_set(mut self, field: &str) -> Self {
        self.unset.retain(|name| name != field);
        self
    }

    /// The fields by name.
    fn fields(&self) -> Map<String, Value> {
        let fields = json!({
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction_type,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
            "set_alpha_to_one": self.set_alpha_to_one,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "original_inference_steps": self.original_inference_steps,
            "timestep_scaling": self.timestep_scaling,
            "clip_sample": self.clip_sample,
            "clip_sample_range": self.clip_sample_range,
            "skip_prk_steps": self.skip_prk_steps,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => unreachable!("written as an object above"),
        }
    }

    /// Sets a field by name; returns whether there is such a field.
    fn set(&mut self, name: &str, value: &Value) -> Result<bool, ConfigError> {
        match name {
            "num_train_timesteps" => self.num_train_timesteps = count(name, value)?,
            "beta_start" => self.beta_start = number(name, value)?,
            "beta_end" => self.beta_end = number(name, value)?,
            "beta_schedule" => self.beta_schedule = one_of(name, value, "linear or scaled_linear")?,
            "prediction_type" => {
                self.prediction_type = one_of(name, value, "epsilon, v_prediction or sample")?;
            }
            "timestep_spacing" => {
                self.timestep_spacing = one_of(name, value, "leading, linspace or trailing")?;
            }
            "steps_offset" => self.steps_offset = count(name, value)?,
            "set_alpha_to_one" => self.set_alpha_to_one = flag(name, value)?,
            "rescale_betas_zero_snr" => self.rescale_betas_zero_snr = flag(name, value)?,
            "original_inference_steps" => self.original_inference_steps = count(name, value)?,
            "timestep_scaling" => self.timestep_scaling = number(name, value)?,
            "clip_sample" => self.clip_sample = flag(name, value)?,
            "clip_sample_range" => self.clip_sample_range = number(name, value)?,
            "skip_prk_steps" => self.skip_prk_steps = flag(name, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Stores or checks a key that is not a field.
    fn take_option(&mut self, name: String, value: Value) -> Result<(), ConfigError> {
        if name == SAMPLER.0 {
            self.is_one_step = value == SAMPLER.1;
            return match self.is_one_step {
                true => Ok(()),
                false => Err(ConfigError::unsupported(&name, value, SAMPLER.1)),
            };
        }
        if name == "trained_betas" && !value.is_null() {
            return Err(ConfigError::unsupported(&name, value, "null"));
        }
        match class::switched_off(&name) {
            Some(option) if !option.accepts(&value) => {
                self.unsupported.insert(name, value);
            }
            Some(_) => {}
            None if name == "trained_betas" || class::is_without_effect(&name) => {}
            None => self.unknown.push(name),
        }
        Ok(())
    }
}

impl TryFrom<Map<String, Value>> for SchedulerConfig {
    type Error = ConfigError;

    fn try_from(mut file: Map<String, Value>) -> Result<Self, ConfigError> {
        let class_name = match file.remove("_class_name") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(name)) => name,
            Some(other) => return Err(ConfigError::unsupported("_class_name", other, "a string")),
        };
        if class::is_other_process(&class_name) {
            let expected = "a scheduler of a diffusion process with betas";
            return Err(ConfigError::unsupported(
                "_class_name",
                class_name,
                expected,
            ));
        }
        let unset: Vec<String> = match file.remove(UNSET) {
            Some(names) => one_of(UNSET, &names, "a list of names")?,
            None => Vec::new(),
        };
        let mut config = class::defaults(&class_name);
        let names = config.fields();
        let is_unset = |name: &&String| !file.contains_key(*name) || unset.contains(*name);
        config.unset = names.keys().filter(is_unset).cloned().collect();
        for (name, value) in file {
            if !config.set(&name, &value)? {
                config.take_option(name, value)?;
            }
        }
        config.check()?;
        Ok(config)
    }
}

impl From<SchedulerConfig> for Map<String, Value> {
    fn from(config: SchedulerConfig) -> Self {
        let mut file = config.fields();
        if !config.class_name.is_empty() {
            file.insert("_class_name".to_owned(), config.class_name.into());
        }
        if config.is_one_step {
            file.insert(SAMPLER.0.to_owned(), SAMPLER.1.into());
        }
        if !config.unset.is_empty() {
            file.insert(UNSET.to_owned(), config.unset.into());
        }
        file.extend(config.unsupported);
        file
    }
}

fn number(name: &str, value: &Value) -> Result<f64, ConfigError> {
    let number = value.as_f64();
    number.ok_or_else(|| ConfigError::unsupported(name, value, "a number"))
}

/// Parses a whole number, which may be written as `1000.0`.
fn count(name: &str, value: &Value) -> Result<usize, ConfigError> {
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e9).contains(number);
    let count = value.as_f64().filter(whole).map(|number| number as usize);
    count.ok_or_else(|| ConfigError::unsupported(name, value, "a whole number"))
}

/// Parses a boolean; null is false, as in Python.
fn flag(name: &str, value: &Value) -> Result<bool, ConfigError> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(ConfigError::unsupported(name, value, "true or false")),
    }
}

fn one_of<T: DeserializeOwned>(
    name: &str,
    value: &Value,
    expected: &str,
) -> Result<T, ConfigError> {
    serde_json::from_value(value.clone())
        .map_err(|_| ConfigError::unsupported(name, value, expected))
}

#[cfg(test)]
mod tests;
