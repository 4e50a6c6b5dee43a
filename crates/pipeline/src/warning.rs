use std::fmt;

use swiftbrush_scheduler::SchedulerConfig;

/// A deviation from what the caller might expect. The library never prints; programs should show warnings, one line each
/// ([`Display`](fmt::Display)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A prompt is too long for the text encoder; its end has no effect.
    PromptCut {
        /// The prompt.
        prompt: String,
        /// The part of it that has no effect.
        lost: String,
    },
    /// The default sampler replaces a scheduler class without an implementation.
    SchedulerSubstituted {
        /// The class named by the model.
        class: String,
        /// Name of the sampler.
        sampler: &'static str,
    },
    /// Ignored keys of `scheduler_config.json` that no diffusers scheduler has.
    SchedulerKeys(Vec<String>),
    /// A value of `scheduler_config.json` that is corrected, as diffusers does.
    SchedulerCorrected(String),
    /// The prediction type in the denoiser's own files overrides that of the model's scheduler.
    PredictionType {
        /// The file that decides.
        source: String,
        /// The prediction type.
        prediction_type: String,
    },
    /// The family set by the caller has no effect, because the model has a scheduler configuration.
    FamilyUnused {
        /// The file that decides.
        source: String,
    },
    /// DDIM clips latents, because the model's scheduler does not set `clip_sample` to false.
    LatentsClipped,
    /// A note about a weight file or adapters, such as widened values or a substitute for a missing file.
    File(String),
}

impl Warning {
    /// The warnings about a scheduler's configuration.
    pub(crate) fn of_scheduler(config: &SchedulerConfig) -> Vec<Self> {
        let mut warnings = Vec::new();
        if config.is_substituted()
            && !config.is_one_step
            && let Ok(kind) = config.sampler()
        {
            warnings.push(Self::SchedulerSubstituted {
                class: config.class_name.clone(),
                sampler: kind.name(),
            });
        }
        if !config.unknown_keys().is_empty() {
            warnings.push(Self::SchedulerKeys(config.unknown_keys().to_vec()));
        }
        warnings
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PromptCut { prompt, lost } => write!(
                f,
                "the prompt {:?} is too long: {:?} has no effect",
                short(prompt),
                short(lost)
            ),
            Self::SchedulerSubstituted { class, sampler } => write!(
                f,
                "{class} is not implemented; the default sampler is {sampler} instead (for a one-step student, choose one-step)"
            ),
            Self::SchedulerKeys(keys) => write!(
                f,
                "scheduler_config.json: ignored unknown keys {}",
                keys.join(", ")
            ),
            Self::SchedulerCorrected(text) => write!(f, "scheduler_config.json: {text}"),
            Self::PredictionType {
                source,
                prediction_type,
            } => write!(
                f,
                "{source} says {prediction_type}, which overrides the prediction type of the model's scheduler"
            ),
            Self::FamilyUnused { source } => {
                write!(
                    f,
                    "the family has no effect, because {source} describes the model"
                )
            }
            Self::File(note) => f.write_str(note),
            Self::LatentsClipped => write!(
                f,
                "ddim clips latents, as DDIMScheduler does unless scheduler_config.json sets clip_sample to false"
            ),
        }
    }
}

/// A text for a message, truncated.
fn short(text: &str) -> String {
    const LENGTH: usize = 120;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
