use std::path::PathBuf;

/// What can be wrong with a file of adapters, or with the module that it is meant for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] swiftbrush_checkpoint::Error),
    /// A tensor whose name is of none of the layouts.
    #[error("{path}: {names:?} are not adapter tensors of PEFT or diffusers")]
    UnknownNames {
        /// The file.
        path: PathBuf,
        /// The names.
        names: Vec<String>,
    },
    /// One factor without the other, or factors that do not multiply.
    #[error(
        "{path}: the adapter of {module} is not a pair [rank, inputs], [outputs, rank]: {found}"
    )]
    BadPair {
        /// The file.
        path: PathBuf,
        /// The adapted module.
        module: String,
        /// What was found instead.
        found: String,
    },
    /// Adapters for which the model has no linear layer of that name and size.
    #[error("the model has no linear layers for these adapters: {0:?}")]
    Unmatched(Vec<String>),
}
