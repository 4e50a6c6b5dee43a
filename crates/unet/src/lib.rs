//! The denoiser of Stable Diffusion 1.x and 2.x: diffusers' `UNet2DConditionModel`.
//!
//! [`UNetConfig`] is the checkpoint's `config.json`. [`UNet`] has fields named as the checkpoint's tensors. Latents go in and come
//! out as `[batch, channels, height, width]`, and every sample has its own timestep.
//! [`UNet::forward_checkpointed`] trains with little memory.

mod block;
mod checkpointed;
mod config;
mod names;
mod resnet;
mod time_embedding;
mod transformer;
mod unet;

pub use checkpointed::{Checkpointed, InputGradients};
pub use config::{BlockType, OneOrMany, UNetConfig};
pub use unet::UNet;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
