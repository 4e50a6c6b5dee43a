//! Interpolation of weights (SwiftBrush v2, arXiv 2408.14176, §4.4): `θ = λ·θ_A + (1−λ)·θ_B`.
//!
//! Both models must have the same architecture and be trained from the same weights; otherwise the interpolated models do
//! not work. Low-rank adapters must be fused first.

mod error;
mod files;
mod modules;

pub use error::Error;
pub use files::interpolate_files;
pub use modules::interpolate;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
