use std::path::PathBuf;

use burn::tensor::DType;
use swiftbrush_clip::TokenizerError;

/// Errors of loading a model or generating an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model folder or weight file cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The scheduler's configuration cannot be used.
    #[error("{path}: {cause}")]
    Scheduler {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: swiftbrush_scheduler::ConfigError,
    },
    /// The sampler does not support the model's scheduler configuration or the number of steps.
    #[error(transparent)]
    Sampler(#[from] swiftbrush_scheduler::ConfigError),
    /// An adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] swiftbrush_lora::Error),
    /// A file that is not an image, or whose record cannot be used.
    #[error("{path}: {reason}")]
    Picture {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The progress callback cancelled generation.
    #[error("generation was cancelled")]
    Cancelled,
    /// A part of a model is missing, or parts do not match.
    #[error("{path}: {reason}")]
    Model {
        /// Folder or file of the model.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The device's backend has no kernels in this build.
    #[error(transparent)]
    Device(#[from] swiftbrush_kernels::Error),
    /// The device failed while a result was read.
    #[error("the device failed: {0}")]
    Execution(String),
    /// Options of the loader that contradict each other or the device.
    #[error("{0}")]
    Options(String),
    /// The request contradicts the model or itself.
    #[error("{0}")]
    Request(String),
    /// The output of a network contains a NaN or an infinity.
    #[error("the {part} produced a NaN or an infinity in {dtype:?}; {}", remedy(*dtype))]
    NotFinite {
        /// The network.
        part: &'static str,
        /// The element type of its arithmetic.
        dtype: DType,
    },
}

fn remedy(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "check the weights and the strengths of adapters",
        _ => "try f32",
    }
}
