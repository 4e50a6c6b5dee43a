use std::path::PathBuf;

/// What cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights that cannot be read or do not fit.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// A tokenizer that cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] swiftbrush_clip::TokenizerError),
    /// A picture that cannot be read or is of a kind that is not measured.
    #[error(transparent)]
    Picture(#[from] swiftbrush_images::Error),
    /// Features that nothing can be said of.
    #[error(transparent)]
    Metric(#[from] swiftbrush_metrics::Error),
    /// A tokenizer of another CLIP.
    #[error(
        "{folder} takes {expected} different tokens, its tokenizer has {found}: put the one it was trained with into the folder"
    )]
    Vocabulary {
        /// Where the network is.
        folder: PathBuf,
        /// Tokens that it takes.
        expected: usize,
        /// Tokens that there are.
        found: usize,
    },
    /// A network of a name that stands for none.
    #[error("there is no network {name:?}; there are {}", crate::NETWORKS.join(", "))]
    UnknownNetwork {
        /// The name.
        name: String,
    },
    /// A network that a protocol measures with and that was not given.
    #[error("the protocol {protocol} measures with {network}, which was not given")]
    MissingNetwork {
        /// The protocol.
        protocol: String,
        /// The network.
        network: String,
    },
    /// A network that cannot do what a protocol asks of it.
    #[error("{network} {what}")]
    Unable {
        /// The network.
        network: String,
        /// What it cannot.
        what: &'static str,
    },
    /// A measure that lacks something of one of the sets.
    #[error("{measure} needs {what}")]
    Missing {
        /// The measure.
        measure: String,
        /// What is lacking.
        what: String,
    },
    /// A protocol of a name that stands for none, or a file that describes none.
    #[error("{name} is no protocol: {reason}")]
    Protocol {
        /// The name or file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Results that must not be compared.
    #[error("these results do not compare:\n{}", .0.join("\n"))]
    Incomparable(
        /// Each difference, in words.
        Vec<String>,
    ),
}
