//! Interpolation of weights (SwiftBrush v2, arXiv 2408.14176, §4.4): `θ = λ·θ_A + (1−λ)·θ_B`.
//!
//! The two models have to be of one shape and come from one beginning, or what lies between them is
//! no model at all; low-rank adapters are folded in first.

mod files;
mod modules;

pub use files::{Error, interpolate_files};
pub use modules::interpolate;
