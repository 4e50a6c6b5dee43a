use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, assert_shape};
use serde_json::json;
use swiftbrush_checkpoint::{Error, Model, int8_config, load_widened};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, GroupNorm};

use crate::AutoencoderKlConfig;
use crate::kl_block::{Level, MidBlock, group_norm};
use crate::names::as_diffusers;

/// The variational autoencoder of Stable Diffusion (Rombach et al., arXiv 2112.10752, §3.1).
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_vae::AutoencoderKlConfig;
///
/// let device = Device::flex();
/// let vae = AutoencoderKlConfig::tiny().init(&device);
/// let images = Tensor::<4>::zeros([1, 3, 16, 16], &device);
/// let latents = vae.encode(images).mode();
/// assert_eq!(latents.dims(), [1, 4, 8, 8]);
/// assert_eq!(vae.decode(latents).dims(), [1, 3, 16, 16]);
/// ```
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    scaling_factor: f64,
}

impl AutoencoderKlConfig {
    /// Creates a network with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    #[track_caller]
    pub fn init(&self, device: &Device) -> AutoencoderKl {
        if let Err(message) = self.check() {
            panic!("{message}");
        }
        let latents = self.latent_channels;
        AutoencoderKl {
            encoder: Encoder::new(self, device),
            decoder: Decoder::new(self, device),
            quant_conv: Conv2dConfig::new(2 * latents, 2 * latents, 1).init(device),
            post_quant_conv: Conv2dConfig::new(latents, latents, 1).init(device),
            scaling_factor: self.scaling_factor,
        }
    }

    /// Reads the `config.json` of a component of a model, usually `vae`. For a single file without one, it is derived from the
    /// tensor shapes.
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an unsupported option.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let accepted = [
            ("_class_name", json!("AutoencoderKL")),
            ("act_fn", json!("silu")),
            ("mid_block_add_attention", json!(true)),
            ("quantization_config", int8_config()),
            ("shift_factor", json!(0.0)),
            ("use_post_quant_conv", json!(true)),
            ("use_quant_conv", json!(true)),
        ];
        let (config, path) = match model.config(component)? {
            Some(path) => {
                let defaults = Self::diffusers_defaults();
                (model.read_config(&path, &defaults, &accepted)?, path)
            }
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

/// The distribution of latents for encoded images, before scaling.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// The mean, `[batch, latent_channels, height', width']`.
    pub mean: Tensor<4>,
    /// The logarithm of the variance, within −30…20, with the same shape.
    pub log_variance: Tensor<4>,
    scaling_factor: f64,
}

impl Posterior {
    /// The most likely latents, scaled.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone() * self.scaling_factor
    }

    /// A sample of the latents with the given unit noise, scaled.
    ///
    /// # Panics
    ///
    /// If the shapes of the noise and the mean differ.
    #[track_caller]
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        assert_eq!(
            noise.dims(),
            self.mean.dims(),
            "the shapes of the noise and the mean differ"
        );
        let deviation = (self.log_variance.clone() * 0.5).exp();
        (self.mean.clone() + deviation * noise) * self.scaling_factor
    }
}

