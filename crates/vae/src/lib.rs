//! The autoencoders of Stable Diffusion: diffusers' `AutoencoderKL` and `AutoencoderTiny` (TAESD).
//!
//! Images are RGB in −1…1. Latents are always *scaled*, as the denoiser expects them; only this crate knows the factor (0.18215
//! for Stable Diffusion).

mod config;
mod kl;
mod kl_block;
mod names;
mod tiling;
mod tiny;

pub use config::{AutoencoderKlConfig, AutoencoderTinyConfig, DecoderBlockType, EncoderBlockType};
pub use kl::{AutoencoderKl, Posterior};
pub use tiling::Tiling;
pub use tiny::{AutoencoderTiny, CheckpointedDecoding};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
