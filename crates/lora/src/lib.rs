//! Low-rank adaptation (Hu et al., arXiv 2106.09685): `W + (α/r)·B·A` with `A: [rank, inputs]` and
//! `B: [outputs, rank]`.
//!
//! The adapter itself is burn's ([`burn::module::LoraAdapter`]); layers of `swiftbrush-kernels` take its
//! low-rank path. This crate adds what burn leaves open: choosing weights by the names that PEFT uses,
//! PEFT's initialisation, folding in and out with a strength, and the files of PEFT and diffusers.
//!
//! Adapters go on linear layers only; a file with adapters of convolutions is refused.

mod adapters;
mod attach;
mod error;

pub use adapters::{Adapter, Adapters, Layout};
pub use attach::{LoraConfig, attach, fuse, insert, materialize};
pub use error::Error;