impl AutoencoderKl {
    /// Loads a component of a model, usually `vae`, in the element type `dtype` [default: f32]. Tensors may have the names of
    /// diffusers (current or from its first year) or of the original training code.
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
        let config = AutoencoderKlConfig::from_model(model, component)?;
        let weights = as_diffusers(model.weights(component)?)?;
        load_widened(
            config.init(device),
            &weights,
            Some(dtype.unwrap_or(DType::F32)),
        )
    }

    /// Returns whether a parameter is in int8 in the file that the pipeline's `quantize` writes: weights without those of the
    /// first and the last convolution and of the convolutions on latents. Loading widens them.
    pub fn is_int8_stored(name: &str, shape: &[usize]) -> bool {
        const KEPT: [&str; 4] = ["conv_in.", "conv_out.", "quant_conv.", "post_quant_conv."];
        shape.len() > 1 && !KEPT.iter().any(|kept| name.contains(kept))
    }

    /// Encodes images.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1, with sides that are multiples of the downsampling factor (8 for
    ///   Stable Diffusion)
    /// - returns: mean and variance, `[batch, latent_channels, height/8, width/8]`
    ///
    /// # Panics
    ///
    /// If the number of channels or the element type does not match the weights.
    #[track_caller]
    pub fn encode(&self, images: Tensor<4>) -> Posterior {
        self.posterior(self.moments(images))
    }

    /// Mean and logarithm of the variance, concatenated: `[batch, 2·latent_channels, height', width']`.
    pub(crate) fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        self.quant_conv.forward(self.encoder.forward(images))
    }

    pub(crate) fn posterior(&self, moments: Tensor<4>) -> Posterior {
        let mut halves = moments.chunk(2, 1).into_iter();
        let (Some(mean), Some(log_variance)) = (halves.next(), halves.next()) else {
            unreachable!("the encoder returns a mean and a variance per channel")
        };
        let log_variance = log_variance.clamp(-30.0, 20.0);
        Posterior {
            mean,
            log_variance,
            scaling_factor: self.scaling_factor,
        }
    }

    /// Decodes latents.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, latent_channels, height, width]`, scaled
    /// - returns: `[batch, 3, 8·height, 8·width]`, RGB in about −1…1
    ///
    /// # Panics
    ///
    /// If the number of channels or the element type does not match the weights.
    #[track_caller]
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let [batch, _, height, width] = latents.dims();
        let [_, channels, _, _] = self.post_quant_conv.weight.lazy_shape().dims::<4>();
        assert_shape!(latents, [batch, channels, height, width]);
        self.decoder
            .forward(self.post_quant_conv.forward(latents / self.scaling_factor))
    }

    /// The element type of the weights, and of latents and images.
    pub fn dtype(&self) -> DType {
        self.post_quant_conv.weight.val().dtype()
    }

    /// Pixels per latent along each axis; 8 for Stable Diffusion.
    pub fn scale(&self) -> usize {
        self.decoder.scale()
    }

    /// The factor of the latents.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }
}

#[derive(Module, Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let (groups, channels) = (config.norm_num_groups, &config.block_out_channels);
        let last = channels.len() - 1;
        let level = |level: usize| {
            let inputs = channels[level.saturating_sub(1)];
            Level::down(
                groups,
                config.layers_per_block,
                inputs,
                channels[level],
                level != last,
                device,
            )
        };
        Self {
            conv_in: Conv2dConfig::same3x3(config.in_channels, channels[0]).init(device),
            down_blocks: (0..=last).map(level).collect(),
            mid_block: MidBlock::new(groups, channels[last], device),
            conv_norm_out: group_norm(groups, channels[last], device),
            conv_out: Conv2dConfig::same3x3(channels[last], 2 * config.latent_channels)
                .init(device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut hidden = self.conv_in.forward(images);
        for block in &self.down_blocks {
            hidden = block.forward(hidden);
        }
        let hidden = self.mid_block.forward(hidden);
        self.conv_out
            .forward(self.conv_norm_out.forward_silu(hidden))
    }
}

#[derive(Module, Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let (groups, channels) = (config.norm_num_groups, &config.block_out_channels);
        let last = channels.len() - 1;
        // The decoder numbers its levels from the coarsest.
        let level = |level: usize| {
            let inputs = channels[last - level.saturating_sub(1)];
            let (layers, outputs) = (config.layers_per_block + 1, channels[last - level]);
            Level::up(groups, layers, inputs, outputs, level != last, device)
        };
        Self {
            conv_in: Conv2dConfig::same3x3(config.latent_channels, channels[last]).init(device),
            mid_block: MidBlock::new(groups, channels[last], device),
            up_blocks: (0..=last).map(level).collect(),
            conv_norm_out: group_norm(groups, channels[0], device),
            conv_out: Conv2dConfig::same3x3(channels[0], config.out_channels).init(device),
        }
    }

    fn scale(&self) -> usize {
        1 << (self.up_blocks.len() - 1)
    }

    fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut hidden = self.mid_block.forward(self.conv_in.forward(latents));
        for block in &self.up_blocks {
            hidden = block.forward(hidden);
        }
        self.conv_out
            .forward(self.conv_norm_out.forward_silu(hidden))
    }
}
