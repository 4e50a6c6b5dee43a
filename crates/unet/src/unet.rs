use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, assert_shape};
use swiftbrush_checkpoint::{Error, Model, is_int8_file, load, load_int8};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, GroupNorm, GroupNormConfig};

use crate::block::{DownBlock, MidBlock, UpBlock};
use crate::names::as_diffusers;
use crate::time_embedding::{TimeEmbedding, sinusoids};
use crate::{Context, Negative, UNetConfig};

/// A denoiser conditioned on text (Rombach et al., arXiv 2112.10752; diffusers' `UNet2DConditionModel`).
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_unet::UNetConfig;
///
/// let device = Device::flex();
/// let unet = UNetConfig::tiny().init(&device);
/// let latents = Tensor::<4>::ones([1, 4, 8, 8], &device);
/// let timesteps = Tensor::<1>::from_data([999.0], &device);
/// let context = Tensor::<3>::ones([1, 5, 12], &device);
/// assert_eq!(unet.forward(latents, timesteps, context).dims(), [1, 4, 8, 8]);
/// ```
#[derive(Module, Debug)]
pub struct UNet {
    pub(crate) conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    pub(crate) down_blocks: Vec<DownBlock>,
    pub(crate) mid_block: MidBlock,
    pub(crate) up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    cosines_first: bool,
    freq_shift: f64,
    context_width: usize,
}

impl UNetConfig {
    /// Creates a network with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    #[track_caller]
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

    /// Reads the `config.json` of a component of a model, usually `unet`. For a single file without one, it is derived from the
    /// tensor shapes.
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an unsupported option.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let (config, path) = match model.config(component)? {
            Some(path) => (
                model.read_config(&path, &Self::diffusers_defaults(), &Self::accepted())?,
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
    /// Loads a component of a model, usually `unet`, in the element type `dtype` [default: f32]. Tensors may have the names of
    /// diffusers or of the original training code.
    ///
    /// # Errors
    ///
    /// If the configuration or the weights cannot be read or do not match.
    pub fn from_model(
        model: &Model,
        component: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let config = UNetConfig::from_model(model, component)?;
        let weights = as_diffusers(model.weights(component)?)?;
        let dtype = dtype.unwrap_or(DType::F32);
        match dtype == DType::F32 && is_int8_file(&weights)? {
            true => load_int8(config.init(device), &weights, Self::is_int8_weight),
            false => load(config.init(device), &weights, Some(dtype)),
        }
    }

    /// Like [`from_model`](Self::from_model), with the [weights selected for it](Self::is_int8_weight) in int8 and everything
    /// else in f32. Weights in other types are quantised; see [`Int8Weight`](swiftbrush_kernels::Int8Weight).
    ///
    /// # Errors
    ///
    /// Same as [`from_model`](Self::from_model), or if the device does not compute in int8.
    pub fn from_model_int8(model: &Model, component: &str, device: &Device) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let config = UNetConfig::from_model(model, component)?;
        let weights = as_diffusers(model.weights(component)?)?;
        load_int8(config.init(device), &weights, Self::is_int8_weight)
    }

    /// Returns whether a parameter is in int8 when the network is: the weights of linear layers and convolutions, without the
    /// first and the last convolution and the layers of the timestep, which are small and sensitive.
    pub fn is_int8_weight(name: &str, shape: &[usize]) -> bool {
        let is_in_f32 = ["conv_in.", "conv_out.", "time_embedding."]
            .iter()
            .any(|start| name.starts_with(start));
        let is_matrix = shape.len() > 1 && name.ends_with(".weight");
        is_matrix && !is_in_f32 && !name.contains(".time_emb_proj.")
    }

    /// Like [`from_model`](Self::from_model), but keeps the weights in the element types of the file, int8 included, and casts
    /// them where they are used.
    ///
    /// # Errors
    ///
    /// Same as [`from_model`](Self::from_model).
    pub fn from_model_as_stored(
        model: &Model,
        component: &str,
        device: &Device,
    ) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let config = UNetConfig::from_model(model, component)?;
        let weights = as_diffusers(model.weights(component)?)?;
        match is_int8_file(&weights)? {
            true => load_int8(config.init(device), &weights, Self::is_int8_weight),
            false => load(config.init(device), &weights, None),
        }
    }

    /// The network's prediction: the noise, for ε-models.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, in_channels, height, width]`
    /// - timesteps: `[batch]`, 0…999, possibly fractional
    /// - context: `[batch, length, cross_attention_dim]`, alone or in a [`Context`]
    /// - returns: `[batch, out_channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match, or latents and context differ in dtype.
    #[track_caller]
    pub fn forward(
        &self,
        latents: Tensor<4>,
        timesteps: Tensor<1>,
        context: impl Into<Context>,
    ) -> Tensor<4> {
        let context = context.into();
        self.check(&latents, &timesteps, &context);
        let time = self.embed_time(timesteps, latents.dtype());
        let mut skips = vec![self.conv_in.forward(latents)];
        for block in &self.down_blocks {
            let outputs = block.forward(newest(&skips), &time, &context);
            skips.extend(outputs);
        }
        let mut hidden = self.mid_block.forward(newest(&skips), &time, &context);
        for block in &self.up_blocks {
            let own = skips.split_off(skips.len() - block.n_skips());
            hidden = block.forward(hidden, own, &time, &context, size(skips.last()));
        }
        self.predict(hidden)
    }

    #[track_caller]
    pub(crate) fn check(&self, latents: &Tensor<4>, timesteps: &Tensor<1>, context: &Context) {
        let [batch, _, _, _] = latents.dims();
        let states = &context.states;
        let [_, length, _] = states.dims();
        assert_shape!(timesteps, [batch]);
        assert_shape!(states, [batch, length, self.context_width]);
        if let Some(Negative { states, .. }) = &context.negative {
            let [rows, length, _] = states.dims();
            let rows = if rows == 1 { 1 } else { batch };
            assert_shape!(states, [rows, length, self.context_width]);
        }
    }

    /// The width of the embeddings that the network attends to.
    pub fn context_width(&self) -> usize {
        self.context_width
    }

    /// The number of channels of the latents.
    pub fn in_channels(&self) -> usize {
        let [_, channels, _, _] = self.conv_in.weight.lazy_shape().dims::<4>();
        channels
    }

    /// Embeds timesteps.
    pub(crate) fn embed_time(&self, timesteps: Tensor<1>, dtype: DType) -> Tensor<2> {
        let [channels, _, _, _] = self.conv_in.weight.lazy_shape().dims::<4>();
        let sinusoids = sinusoids(
            timesteps,
            channels,
            self.cosines_first,
            self.freq_shift,
            dtype,
        );
        self.time_embedding.forward(sinusoids)
    }

    /// Computes the prediction from the output of the last block.
    pub(crate) fn predict(&self, hidden: Tensor<4>) -> Tensor<4> {
        self.conv_out
            .forward(self.conv_norm_out.forward_silu(hidden))
    }
}

/// The newest skip connection, which is the input of the next block.
pub(crate) fn newest(skips: &[Tensor<4>]) -> Tensor<4> {
    let newest = skips.last().cloned();
    newest.expect("the first convolution leaves a skip connection")
}

/// Height and width of the first skip connection of the next block; zeros for the last block, which does not upsample.
pub(crate) fn size(next: Option<&Tensor<4>>) -> [usize; 2] {
    next.map_or([0, 0], |next| {
        let [_, _, height, width] = next.dims();
        [height, width]
    })
}
