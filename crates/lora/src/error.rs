use std::path::PathBuf;

use swiftbrush_checkpoint::abridged;

use crate::Layout;

/// Errors of adapter files, and of adapters that do not match a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] swiftbrush_checkpoint::Error),
    /// The file contains no adapters at all.
    #[error("{0} contains no adapters; the program that saved it wrote an empty file")]
    Empty(PathBuf),
    /// A folder without an adapter file, or with two.
    #[error("{folder} {reason}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The files expected and found.
        reason: String,
    },
    /// Tensors whose names match no layout.
    #[error(
        "{path}: these are not adapter tensors of Stable Diffusion 1.x or 2.x: {}",
        abridged(.names)
    )]
    UnknownNames {
        /// The file.
        path: PathBuf,
        /// The names.
        names: Vec<String>,
    },
    /// Adapters for another family of models.
    #[error(
        "{path} contains adapters for {family} ({name}); only Stable Diffusion 1.x and 2.x are supported"
    )]
    OtherFamily {
        /// The file.
        path: PathBuf,
        /// The family.
        family: &'static str,
        /// One of its tensors.
        name: String,
    },
    /// The weights of a network, not adapters.
    #[error(
        "{path} contains the weights of {kind} ({name}), not adapters; load it as that component"
    )]
    WholeNetwork {
        /// The file.
        path: PathBuf,
        /// The network.
        kind: &'static str,
        /// One of its tensors.
        name: String,
    },
    /// A factor that is not stored as floating-point numbers.
    #[error("{path}: {name} has the element type {found}, expected floating-point values")]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        found: String,
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
        /// The fault.
        found: String,
    },
    /// An adapter of a kind other than LoRA.
    #[error("{path} contains {kind} ({name}), which is unsupported")]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// The kind.
        kind: &'static str,
        /// One of its tensors.
        name: String,
    },
    /// An adapter configuration with unsupported or contradictory options.
    #[error("{path}: {reason}")]
    BadConfig {
        /// The configuration, or the file with it in its header.
        path: PathBuf,
        /// The option, what was expected and found.
        reason: String,
    },
    /// Saving would overwrite PEFT's configuration of other adapters.
    #[error("{0} exists and belongs to other adapters; save into another folder")]
    ConfigExists(PathBuf),
    /// A layout that cannot name the adapters of some modules.
    #[error(
        "the layout {layout:?} has no names for adapters of {}; choose another",
        abridged(.modules)
    )]
    NoName {
        /// The layout.
        layout: Layout,
        /// The modules.
        modules: Vec<String>,
    },
    /// Two networks in a layout that holds one.
    #[error(
        "{0}: PEFT stores the adapters of denoiser and text encoder in two folders; save them separately"
    )]
    TwoNetworks(PathBuf),
    /// Adapters of convolutions where only those of linear layers can be used.
    #[error("adapters of convolutions can be fused but not inserted: {}", abridged(.0))]
    Convolutions(Vec<String>),
    /// Adapters for which the module has no layer of that name and size.
    #[error("the model has no layers for {} adapters: {}", .0.len(), abridged(.0))]
    Unmatched(Vec<String>),
    /// Adapters of layers whose weights are in int8.
    #[error(
        "adapters cannot be merged into weights in int8: {}; merge them into the original model and quantise the result",
        abridged(.0)
    )]
    Int8(Vec<String>),
    /// A configuration whose targets match no linear layer.
    #[error("no linear layer of the model is named {}", abridged(.0))]
    NoTargets(Vec<String>),
    /// A strength that is not a finite number.
    #[error("the strength of adapters is {0}, expected a finite number")]
    Strength(f64),
}
