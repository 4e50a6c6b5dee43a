//! Models on disk: folders, single files, safetensors, `torch.save` files.
//!
//! This crate knows files and tensor names, but no architecture: a module loads if the path of each of its
//! parameters is the name of a tensor, and [`load`] is strict about it. [`Model`] locates the components of a model,
//! [`Weights`] the tensors of a component, and [`Archive`] those of one safetensors file.
//! With the feature `hub`, models can be downloaded from the Hugging Face hub ([`Hub`]).
//!
//! Weights are memory-mapped unless copies are requested; [`Access`] states what mapping requires of the caller.
//! Files are written to a temporary file that replaces the old one once it is complete and flushed to disk.

mod archive;
mod convert;
mod edit;
mod error;
mod files;
mod finite;
mod float8;
mod hub;
mod int8;
mod json;
mod kind;
mod model;
mod module;
mod named;
mod parallel;
mod select;
mod shards;
mod text;
mod torch;
mod weights;
mod write;

pub use archive::Archive;
pub use error::{Error, Mismatch, abridged};
pub use files::{FileSource, MemoryFiles};
pub use finite::is_finite;
#[cfg(feature = "hub")]
pub use hub::{Download, Event, Hub, HubError};
pub use int8::{int8_config, is_int8_file, load_int8, load_widened, quantize, save_int8};
pub use json::{read_config, read_json};
pub use model::Model;
pub use module::{is_buffer, load, n_parameters, named_tensors, read, save, with_tensors};
pub use named::{ModulePath, NamedMapper, NamedVisitor, map_named, visit_named};
pub use swiftbrush_kernels::Access;
pub use text::{Line, Lines, TextError, read_lines, read_text};
pub use weights::Weights;
pub use write::{
    LazyTensor, remove_unfinished, sha256, sha256_of, write_atomically, write_json, write_tensors,
};

#[cfg(all(doctest, feature = "hub"))]
#[doc = include_str!("../README.md")]
struct Readme;
