//! Model folders and safetensors files.
//!
//! The crate knows files and tensor names, never an architecture: a module loads when the path of
//! each of its parameters is the name of a tensor in the file, and [`load`] is strict about it.
//! Saving goes to a temporary file that replaces the old one only when it is whole and on disk.

mod archive;
mod error;
mod folder;
mod module;
mod write;

pub use archive::Archive;
pub use error::{Error, Mismatch};
pub use folder::{Folder, read_config, read_json};
pub use module::{
    ModulePath, load, load_prefixed, n_parameters, named_tensors, read, save, with_tensors,
};
pub use write::{LazyTensor, sha256, write_atomically, write_json, write_tensors};
