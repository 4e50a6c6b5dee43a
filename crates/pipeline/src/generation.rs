use burn::tensor::Tensor;

use crate::{Conditioning, Mask, Picture, Warning};

/// Generated images, and the tensors they were computed from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generation {
    /// `[batch, 3, height, width]`, RGB in about −1…1, in the element type of the decoder.
    pub images: Tensor<4>,
    /// `[batch, channels, height, width]`, scaled, f32.
    pub latents: Tensor<4>,
    /// Tokens and embeddings.
    pub conditioning: Conditioning,
    /// Deviations from the request, such as truncated prompts.
    pub warnings: Vec<Warning>,
    /// The mask of an edit or of image to image, outside which the images are the originals.
    pub mask: Option<Mask>,
}

impl Generation {
    pub(crate) fn new(
        images: Tensor<4>,
        latents: Tensor<4>,
        conditioning: Conditioning,
        mut warnings: Vec<Warning>,
    ) -> Self {
        warnings.extend(conditioning.warnings.iter().cloned());
        Self {
            images,
            latents,
            conditioning,
            warnings,
            mask: None,
        }
    }

    /// The images as 8-bit pictures, rounded like in diffusers.
    pub fn pictures(&self) -> Vec<Picture> {
        Picture::of_images(self.images.clone())
    }
}
