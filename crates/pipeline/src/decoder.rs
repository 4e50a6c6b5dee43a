use burn::tensor::{FloatDType, Tensor};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny, Tiling};

use crate::Error;

/// What makes images of latents, and latents of images.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and its parameters live elsewhere"
)]
pub enum Decoder {
    /// The full autoencoder.
    Kl(AutoencoderKl),
    /// The full autoencoder, decoding in tiles.
    Tiled(AutoencoderKl, Tiling),
    /// The tiny one.
    Tiny(AutoencoderTiny),
}

impl Decoder {
    /// Images from latents, computed in the element type of the decoder; shapes as of the decoders.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Kl(vae) => vae.decode(latents.cast(FloatDType::from(vae.dtype()))),
            Self::Tiled(vae, tiling) => {
                vae.decode_tiled(latents.cast(FloatDType::from(vae.dtype())), *tiling)
            }
            Self::Tiny(vae) => vae.decode(latents.cast(FloatDType::from(vae.dtype()))),
        }
    }

    /// Latents from images; the full autoencoder draws them with the noise that it asks for, once.
    ///
    /// # Errors
    ///
    /// If there is no noise.
    pub fn encode(
        &self,
        images: Tensor<4>,
        noise: impl FnOnce() -> Result<Tensor<4>, Error>,
    ) -> Result<Tensor<4>, Error> {
        match self {
            Self::Kl(vae) | Self::Tiled(vae, _) => {
                let dtype = FloatDType::from(vae.dtype());
                let posterior = vae.encode(images.cast(dtype));
                Ok(posterior.sample(noise()?.cast(dtype)))
            }
            Self::Tiny(vae) => Ok(vae.encode(images.cast(FloatDType::from(vae.dtype())))),
        }
    }

    /// How many pixels a latent stands for, along each axis.
    pub fn scale(&self) -> usize {
        match self {
            Self::Kl(vae) | Self::Tiled(vae, _) => vae.scale(),
            Self::Tiny(vae) => vae.scale(),
        }
    }
}
