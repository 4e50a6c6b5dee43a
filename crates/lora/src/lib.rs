//! Low-rank adaptation (Hu et al., arXiv 2106.09685): `W + (α/r)·B·A` with `A: [rank, inputs]` and
//! `B: [outputs, rank]`.
//!
//! The adapter itself is burn's ([`burn::module::LoraAdapter`]); layers of `swiftbrush-kernels` take its
//! low-rank path. This crate adds selection of weights by the names that PEFT uses, PEFT's initialisation, fusing and
//! unfusing with a strength, and files: those of PEFT, of three generations of diffusers, and of kohya's and other
//! training programs ([`Layout`]). All are read; any can be written.
//!
//! Adapters are attached to linear layers only; those of convolutions can be fused. rsLoRA is supported; DoRA, LoHa,
//! LoKr, PiSSA and the like are rejected by name.

mod adapters;
mod attach;
mod config;
mod error;
mod family;
mod file;
mod flat;
mod names;

pub use adapters::{Adapter, Adapters};
pub use attach::{LoraConfig, attach, fuse, insert, materialize};
pub use error::Error;
pub use file::AdapterFile;
pub use names::Layout;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
