use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, assert_shape};
use swiftbrush_checkpoint::{Error, Model, load, read_config};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, GroupNorm, GroupNormConfig};

use crate::UNetConfig;
use crate::block::{DownBlock, MidBlock, UpBlock};
use crate::names::as_diffusers;
use crate::time_embedding::{TimeEmbedding, sinusoids};

/// A denoiser conditioned on text (Rombach et al., arXiv 2112.10752; as diffusers'
/// `UNet2DConditionModel`).
#[derive(Module, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    cosines_first: bool,
    freq_shift: f64,
    context_width: usize,
}

impl UNetConfig {
    /// A network with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    pub fn init(&self, device: &Device) -> UNet {
        if let Err(message) = self.check() {
            panic!("{message}");
        }
        let blocks = 0..self.block_out_channels.len();
        let first = self.block_out_channels[0];
        UNet {
            conv_in: Conv2dConfig::same3x3(self.in_channels, first).init(device),
            time_embedding: TimeEmbedding::new(first, device),
            down_blocks: blocks
                .clone()
                .map(|block| DownBlock::new(self, block, device))
                .collect(),
            mid_block: MidBlock::new(self, device),
            up_blocks: blocks
                .map(|block| UpBlock::new(self, block, device))
                .collect(),
            conv_norm_out: GroupNormConfig::new(self.norm_num_groups, first)
                .with_epsilon(self.norm_eps)
                .init(device),
            conv_out: Conv2dConfig::same3x3(first, self.out_channels).init(device),
            cosines_first: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
            context_width: self.cross_attention_dim,
        }
    }

    /// Reads the `config.json` of a component of a model, usually `unet`; of a single file without one, the
    /// shapes of the tensors.
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an option that is not supported.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let (config, path) = match model.config(component)? {
            Some(path) => (
                read_config(&path, &Self::unsaid(), &Self::accepted())?,
                path,
            ),
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
}

impl UNet {
    /// Loads a component of a model, usually `unet`; with `dtype` none, as the file has it. Tensors are named
    /// as in diffusers or as in the original training code.
    ///
    /// # Errors
    ///
    /// If its configuration or its weights cannot be read, or do not fit each other.
    pub fn from_model(
        model: &Model,
        component: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        let config = UNetConfig::from_model(model, component)?;
        let weights = as_diffusers(model.weights(component)?)?;
        load(config.init(device), &weights, dtype)
    }

    /// The network's prediction, the noise for ε-models.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, in_channels, height, width]`
    /// - timesteps: `[batch]`, 0…999, whole or not
    /// - context: `[batch, length, cross_attention_dim]`
    /// - returns: `[batch, out_channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shapes do not agree, or the dtypes differ from that of the weights.
    pub fn forward(
        &self,
        latents: Tensor<4>,
        timesteps: Tensor<1>,
        context: Tensor<3>,
    ) -> Tensor<4> {
        let [batch, _, _, _] = latents.dims();
        let [_, length, _] = context.dims();
        assert_shape!(timesteps, [batch]);
        assert_shape!(context, [batch, length, self.context_width]);

        let [channels, _, _, _] = self.conv_in.weight.lazy_shape().dims::<4>();
        let time = sinusoids(
            timesteps,
            channels,
            self.cosines_first,
            self.freq_shift,
            latents.dtype(),
        );
        let time = self.time_embedding.forward(time);

        let mut hidden = self.conv_in.forward(latents);
        let mut skips = vec![hidden.clone()];
        for block in &self.down_blocks {
            hidden = block.forward(hidden, &time, &context, &mut skips);
        }
        hidden = self.mid_block.forward(hidden, &time, &context);
        for block in &self.up_blocks {
            hidden = block.forward(hidden, &time, &context, &mut skips);
        }
        self.conv_out
            .forward(self.conv_norm_out.forward_silu(hidden))
    }
}
