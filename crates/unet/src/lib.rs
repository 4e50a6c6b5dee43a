//! The denoiser of Stable Diffusion 1.x and 2.x: diffusers' `UNet2DConditionModel`.
//!
//! [`UNetConfig`] is the checkpoint's `config.json`; [`UNet`] has fields named as the checkpoint's
//! tensors. Latents go in and come out as `[batch, channels, height, width]`, every sample with a
//! timestep of its own.

mod block;
mod config;
mod names;
mod resnet;
mod time_embedding;
mod transformer;
mod unet;

pub use config::{BlockType, OneOrMany, UNetConfig};
pub use unet::UNet;
