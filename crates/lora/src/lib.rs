//! Low-rank adaptation (Hu et al., arXiv 2106.09685): `W + (α/r)·B·A` with `A: [rank, inputs]` and
//! `B: [outputs, rank]`.
//!
//! The adapter itself is burn's ([`burn::module::LoraAdapter`]), and the layers of `swiftbrush-kernels` implement its
//! low-rank path. This crate adds selection of weights by PEFT's names, PEFT's initialisation, fusing and unfusing with a
//! strength, and the file formats of PEFT, of three generations of diffusers, and of kohya's and other training scripts
//! ([`Layout`]). All of them can be read and written.
//!
//! Adapters can be attached only to linear layers; those of convolutions can be fused. rsLoRA is supported; DoRA, LoHa,
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
