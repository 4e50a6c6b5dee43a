use std::ops::ControlFlow;

use burn::tensor::{FloatDType, Tensor};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny, Tiling};

use crate::Error;
use crate::denoise::finite;
use crate::progress::{Stage, Watcher};

/// The autoencoder of a model, between images and latents.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "only one exists, and its parameters are on the heap"
)]
pub enum Decoder {
    /// The full autoencoder.
    Kl(AutoencoderKl),
    /// The full autoencoder, in tiles.
    Tiled(AutoencoderKl, Tiling),
    /// The tiny autoencoder.
    Tiny(AutoencoderTiny),
}

impl Decoder {
    /// Decodes latents to images in the element type of the decoder's weights.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, channels, height, width]`, scaled
    /// - returns: `[batch, 3, scale·height, scale·width]`, RGB in about −1…1
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = latents.cast(self.dtype());
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiled(vae, tiling) => vae.decode_tiled(latents, *tiling),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }

    /// Like [`decode`](Self::decode), but can be cancelled before each tile, and checks the result.
    pub(crate) fn decode_watched(
        &self,
        latents: Tensor<4>,
        watcher: &mut Watcher<'_>,
    ) -> Result<Tensor<4>, Error> {
        let mut tell = |done, n_tiles| watcher.flow(Stage::Decoding { done, n_tiles });
        let images = match self {
            Self::Tiled(vae, tiling) => {
                vae.decode_tiled_with(latents.cast(self.dtype()), *tiling, &mut tell)
            }
            _ => match tell(0, 1) {
                ControlFlow::Continue(()) => ControlFlow::Continue(self.decode(latents)),
                ControlFlow::Break(()) => ControlFlow::Break(()),
            },
        };
        let ControlFlow::Continue(images) = images else {
            return Err(Error::Cancelled);
        };
        finite("decoder", &images)?;
        Ok(images)
    }

    /// Encodes images to scaled latents; the full autoencoder samples them with noise, which it draws once.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1, with sides that are multiples of [`scale`](Self::scale)
    /// - returns: `[batch, channels, height/scale, width/scale]`
    ///
    /// # Errors
    ///
    /// If there is no noise.
    pub fn encode(
        &self,
        images: Tensor<4>,
        noise: impl FnOnce() -> Result<Tensor<4>, Error>,
    ) -> Result<Tensor<4>, Error> {
        let images = images.cast(self.dtype());
        let posterior = match self {
            Self::Kl(vae) => vae.encode(images),
            Self::Tiled(vae, tiling) => vae.encode_tiled(images, *tiling),
            Self::Tiny(vae) => return Ok(vae.encode(images)),
        };
        Ok(posterior.sample(noise()?.cast(self.dtype())))
    }

    /// Number of pixels per latent, along each axis; 8 for Stable Diffusion.
    pub fn scale(&self) -> usize {
        match self {
            Self::Kl(vae) | Self::Tiled(vae, _) => vae.scale(),
            Self::Tiny(vae) => vae.scale(),
        }
    }

    fn dtype(&self) -> FloatDType {
        FloatDType::from(match self {
            Self::Kl(vae) | Self::Tiled(vae, _) => vae.dtype(),
            Self::Tiny(vae) => vae.dtype(),
        })
    }
}
