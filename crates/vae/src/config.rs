use serde::{Deserialize, Serialize};
use serde_json::json;
use swiftbrush_checkpoint::{Error, Model, read_config};

use crate::names::as_diffusers;

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

/// `vae/config.json` of an `AutoencoderKL`. [`Default`] is Stable Diffusion's; what a file does not say is as
/// diffusers takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderKlConfig {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of each level, finest first; every level but the last halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Levels of the encoder, as many as `block_out_channels`.
    pub down_block_types: Vec<EncoderBlockType>,
    /// Levels of the decoder, likewise.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Residual blocks in each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Side of the images that the model was trained on.
    pub sample_size: usize,
    /// Whether half precision is too narrow for it, so that it should compute in f32.
    pub force_upcast: bool,
    /// What raw latents are multiplied by to have unit variance.
    pub scaling_factor: f64,
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
    /// A small one with these channels in its levels, finest first.
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

    /// A network of a few thousand parameters for tests and examples; it halves the side once.
    pub fn tiny() -> Self {
        Self {
            sample_size: 16,
            scaling_factor: 0.18215,
            ..Self::with_levels([8, 12])
        }
    }

    /// What diffusers takes for options that a file leaves out.
    fn unsaid() -> Self {
        Self {
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            ..Self::with_levels([64])
        }
    }

    /// Reads the `config.json` of a component of a model, usually `vae`; of a single file without one, the shapes of
    /// the tensors.
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an option that is not supported.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let accepted = [
            ("act_fn", json!("silu")),
            ("mid_block_add_attention", json!(true)),
            ("use_post_quant_conv", json!(true)),
            ("use_quant_conv", json!(true)),
        ];
        let (config, path) = match model.config(component)? {
            Some(path) => (read_config(&path, &Self::unsaid(), &accepted)?, path),
            None => {
                let weights = as_diffusers(model.weights(component)?)?;
                (Self::from_shapes(&weights), model.root().to_owned())
            }
        };
        config
            .check()
            .map_err(|reason| Error::Config { path, reason })?;
        Ok(config)
    }

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

/// `config.json` of an `AutoencoderTiny`. Defaults are TAESD's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderTinyConfig {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of each stage of the encoder; all the same.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each stage of the decoder; all the same.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks in each stage of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks in each stage of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Repeats `decoder_block_out_channels` in files of diffusers; not read.
    pub block_out_channels: Vec<usize>,
    /// Its own scale of latents; 1 means that it takes them as the denoiser gives them.
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
    /// A network of a few thousand parameters for tests and examples; it halves the side once.
    pub fn tiny() -> Self {
        Self {
            encoder_block_out_channels: vec![8; 2],
            decoder_block_out_channels: vec![8; 2],
            num_encoder_blocks: vec![1, 2],
            num_decoder_blocks: vec![2, 1],
            ..Self::default()
        }
    }

    /// Reads the `config.json` of a component of a model; without one, it is TAESD's.
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an option that is not supported.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let accepted = [
            ("act_fn", json!("relu")),
            ("force_upcast", json!(false)),
            ("force_upcast", json!(true)),
            ("latent_magnitude", json!(3)),
            ("latent_shift", json!(0.5)),
            ("shift_factor", json!(0.0)),
            ("upsample_fn", json!("nearest")),
            ("upsampling_scaling_factor", json!(2)),
        ];
        let path = model.path(&format!("{component}/config.json"));
        let Some(path) = path.filter(|path| path.is_file()) else {
            return Ok(Self::default());
        };
        let config = read_config(&path, &Self::default(), &accepted)?;
        config
            .check()
            .map_err(|reason| Error::Config { path, reason })?;
        Ok(config)
    }

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
                    "{which}_block_out_channels = {channels:?}: all must be the same"
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
