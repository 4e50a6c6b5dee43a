use burn::tensor::Tensor;

use crate::{Conditioning, Picture, Warning};

/// Generated images, and the tensors that led to them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generation {
    /// `[batch, 3, height, width]`, RGB in about −1…1, in the element type of the decoder.
    pub images: Tensor<4>,
    /// `[batch, channels, height, width]`, scaled, f32.
    pub latents: Tensor<4>,
    /// Tokens and embeddings.
    pub conditioning: Conditioning,
    /// Deviations from what the request asks for, such as prompts that were cut.
    pub warnings: Vec<Warning>,
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
        }
    }

    /// The images as pictures of bytes, rounded as diffusers rounds.
    pub fn pictures(&self) -> Vec<Picture> {
        Picture::of_images(self.images.clone())
    }
}
