use std::path::PathBuf;

use crate::Layout;

/// What can be wrong with a file of adapters, or with the module that it is meant for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] swiftbrush_checkpoint::Error),
    /// A tensor whose name is of none of the layouts.
    #[error("{path}: {names:?} are not adapter tensors of a network of Stable Diffusion")]
    UnknownNames {
        /// The file.
        path: PathBuf,
        /// The names.
        names: Vec<String>,
    },
    /// One factor without the other, or factors that do not multiply.
    #[error(
        "{path}: the adapter of {module} is not a pair [rank, inputs, …], [outputs, rank]: {found}"
    )]
    BadPair {
        /// The file.
        path: PathBuf,
        /// The adapted module.
        module: String,
        /// What was found instead.
        found: String,
    },
    /// An adapter that is none of LoRA.
    #[error("{path} holds {kind} ({name}), which is not supported")]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// One of its tensors.
        name: String,
    },
    /// A configuration of adapters that cannot be followed.
    #[error("{path}: the adapters' configuration cannot be used: {reason}")]
    BadConfig {
        /// The file of adapters.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A layout that has no name for the adapters of some modules.
    #[error("the layout {layout:?} has no names for adapters of {modules:?}; choose another")]
    NoName {
        /// The layout.
        layout: Layout,
        /// The modules.
        modules: Vec<String>,
    },
    /// A layout with one network in a file was asked to hold two.
    #[error(
        "{0}: PEFT keeps the adapters of denoiser and text encoder in two folders; save them apart"
    )]
    TwoNetworks(PathBuf),
    /// Adapters of convolutions where only those of linear layers can be used.
    #[error("adapters of convolutions cannot be attached, only folded in: {0:?}")]
    Convolutions(Vec<String>),
    /// Adapters for which the model has no layer of that name and size.
    #[error("the model has no layers for {} adapters: {}", .0.len(), .0.join(", "))]
    Unmatched(Vec<String>),
}
