//! The denoiser of Stable Diffusion 1.x and 2.x: diffusers' `UNet2DConditionModel`.
//!
//! [`UNetConfig`] is the checkpoint's `config.json`. The fields of [`UNet`] are named after the checkpoint's tensors. Latents are
//! `[batch, channels, height, width]`, and every sample has its own timestep.
//! A [`Context`] holds the text states, optionally with those of a negative prompt, which acts in the same call.
//! [`UNet::forward_checkpointed`] reduces memory in training.

mod block;
mod checkpointed;
mod config;
mod context;
mod names;
mod resnet;
mod time_embedding;
mod transformer;
mod unet;

pub use checkpointed::{Checkpointed, InputGradients};
pub use config::{BlockType, OneOrMany, UNetConfig};
pub use context::{Context, Negative, NegativeMethod};
pub use unet::UNet;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
