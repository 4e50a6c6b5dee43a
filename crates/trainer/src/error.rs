use std::path::PathBuf;

/// Why a run cannot begin, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// Adapters fit no layer of a network.
    #[error(transparent)]
    Adapter(#[from] swiftbrush_lora::Error),
    /// The recipe cannot be used.
    #[error("{path}: {reason}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the setting.
        reason: String,
    },
    /// The prompts cannot be used.
    #[error("{path}: {reason}")]
    Prompts {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The recipe asks for a CLIP loss, but there is no CLIP or no decoder to compute it with.
    #[error("the recipe has a CLIP loss: it needs a CLIP and a tiny decoder")]
    NoClip,
    /// A loss or a gradient became a NaN or an infinity; the last snapshot is from before.
    #[error(
        "the {what} became {value} at step {step}; the last snapshot is intact: \
         resume from it with a lower learning rate or a smaller max_grad_norm"
    )]
    NotFinite {
        /// Which.
        what: &'static str,
        /// What it became.
        value: f64,
        /// When.
        step: u64,
    },
}
