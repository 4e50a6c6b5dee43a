//! The one door through which the networks of this workspace call attention, group normalisation
//! and 3×3 convolution.
//!
//! Use it instead of burn's own functions when a network is *trained*: burn's autodiff keeps several
//! copies of the `[batch, heads, queries, keys]` score matrix of every attention, and splits a group
//! normalisation into a dozen elementwise passes. Here each is one operation with a gradient written
//! by hand; [`attention`] needs memory linear in the number of tokens, forwards and backwards.
//!
//! [`Linear`], [`Conv2d`], [`GroupNorm`] and [`LayerNorm`] are the layers that call them. Their fields
//! are named and shaped as PyTorch names and shapes them (`weight` of a linear layer is
//! `[outputs, inputs]`), so that a checkpoint loads without renaming or transposing anything.
//!
//! The operations are written once over burn's `Backend` operations, so they run wherever burn does;
//! on the CPU, in f32, they are our own, with weights that may be stored in f16 or bf16: 3×3 convolutions by Winograd's
//! F(4×4), attention in blocks, linear layers, normalisation, and what follows a layer in the layer's own call
//! ([`Epilogue`]). On GPUs normalisation is, in CubeCL, and images stay in the order of memory that convolutions there
//! want. A program that paints on a CPU calls [`keep_freed_memory`] first, one on a GPU [`keep_compiled_kernels`]. This is the only crate of the
//! workspace that knows burn's backends by name, because the macro behind backend extensions needs
//! to; enable the features with the same names that you enable on burn.
//!
//! | feature | passes on |
//! |---|---|
//! | `flex`, `cuda`, `wgpu`, `metal` | burn's feature of the same name |
//! | `fusion` | burn's `fusion`, which fuses what the operations are composed of |
//! | `persistence` | burn's `persistence`: what autotuning found on a GPU is kept, see [`keep_compiled_kernels`] |

mod attention;
mod backend;
mod cache;
mod convolution;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod gelu;
mod group_norm;
mod layer_norm;
mod linear;
mod mapped;
mod memory;
mod training;

pub use attention::{Mask, attention, softmax};
pub use cache::keep_compiled_kernels;
pub use convolution::{
    Conv2d, Conv2dConfig, Epilogue, Window, as_convolutions_read, conv2d, double, join_channels,
};
#[cfg(feature = "flex")]
pub use cpu::{kernels_that_ran, vectors};
pub use gelu::{gated_gelu, gelu, silu};
pub use group_norm::{Activation, GroupNorm, GroupNormConfig, group_norm};
pub use layer_norm::{LayerNorm, LayerNormConfig, layer_norm};
pub use linear::{Linear, LinearConfig};
pub use mapped::{Access, MappedFile, WeightFile};
pub use memory::keep_freed_memory;
pub use training::{AdamWUpdate, adamw, moved_towards, sum_of_squares};
