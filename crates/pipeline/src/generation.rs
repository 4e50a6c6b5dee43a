use burn::tensor::Tensor;

use crate::{Conditioning, Error, Mask, Picture, Warning};

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
    /// The mask of an edit or of image to image, outside which the originals are kept.
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

    /// [`pictures`](Self::pictures) without waiting for the device.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn pictures_async(&self) -> impl Future<Output = Result<Vec<Picture>, Error>> + use<> {
        Picture::of_images_async(self.images.clone())
    }
}

/// Results of [`generate_in_batches`](crate::TextToImage::generate_in_batches).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Batches {
    /// One picture per seed, in the order of the seeds.
    pub pictures: Vec<Picture>,
    /// Warnings of all batches, each once.
    pub warnings: Vec<Warning>,
    /// Set if there is a picture for every seed; unset after a cancellation.
    pub is_complete: bool,
}

impl Batches {
    pub(crate) fn add(&mut self, generation: Generation) {
        self.pictures.extend(generation.pictures());
        for warning in generation.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}
