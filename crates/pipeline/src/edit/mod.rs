//! Editing an image in one call: ChordEdit.
//!
//! An [`Edit`] holds an image, a source prompt that describes it, and a target prompt that describes the result;
//! [`TextToImage::edit`](crate::TextToImage::edit) carries it out. It needs neither training nor inversion: the clean
//! latents that a one-step model predicts for each prompt from the same noise are compared, and the image is moved by
//! their difference ([`Chord`]).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::tensor::Device;
//! use swiftbrush_pipeline::edit::Edit;
//! use swiftbrush_pipeline::{Method, Model, Picture, Rng, Seeds, TextToImage};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/model");
//! let device = Device::default();
//! let pipeline = TextToImage::from_model(&Model::open(folder)?, None, &device)?;
//! let picture = Picture { width: 16, height: 16, bytes: vec![90; 3 * 16 * 16] };
//! let edit = Edit::of_picture(&picture, "a red circle", "a blue circle", &device)?
//!     .with_method(Method::OneStep); // this model's own method has many steps
//! let edited = pipeline.edit(&edit, &mut Seeds::new(Rng::Native, [42]))?;
//! assert_eq!(edited.images.dims(), [1, 3, 16, 16]);
//! # Ok(())
//! # }
//! ```
//!
//! # References
//!
//! ChordEdit, CVPR 2026, in the form of its published code, which compares clean latents instead of velocities.

mod chord;
mod masking;
mod options;
mod run;

use burn::tensor::{Device, Tensor};

pub use chord::{Chord, Network};
pub use masking::{AutomaticMask, Masking};
pub use options::{Options, Refinement};
pub(crate) use run::{check, check_calls};

use crate::{Error, Method, Picture};

/// Images to edit, each with a source and a target prompt.
///
/// Both prompts should describe the whole image and differ only in the edit. Changing poses, and adding or removing
/// objects, works badly.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Edit {
    /// `[batch, 3, height, width]`, RGB in −1…1; sides are multiples of the pixels per latent (8 for Stable Diffusion).
    pub images: Tensor<4>,
    /// The images' own prompts.
    pub sources: Vec<String>,
    /// The prompts of the results.
    pub targets: Vec<String>,
    /// Times, step and refinement.
    pub options: Options,
    /// The part of the images that may change.
    pub masking: Masking,
    /// A single-call method that replaces the model's own; `None` requires that the model's own is one.
    pub method: Option<Method>,
}

impl Edit {
    /// Edits a batch with the default options and without a mask.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1, with a source and a target each
    pub fn new<S: Into<String>, T: Into<String>>(
        images: Tensor<4>,
        sources: impl IntoIterator<Item = S>,
        targets: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            images,
            sources: sources.into_iter().map(Into::into).collect(),
            targets: targets.into_iter().map(Into::into).collect(),
            options: Options::default(),
            masking: Masking::None,
            method: None,
        }
    }

    /// Edits a picture.
    ///
    /// # Errors
    ///
    /// If the number of bytes does not match the size of the picture.
    pub fn of_picture(
        picture: &Picture,
        source: impl Into<String>,
        target: impl Into<String>,
        device: &Device,
    ) -> Result<Self, Error> {
        let images = Picture::to_images(std::slice::from_ref(picture), device)?;
        Ok(Self::new(images, [source], [target]))
    }

    /// Sets the options.
    pub fn with_options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Sets the part of the images that may change.
    pub fn with_masking(mut self, masking: Masking) -> Self {
        self.masking = masking;
        self
    }

    /// Sets a single-call method for a model whose own method takes several calls, such as a student in the folder of
    /// its teacher.
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Number of images.
    pub fn batch(&self) -> usize {
        let [batch, ..] = self.images.dims();
        batch
    }
}
