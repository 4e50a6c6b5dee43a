//! Text to image with Stable Diffusion, SD-Turbo and SwiftBrush students.
//!
//! [`TextToImage`] holds the networks of a model as values that can be replaced; [`Loader`] loads them with options;
//! [`one_step`] is the student's forward pass, which is also used in training. The caller provides the [`Noise`].
//! Nothing is printed: deviations that users should know about are values ([`Warning`]).
//!
//! | feature | adds |
//! |---|---|
//! | `png` | [`Picture`]s as PNG files, and [`Record`]s in them |
//! | `image` | conversions between [`Picture`] and `image::RgbImage` |
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::tensor::Device;
//! use swiftbrush_pipeline::{Model, Rng, Seeds, TextToImage};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/model");
//! let model = Model::open(folder)?; // in diffusers' layout
//! let pipeline = TextToImage::from_model(&model, None, &Device::default())?;
//! let request = pipeline.request(["a red circle on a blue background"])?;
//! let generation = pipeline.generate(&request, &mut Seeds::new(Rng::Native, [42]))?;
//! assert_eq!(generation.images.dims(), [1, 3, 16, 16]); // RGB in −1…1
//! # Ok(())
//! # }
//! ```

mod checks;
mod conditioning;
mod decoder;
mod denoise;
pub mod edit;
mod error;
mod family;
mod generation;
mod interpolate;
mod limits;
mod loader;
mod mask;
mod noise;
mod options;
mod picture;
mod progress;
mod record;
mod request;
mod source;
mod text_to_image;
mod warning;

pub use conditioning::Conditioning;
pub use decoder::Decoder;
pub use error::Error;
pub use family::Family;
pub use generation::{Batches, Generation};
pub use interpolate::{Between, slerp};
pub use loader::Loader;
pub use mask::Mask;
pub use noise::{Given, Noise, Rng, Seeds};
pub use options::{DecoderKind, LoadOptions};
pub use picture::Picture;
pub use progress::{Progress, Stage, Watch};
pub use record::{BetweenRecord, EditRecord, FileRecord, InterpolationRecord, Record, StartRecord};
pub use request::{Method, Request, Start};
pub use source::Source;
pub use swiftbrush_checkpoint::Model;
pub use swiftbrush_clip as clip;
pub use swiftbrush_lora as lora;
pub use swiftbrush_scheduler as scheduler;
pub use swiftbrush_unet as unet;
pub use swiftbrush_unet::NegativeMethod;
pub use swiftbrush_vae as vae;
pub use text_to_image::{TextToImage, noise, one_step, one_step_with};
pub use warning::Warning;

#[cfg(all(doctest, feature = "png"))]
#[doc = include_str!("../README.md")]
struct Readme;
