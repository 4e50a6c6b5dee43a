//! CLIP (Radford et al., arXiv 2103.00020), as in transformers.
//!
//! - [`Tokenizer`] encodes prompts, with the padding of the checkpoint;
//! - [`TextEncoder`] computes the states that a denoiser attends to;
//! - [`Clip`] embeds texts and images in a joint space, where [`cosine_similarity`] compares them;
//! - [`preprocess`] prepares decoded images for it, and is differentiable.

mod checkpointed;
mod config;
mod dual;
mod open_clip;
mod preprocess;
mod text;
mod tokenizer;
mod transformer;
mod vision;
mod vocabulary;

pub use checkpointed::CheckpointedEmbedding;
pub use config::{ClipConfig, HiddenAct, TextConfig, VisionConfig};
pub use dual::{Clip, cosine_similarity};
pub use preprocess::{MEAN, STD, preprocess, resize};
pub use text::TextEncoder;
pub use tokenizer::{Tokenizer, TokenizerError, Tokens};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
