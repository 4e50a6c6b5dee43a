use swiftbrush_clip::TokenizerError;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model folder or file of weights cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The scheduler's configuration cannot be used.
    #[error("{path}")]
    Scheduler {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: swiftbrush_scheduler::ConfigError,
    },
    /// An adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] swiftbrush_lora::Error),
    /// A file that is no picture, or one that does not say how it was made.
    #[error("{path} cannot be used as a picture of ours: {reason}")]
    Picture {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        reason: String,
    },
    /// Whoever watched wanted no more.
    #[error("the painting was cancelled")]
    Cancelled,
    /// Parts of a model that do not fit one another.
    #[error("{path} is not one model: {reason}")]
    Model {
        /// Folder or file of the model.
        path: std::path::PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The request contradicts the model or itself.
    #[error("{0}")]
    Request(String),
    /// A part of the model gave a NaN or an infinity.
    #[error(
        "the {part} gave a NaN or an infinity in {dtype:?}; try f32, or other weights if it was f32"
    )]
    NotFinite {
        /// Which network.
        part: &'static str,
        /// In which element type.
        dtype: burn::tensor::DType,
    },
}
