//! The guide: one page per task, each with examples that are compiled and run as tests.
//!
//! The examples use the repository's miniature model and networks of a few thousand random weights, so they
//! finish in seconds. Replace the paths with those of your own models.

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/first_image.md")]
pub mod first_image {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/load_a_checkpoint.md")]
pub mod load_a_checkpoint {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/adapters.md")]
pub mod adapters {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/image_to_image.md")]
pub mod image_to_image {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/negative_prompts.md")]
pub mod negative_prompts {}

#[cfg(feature = "paint")]
// rustdoc has no place for images: the first definition of the link wins, here inline, and the file's own elsewhere.
#[doc = include_str!("../guide/edit.base64")]
#[doc = include_str!("../guide/edit.md")]
pub mod edit {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/browser.md")]
pub mod browser {}

#[cfg(feature = "train")]
#[doc = include_str!("../guide/distil.md")]
pub mod distil {}

#[cfg(feature = "train")]
#[doc = include_str!("../guide/distil_at_full_size.md")]
pub mod distil_at_full_size {}

#[cfg(feature = "paint")]
#[doc = include_str!("../guide/merge.md")]
pub mod merge {}

#[cfg(feature = "measure")]
#[doc = include_str!("../guide/measure.md")]
pub mod measure {}

#[cfg(feature = "train")]
#[doc = include_str!("../guide/own_loss.md")]
pub mod own_loss {}

#[doc = include_str!("../guide/own_kernel.md")]
pub mod own_kernel {}
