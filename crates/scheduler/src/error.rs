use crate::SamplerKind;

/// The longest value quoted in an error, in characters.
const MAX_QUOTED: usize = 60;

/// Errors of a scheduler configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("not a scheduler configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A field or option whose value would change the result and is not supported.
    #[error("unsupported `{name}` {value}; expected {expected}")]
    Unsupported {
        /// Name of the field.
        name: String,
        /// The value found, truncated to a readable length.
        value: String,
        /// The supported values.
        expected: String,
    },
    /// A scheduler class without a sampler here.
    #[error("unsupported scheduler class {class:?}; choose a sampler: {}", names())]
    Class {
        /// The class named by the file; empty if there is none.
        class: String,
    },
    /// A number of steps that the sampler cannot take.
    #[error("{found} steps; {kind} takes 1 to {most} with this scheduler")]
    Steps {
        /// The sampler.
        kind: SamplerKind,
        /// Number of steps requested.
        found: usize,
        /// Maximum number of steps.
        most: usize,
    },
    /// All steps of a sampler are skipped.
    #[error("no step is left: {skipped} of {steps} are skipped")]
    NoSteps {
        /// Number of steps.
        steps: usize,
        /// Number of skipped steps.
        skipped: usize,
    },
}

fn names() -> String {
    SamplerKind::ALL.map(SamplerKind::name).join(", ")
}

impl ConfigError {
    pub(crate) fn unsupported(name: &str, value: impl ToString, expected: &str) -> Self {
        let value = value.to_string();
        let cut = match value.char_indices().nth(MAX_QUOTED) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Self::Unsupported {
            name: name.to_owned(),
            value: cut,
            expected: expected.to_owned(),
        }
    }
}
