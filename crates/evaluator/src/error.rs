use std::path::PathBuf;

/// Errors of an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights cannot be read or do not match the network.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] swiftbrush_clip::TokenizerError),
    /// An image cannot be read or is not supported.
    #[error(transparent)]
    Picture(#[from] swiftbrush_images::Error),
    /// Features cannot be compared.
    #[error(transparent)]
    Metric(#[from] swiftbrush_metrics::Error),
    /// The tokenizer belongs to another CLIP.
    #[error(
        "{folder}: expected a tokenizer of at most {expected} tokens, found {found}; add the model's own tokenizer to the folder"
    )]
    Vocabulary {
        /// Folder of the network.
        folder: PathBuf,
        /// Vocabulary size of the network.
        expected: usize,
        /// Vocabulary size of the tokenizer.
        found: usize,
    },
    /// No network has this name.
    #[error("unknown network {name:?}; expected one of {}", crate::NETWORKS.join(", "))]
    UnknownNetwork {
        /// The name.
        name: String,
    },
    /// A network required by the protocol is missing.
    #[error("the protocol {protocol} needs the network {network}")]
    MissingNetwork {
        /// The protocol.
        protocol: String,
        /// The network.
        network: String,
    },
    /// A network lacks a capability required by a measure.
    #[error("{network} cannot {task}")]
    Unable {
        /// The network.
        network: String,
        /// The missing capability.
        task: &'static str,
    },
    /// A measure lacks an input.
    #[error("{measure} needs {needed}")]
    Missing {
        /// The measure.
        measure: String,
        /// The missing input.
        needed: String,
    },
    /// A name or file is not a valid protocol.
    #[error("{name} is not a valid protocol: {reason}")]
    Protocol {
        /// The name or file.
        name: String,
        /// The fault.
        reason: String,
    },
    /// Results are not comparable.
    #[error("these results are not comparable:\n{}", .0.join("\n"))]
    Incomparable(
        /// All differences.
        Vec<String>,
    ),
}
