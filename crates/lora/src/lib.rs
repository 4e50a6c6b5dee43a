//! Low-rank adaptation (Hu et al., arXiv 2106.09685): `W + (α/r)·B·A` with `A: [rank, inputs]` and
//! `B: [outputs, rank]`.
//!
//! The adapter itself is burn's ([`burn::module::LoraAdapter`]); layers of `swiftbrush-kernels` take its
//! low-rank path. This crate adds what burn leaves open: choosing weights by the names that PEFT uses,
//! PEFT's initialisation, folding in and out with a strength, and files: those of PEFT, of diffusers in three ages and of
//! kohya's and other training programs ([`Layout`]), read alike and written in whichever is wanted.
//!
//! Adapters are attached to linear layers only; those of convolutions can be folded in. rsLoRA is read; DoRA, LoHa and
//! LoKr are refused by name.

mod adapters;
mod attach;
mod error;
mod file;
mod flat;
mod names;

pub use adapters::{Adapter, Adapters};
pub use attach::{LoraConfig, attach, fuse, insert, materialize};
pub use error::Error;
pub use file::AdapterFile;
pub use names::Layout;
