//! Attention, convolution, linear layers and normalisation for diffusion models on burn.
//!
//! Use it instead of burn's own functions when a network is *trained*: burn's autodiff keeps several copies of the
//! `[batch, heads, queries, keys]` score matrix of every attention and splits a group normalisation into a dozen elementwise
//! passes. Here, each is one operation with a hand-written gradient; [`attention`] needs memory linear in the number of
//! tokens, forward and backward. Use it also for *inference on a CPU*, where f32 has fast native kernels.
//!
//! [`Linear`], [`Conv2d`], [`GroupNorm`] and [`LayerNorm`] have parameters named and shaped as in PyTorch (the `weight` of a
//! linear layer is `[outputs, inputs]`), so checkpoints load without renaming or transposing.
//!
//! | backend | native kernels | composed of burn's operations |
//! |---|---|---|
//! | CPU (`flex`), f32, weights in f32, f16 or bf16 | all | – |
//! | CPU (`flex`), f32, weights in [int8](Int8Weight) | linear layers, convolutions, attention | – |
//! | CPU, other element types | – | all |
//! | GPU (CubeCL) | normalisation; memory layouts between convolutions | the rest, which burn's fusion merges |
//!
//! Programs should first call [`keep_freed_memory`] and [`use_current_thread`] on a CPU, and [`keep_compiled_kernels`] on a
//! GPU. [`supports`] checks whether this crate was compiled with the backend of a device.
//!
//! # Features
//!
//! burn's backend-extension macro needs the backends by name, so enable the same features here as on burn:
//!
//! | feature | enables |
//! |---|---|
//! | `flex`, `cuda`, `wgpu`, `metal` | burn's backend of the same name |
//! | `fusion` | burn's `fusion`, which fuses composed operations |
//! | `persistence` | burn's `persistence`, which keeps autotuning results; see [`keep_compiled_kernels`] |
//!
//! # Layers of this crate
//!
//! ```text
//! public functions and layers (attention, convolution, linear, …)
//!     │
//! backend.rs  the trait that backends implement, and gradients.rs, that of its gradients  ◄── autodiff.rs, cpu/, cube/
//!     │
//! composed/   every operation in burn's operations
//!     │
//! options.rs  plain values
//! ```
#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(
        dead_code,
        unused_variables,
        reason = "without a backend, no operation has an implementation"
    )
)]

mod activation;
mod attention;
mod autodiff;
mod backend;
mod cache;
mod checkpoints;
mod composed;
mod convolution;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod device;
mod dynamic_map;
mod gradients;
mod group_norm;
mod int8;
mod layer_norm;
mod linear;
mod mapped;
mod memory;
mod options;
mod params;
mod quantized;
mod threads;
mod update;

pub use activation::{gated_gelu, gelu, silu};
pub use attention::{attention, int8_attention, softmax};
pub use cache::keep_compiled_kernels;
pub use checkpoints::{Checkpoints, input_grad};
pub use convolution::{
    Conv2d, Conv2dConfig, Epilogue, conv2d, join_channels, to_conv_layout, upsample_nearest_2x,
};
#[cfg(feature = "flex")]
pub use cpu::{Vectors, kernel_calls, set_vectors, vectors};
pub use device::{Error, supports};
pub use dynamic_map::DynamicMap;
pub use group_norm::{GroupNorm, GroupNormConfig, group_norm};
pub use int8::{Int8Error, Int8Weight, is_int8};
pub use layer_norm::{LayerNorm, LayerNormConfig, layer_norm};
pub use linear::{Linear, LinearConfig, linear};
pub use mapped::{Access, MappedFile, WeightFile, release_mapped_weights};
pub use memory::keep_freed_memory;
pub use options::{Activation, AdamWUpdate, Mask, Window};
pub use quantized::Quantized;
pub use threads::use_current_thread;
pub use update::{adamw, lerp, sum_of_squares};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
