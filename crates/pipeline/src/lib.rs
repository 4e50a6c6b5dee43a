//! Text to image: a model, a prompt, a picture.
//!
//! [`TextToImage`] holds the networks of a model as values that can be exchanged; [`Loader`] says what is loaded
//! and how; [`one_step`] is the student's forward pass, which training uses too. Noise comes from a [`Noise`] that
//! the caller brings.
//!
//! With the feature `png`, pictures are written as files that say how they were made ([`Record`]).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::tensor::Device;
//! use swiftbrush_pipeline::{Model, Request, Rng, Seeds, TextToImage};
//!
//! let device = Device::default();
//! let pipeline = TextToImage::from_model(&Model::open("sd-turbo")?, None, &device)?;
//! let request = Request::new(["a red circle on a blue background"]);
//! let painting = pipeline.generate(&request, &mut Seeds::new(Rng::Native, [42]))?;
//! println!("{:?}", painting.images.dims()); // [1, 3, 512, 512], RGB in −1…1
//! # Ok(())
//! # }
//! ```

mod decoder;
mod error;
mod loader;
mod noise;
#[cfg(feature = "png")]
mod record;
mod request;
mod text_to_image;

pub use decoder::Decoder;
pub use error::Error;
pub use loader::{DecoderKind, Family, Loader};
pub use noise::{Given, Noise, Rng, Seeds};
#[cfg(feature = "png")]
pub use record::{Picture, Record, Source, StartRecord};
pub use request::{Method, Painting, Progress, Request, Start};
pub use swiftbrush_checkpoint::Model;
pub use swiftbrush_clip as clip;
pub use swiftbrush_lora as lora;
pub use swiftbrush_scheduler as scheduler;
pub use swiftbrush_unet as unet;
pub use swiftbrush_vae as vae;
pub use text_to_image::{Conditioning, TextToImage, noise, one_step};
