use std::ops::ControlFlow;

use burn::tensor::{FloatDType, Tensor};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny, Posterior, Tiling};

use crate::Error;
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

/// The output of an encoder: a distribution of latents, or the latents themselves.
#[allow(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Encoded {
    Posterior(Posterior),
    Latents(Tensor<4>),
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
        watcher.checks.finite("decoder", &images)?;
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
        Ok(match self.encoded(images) {
            Encoded::Posterior(posterior) => posterior.sample(noise()?.cast(self.dtype())),
            Encoded::Latents(latents) => latents,
        })
    }

    /// Encodes images to the most probable scaled latents.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1, sides multiples of [`scale`](Self::scale)
    /// - returns: `[batch, channels, height/scale, width/scale]`
    pub fn encode_mode(&self, images: Tensor<4>) -> Tensor<4> {
        match self.encoded(images) {
            Encoded::Posterior(posterior) => posterior.mode(),
            Encoded::Latents(latents) => latents,
        }
    }

    fn encoded(&self, images: Tensor<4>) -> Encoded {
        let images = images.cast(self.dtype());
        match self {
            Self::Kl(vae) => Encoded::Posterior(vae.encode(images)),
            Self::Tiled(vae, tiling) => Encoded::Posterior(vae.encode_tiled(images, *tiling)),
            Self::Tiny(vae) => Encoded::Latents(vae.encode(images)),
        }
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
