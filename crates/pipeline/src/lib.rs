//! Text to image: a model folder, a prompt, a picture.
//!
//! [`TextToImage`] holds the networks of a folder as values that can be exchanged; [`one_step`] is the
//! student's forward pass, which training uses too. Nothing here draws random numbers except
//! [`noise`], which a caller asks for.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::tensor::Device;
//! use swiftbrush_pipeline::{Folder, Request, TextToImage, noise};
//!
//! let device = Device::default();
//! let pipeline = TextToImage::from_folder(&Folder::open("sd-turbo")?, None, &device)?;
//! let latents = noise(pipeline.latent_shape(1), 42, &device);
//! let painting = pipeline.generate(&Request::new(["a red circle on a blue background"]), latents)?;
//! println!("{:?}", painting.images.dims()); // [1, 3, 512, 512], RGB in −1…1
//! # Ok(())
//! # }
//! ```

mod error;
mod text_to_image;

pub use error::Error;
pub use swiftbrush_checkpoint::Folder;
pub use swiftbrush_clip as clip;
pub use swiftbrush_lora as lora;
pub use swiftbrush_scheduler as scheduler;
pub use swiftbrush_unet as unet;
pub use swiftbrush_vae as vae;
pub use text_to_image::{Decoder, Method, Painting, Request, TextToImage, noise, one_step};
