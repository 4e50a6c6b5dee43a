#![doc = include_str!("../README.md")]
//!
//! # Guide
//!
//! | page | task |
//! |---|---|
//! | [first image](guide::first_image) | generate, save, watch progress; GPUs; debug builds |
//! | [load a checkpoint](guide::load_a_checkpoint) | folders, single files, the hub; element types and memory |
//! | [adapters](guide::adapters) | LoRA: apply, combine, convert, attach |
//! | [image to image](guide::image_to_image) | start from an image |
//! | [negative prompts](guide::negative_prompts) | keep things out of images, in one network call |
//! | [edit](guide::edit) | change one thing in an image; masks |
#![cfg_attr(
    feature = "train",
    doc = "| [distil](guide::distil) | train a one-step student from prompts |"
)]
#![cfg_attr(
    feature = "train",
    doc = "| [distil at full size](guide::distil_at_full_size) | Stable Diffusion 2.1 from SD-Turbo: prompts, memory, several GPUs, monitoring |"
)]
//! | [merge](guide::merge) | average the weights of two models |
#![cfg_attr(
    feature = "measure",
    doc = "| [measure](guide::measure) | compare sets of images, reproducibly |"
)]
#![cfg_attr(
    feature = "train",
    doc = "| [your own loss](guide::own_loss) | the losses on their own, and a new one in training |"
)]
//! | [your own kernel](guide::own_kernel) | fast layers in your own network, and a new operation |
//!
//! # Crates
//!
//! Each module is a separate crate that can be used on its own. burn is re-exported as [`burn`]; a crate that
//! derives burn's `Module` must depend on the same version of burn directly.

pub use burn;
pub use burn::tensor::{DType, Device, Tensor};
pub use swiftbrush_kernels as kernels;

#[cfg(feature = "paint")]
pub use swiftbrush_checkpoint as checkpoint;
#[cfg(feature = "paint")]
pub use swiftbrush_clip as clip;
#[cfg(feature = "paint")]
pub use swiftbrush_lora as lora;
#[cfg(feature = "paint")]
pub use swiftbrush_pipeline as pipeline;
#[cfg(feature = "paint")]
pub use swiftbrush_scheduler as scheduler;
#[cfg(feature = "paint")]
pub use swiftbrush_torch_noise as torch_noise;
#[cfg(feature = "paint")]
pub use swiftbrush_unet as unet;
#[cfg(feature = "paint")]
pub use swiftbrush_vae as vae;
#[cfg(feature = "paint")]
pub use swiftbrush_weight_interp as weight_interp;

#[cfg(feature = "train")]
pub use swiftbrush_clamped_clip_loss as clamped_clip_loss;
#[cfg(feature = "train")]
pub use swiftbrush_trainer as trainer;
#[cfg(feature = "train")]
pub use swiftbrush_vsd_loss as vsd_loss;

#[cfg(feature = "measure")]
pub use swiftbrush_evaluator as evaluator;
#[cfg(feature = "measure")]
pub use swiftbrush_images as images;
#[cfg(feature = "measure")]
pub use swiftbrush_metrics as metrics;

#[cfg(feature = "paint")]
pub use swiftbrush_pipeline::{
    Generation, Loader, Method, Model, NegativeMethod, Picture, Request, Rng, Seeds, Start,
    TextToImage,
};

#[cfg(any(doc, doctest))]
pub mod guide;

/// The repository's README, whose examples are tested too.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct FrontPage;
