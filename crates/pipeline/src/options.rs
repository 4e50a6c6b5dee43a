use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use swiftbrush_vae::Tiling;

use crate::{Error, Family};

/// The autoencoder that encodes and decodes images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderKind {
    /// The full autoencoder, component `vae`.
    #[default]
    Kl,
    /// The tiny autoencoder, component `taesd`.
    Tiny,
}

impl DecoderKind {
    /// Name of the component in a model folder.
    pub fn component(self) -> &'static str {
        match self {
            Self::Kl => "vae",
            Self::Tiny => "taesd",
        }
    }
}

/// The options of a [`Loader`](crate::Loader), as stored in records and set by programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Name of the denoiser component.
    pub denoiser: String,
    /// Element type of the arithmetic: f32, f16 or bf16. In f16, the full autoencoder still computes in f32 if its
    /// configuration says that it overflows in half precision (`force_upcast`).
    pub dtype: DType,
    /// Element type in which the denoiser's weights are stored; `None` for that of the arithmetic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<DType>,
    /// Stores the denoiser's weights as in the file, if `storage` is `None` and the arithmetic is f32.
    #[serde(skip_serializing_if = "is_false")]
    pub weights_as_stored: bool,
    /// Quantises the denoiser and the text encoder to int8.
    #[serde(skip_serializing_if = "is_false")]
    pub int8: bool,
    /// The autoencoder.
    pub decoder: DecoderKind,
    /// Tiles for the full autoencoder; `None` to encode and decode whole images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
    /// The family of a single file that does not identify it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Calls the denoiser twice for guidance instead of once with twice the batch.
    #[serde(skip_serializing_if = "is_false")]
    pub split_guidance: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Default for LoadOptions {
    /// The complete model in f32, with its full autoencoder.
    fn default() -> Self {
        Self {
            denoiser: "unet".to_owned(),
            dtype: DType::F32,
            storage: None,
            weights_as_stored: false,
            int8: false,
            decoder: DecoderKind::Kl,
            tiling: None,
            family: None,
            split_guidance: false,
        }
    }
}

impl LoadOptions {
    /// Checks that the options agree with each other.
    ///
    /// # Errors
    ///
    /// If an element type is not supported, the overlap of tiles is not smaller than their side, or tiles are requested
    /// for the tiny autoencoder.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Options(text));
        for dtype in [Some(self.dtype), self.storage].into_iter().flatten() {
            if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                return refuse(format!(
                    "unsupported element type {dtype:?}; expected f32, f16 or bf16"
                ));
            }
        }
        let Some(Tiling { side, overlap }) = self.tiling else {
            return Ok(());
        };
        if overlap >= side {
            return refuse(format!(
                "tiles of {side} latents overlap by {overlap}; the overlap must be smaller than the side"
            ));
        }
        if self.decoder == DecoderKind::Tiny {
            return refuse(
                "the tiny autoencoder does not work in tiles; choose the full one, or no tiles"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
