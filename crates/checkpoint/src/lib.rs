//! Models on disk: folders, single files, safetensors.
//!
//! The crate knows files and tensor names, never an architecture: a module loads when the path of
//! each of its parameters is the name of a tensor, and [`load`] is strict about it. [`Model`] finds the
//! parts of a model, [`Weights`] the tensors of a part, whatever the file.
//! With the feature `hub`, models come from the Hugging Face hub ([`Hub`]).
//!
//! Saving goes to a temporary file that replaces the old one only when it is whole and on disk.

mod archive;
mod convert;
mod error;
#[cfg(feature = "hub")]
mod hub;
mod model;
mod module;
mod text;
mod weights;
mod write;

pub use archive::Archive;
pub use error::{Error, Mismatch};
#[cfg(feature = "hub")]
pub use hub::{Download, Hub};
pub use model::{Model, read_config, read_json};
pub use module::{ModulePath, load, n_parameters, named_tensors, read, save, with_tensors};
pub use text::{Line, Lines, TextError, read_lines, read_text};
pub use weights::Weights;
pub use write::{LazyTensor, sha256, write_atomically, write_json, write_tensors};
