use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// A level of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncoderBlockType {
    /// Residual blocks.
    DownEncoderBlock2D,
}

/// A level of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecoderBlockType {
    /// Residual blocks.
    UpDecoderBlock2D,
}

/// `vae/config.json` of an `AutoencoderKL`. [`Default`] has the values of Stable Diffusion; options missing in a file get
/// diffusers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderKlConfig {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of each level, finest first; every level but the last halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Levels of the encoder, one per entry of `block_out_channels`.
    pub down_block_types: Vec<EncoderBlockType>,
    /// Levels of the decoder, one per entry of `block_out_channels`.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Side of the images that the model was trained on.
    #[serde(deserialize_with = "side")]
    pub sample_size: usize,
    /// True if the network overflows in half precision and should compute in f32.
    pub force_upcast: bool,
    /// Factor that gives latents unit variance.
    pub scaling_factor: f64,
}

/// Parses the side of a square: a number, or a list of equal numbers, which diffusers also accepts.
fn side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Side {
        One(usize),
        Many(Vec<usize>),
    }
    const EXPECTED: &str = "expected a number, or a list of equal numbers";
    match Side::deserialize(deserializer).map_err(|_| D::Error::custom(EXPECTED))? {
        Side::One(side) => Ok(side),
        Side::Many(sides) => match sides.as_slice() {
            [first, rest @ ..] if rest.iter().all(|side| side == first) => Ok(*first),
            _ => Err(D::Error::custom(EXPECTED)),
        },
    }
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            layers_per_block: 2,
            norm_num_groups: 32,
            sample_size: 768,
            scaling_factor: 0.18215,
            ..Self::with_levels([128, 256, 512, 512])
        }
    }
}

impl AutoencoderKlConfig {
    /// Returns a small network with these channels per level, finest first.
    pub fn with_levels(block_out_channels: impl Into<Vec<usize>>) -> Self {
        let block_out_channels = block_out_channels.into();
        let n_levels = block_out_channels.len();
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels,
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D; n_levels],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D; n_levels],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 4,
            sample_size: 32,
            force_upcast: true,
            scaling_factor: 1.0,
        }
    }

    /// Returns a network of a few thousand parameters for tests and examples; it halves the side once.
    pub fn tiny() -> Self {
        Self {
            sample_size: 16,
            scaling_factor: 0.18215,
            ..Self::with_levels([8, 12])
        }
    }

    /// diffusers' defaults, for options missing in a file.
    pub(crate) fn diffusers_defaults() -> Self {
        Self {
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            ..Self::with_levels([64])
        }
    }

    /// Checks that the fields agree; the message names the one that does not.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.block_out_channels.is_empty()
            || self.layers_per_block == 0
            || self.norm_num_groups == 0
        {
            return Err("block_out_channels, layers_per_block and norm_num_groups must not be empty or zero".into());
        }
        let n_levels = self.block_out_channels.len();
        if [self.down_block_types.len(), self.up_block_types.len()] != [n_levels; 2] {
            return Err(format!(
                "block_out_channels has {n_levels} entries, down_block_types {}, up_block_types {}",
                self.down_block_types.len(),
                self.up_block_types.len()
            ));
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if channels == 0 || channels % self.norm_num_groups != 0 {
                return Err(format!(
                    "block_out_channels[{level}] = {channels} is not a multiple of norm_num_groups = {}",
                    self.norm_num_groups
                ));
            }
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(format!(
                "scaling_factor = {} is not positive",
                self.scaling_factor
            ));
        }
        Ok(())
    }
}

/// `config.json` of an `AutoencoderTiny`. [`Default`] has the values of TAESD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderTinyConfig {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of each stage of the encoder; all equal.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each stage of the decoder; all equal.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks per stage of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks per stage of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// A copy of `decoder_block_out_channels` in diffusers' files; ignored.
    pub block_out_channels: Vec<usize>,
    /// Factor of the latents; 1 if they are already in the denoiser's scale.
    pub scaling_factor: f64,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            latent_channels: 4,
            block_out_channels: vec![64; 4],
            scaling_factor: 1.0,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Returns a network of a few thousand parameters for tests and examples; it halves the side once.
    pub fn tiny() -> Self {
        Self {
            encoder_block_out_channels: vec![8; 2],
            decoder_block_out_channels: vec![8; 2],
            num_encoder_blocks: vec![1, 2],
            num_decoder_blocks: vec![2, 1],
            ..Self::default()
        }
    }

    /// Checks that the fields agree; the message names the one that does not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let stages = [
            (
                "encoder",
                &self.encoder_block_out_channels,
                &self.num_encoder_blocks,
            ),
            (
                "decoder",
                &self.decoder_block_out_channels,
                &self.num_decoder_blocks,
            ),
        ];
        for (which, channels, blocks) in stages {
            if channels.is_empty() || channels.len() != blocks.len() {
                return Err(format!(
                    "{which}_block_out_channels has {} entries, num_{which}_blocks has {}",
                    channels.len(),
                    blocks.len()
                ));
            }
            if channels.iter().any(|&c| c == 0 || c != channels[0]) {
                return Err(format!(
                    "{which}_block_out_channels = {channels:?}: different channels per stage are not supported"
                ));
            }
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(format!(
                "scaling_factor = {} is not positive",
                self.scaling_factor
            ));
        }
        Ok(())
    }
}
