use burn::module::Module;
use burn::nn::Relu;
use burn::tensor::activation::relu;
use burn::tensor::{DType, Device, Tensor};
use serde_json::json;
use swiftbrush_checkpoint::{Error, Model, load};
use swiftbrush_kernels::{Checkpoints, Conv2d, Conv2dConfig, Epilogue, upsample_nearest_2x};

use crate::AutoencoderTinyConfig;
use crate::names::of_taesd;

/// Bound of the magnitude that latents are squashed to before decoding.
const LATENT_MAGNITUDE: f64 = 3.0;

/// TAESD, a small replacement for [`AutoencoderKl`](crate::AutoencoderKl) on the same latents (madebyollin/taesd; diffusers'
/// `AutoencoderTiny`).
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_vae::AutoencoderTinyConfig;
///
/// let device = Device::flex();
/// let vae = AutoencoderTinyConfig::tiny().init(&device);
/// let latents = Tensor::<4>::zeros([1, 4, 8, 8], &device);
/// assert_eq!(vae.decode(latents).dims(), [1, 3, 16, 16]);
/// ```
#[derive(Module, Debug)]
pub struct AutoencoderTiny {
    encoder: Sequence,
    decoder: Sequence,
    scaling_factor: f64,
}

impl AutoencoderTinyConfig {
    /// Creates a network with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    #[track_caller]
    pub fn init(&self, device: &Device) -> AutoencoderTiny {
        if let Err(message) = self.check() {
            panic!("{message}");
        }
        AutoencoderTiny {
            encoder: self.encoder(device),
            decoder: self.decoder(device),
            scaling_factor: self.scaling_factor,
        }
    }

    /// Reads the `config.json` of a component of a model [default: that of TAESD].
    ///
    /// # Errors
    ///
    /// If it cannot be read, contradicts itself, or sets an unsupported option.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let accepted = [
            ("_class_name", json!("AutoencoderTiny")),
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
        let Some(path) = path.filter(|path| model.is_file(path)) else {
            return Ok(Self::default());
        };
        let config = model.read_config(&path, &Self::default(), &accepted)?;
        config
            .check()
            .map_err(|reason| Error::Config { path, reason })?;
        Ok(config)
    }

    fn encoder(&self, device: &Device) -> Sequence {
        let channels = self.encoder_block_out_channels[0];
        let mut layers = Vec::new();
        for (stage, &blocks) in self.num_encoder_blocks.iter().enumerate() {
            let conv = match stage {
                0 => Conv2dConfig::same3x3(self.in_channels, channels),
                _ => Conv2dConfig::same3x3(channels, channels)
                    .with_stride(2)
                    .with_bias(false),
            };
            layers.push(Layer::Convolution(conv.init(device)));
            layers.extend((0..blocks).map(|_| Layer::Block(Block::new(channels, device))));
        }
        let conv = Conv2dConfig::same3x3(channels, self.latent_channels);
        layers.push(Layer::Convolution(conv.init(device)));
        Sequence { layers }
    }

    fn decoder(&self, device: &Device) -> Sequence {
        let channels = self.decoder_block_out_channels[0];
        let conv = Conv2dConfig::same3x3(self.latent_channels, channels);
        let mut layers = vec![Layer::Convolution(conv.init(device)), Layer::Relu(Relu)];
        let last = self.num_decoder_blocks.len() - 1;
        for (stage, &blocks) in self.num_decoder_blocks.iter().enumerate() {
            layers.extend((0..blocks).map(|_| Layer::Block(Block::new(channels, device))));
            let conv = if stage == last {
                Conv2dConfig::same3x3(channels, self.out_channels)
            } else {
                layers.push(Layer::Upsample(Upsample));
                Conv2dConfig::same3x3(channels, channels).with_bias(false)
            };
            layers.push(Layer::Convolution(conv.init(device)));
        }
        Sequence { layers }
    }
}

impl AutoencoderTiny {
    /// Loads a component of a model in the element type `dtype` [default: f32]. The component is a diffusers folder, or one
    /// with TAESD's own files, `taesd_encoder` and `taesd_decoder` with the extension `.safetensors` or `.pth`.
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
        let config = AutoencoderTinyConfig::from_model(model, component)?;
        let part = |half: &str| {
            let file = |end| model.path(&format!("{component}/taesd_{half}.{end}"));
            let mut files = ["safetensors", "pth"].into_iter().filter_map(file);
            files.find(|path| model.is_file(path))
        };
        let weights = match (part("encoder"), part("decoder")) {
            (Some(encoder), Some(decoder)) => {
                let encoder = of_taesd(&model.open_weights(&encoder)?, "encoder")?;
                encoder.and(of_taesd(&model.open_weights(&decoder)?, "decoder")?)?
            }
            _ => model.weights(component)?,
        };
        load(
            config.init(device),
            &weights,
            Some(dtype.unwrap_or(DType::F32)),
        )
    }

    /// The element type of the weights, and of latents and images.
    pub fn dtype(&self) -> DType {
        let convolution = self.decoder.layers.iter().find_map(|layer| match layer {
            Layer::Convolution(convolution) => Some(convolution.weight.val().dtype()),
            _ => None,
        });
        convolution.unwrap_or(DType::F32)
    }

    /// Pixels per latent along each axis; 8 for TAESD.
    pub fn scale(&self) -> usize {
        let upsamples = |layer: &&Layer| matches!(layer, Layer::Upsample(_));
        1 << self.decoder.layers.iter().filter(upsamples).count()
    }

    /// Encodes images.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`, RGB in −1…1
    /// - returns: `[batch, latent_channels, height/8, width/8]`, scaled
    ///
    /// # Panics
    ///
    /// If the number of channels or the element type does not match the weights.
    #[track_caller]
    pub fn encode(&self, images: Tensor<4>) -> Tensor<4> {
        self.encoder.forward((images + 1.0) / 2.0) * self.scaling_factor
    }

    /// Decodes latents. Differentiable, for the clamped CLIP loss (arXiv 2408.14176, §4.3).
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
        let n_stages = self.decoder.stages().len();
        (0..n_stages).fold(latents, |hidden, stage| self.decode_stage(stage, hidden))
    }

    /// [`decode`](Self::decode) for a memory-efficient backward pass: it runs without a graph and keeps only the inputs
    /// of the decoder's stages, which [`CheckpointedDecoding::backward`] runs again.
    ///
    /// The network is frozen and on an autodiff device; latents lose their graph.
    ///
    /// # Shapes
    ///
    /// As [`decode`](Self::decode).
    ///
    /// # Panics
    ///
    /// As [`decode`](Self::decode).
    #[track_caller]
    pub fn decode_checkpointed(&self, latents: Tensor<4>) -> CheckpointedDecoding {
        let plain = self.valid();
        let n_stages = self.decoder.stages().len();
        let link = |stage, hidden| plain.decode_stage(stage, hidden);
        CheckpointedDecoding(Checkpoints::forward(n_stages, latents, link))
    }

    /// One of the decoder's stages, each at twice the size of the one before; the first begins with latents, the last
    /// ends with images.
    fn decode_stage(&self, stage: usize, mut hidden: Tensor<4>) -> Tensor<4> {
        let stages = self.decoder.stages();
        if stage == 0 {
            let latents = hidden / self.scaling_factor;
            hidden = (latents / LATENT_MAGNITUDE).tanh() * LATENT_MAGNITUDE;
        }
        let hidden = forward(stages[stage], hidden);
        match stage + 1 == stages.len() {
            true => hidden * 2.0 - 1.0,
            false => hidden,
        }
    }
}

/// Images decoded by [`AutoencoderTiny::decode_checkpointed`], and the inputs of the decoder's stages.
#[derive(Clone, Debug)]
pub struct CheckpointedDecoding(Checkpoints<4>);

impl CheckpointedDecoding {
    /// The images, without a graph.
    pub fn images(&self) -> Tensor<4> {
        self.0.output()
    }

    /// The gradient of the latents, without a graph, for the network of the forward pass and the gradient of the images.
    ///
    /// # Panics
    ///
    /// If the gradient has another shape than the images, or the network is not on an autodiff device.
    #[track_caller]
    pub fn backward(self, network: &AutoencoderTiny, grad: Tensor<4>) -> Tensor<4> {
        let link = |stage, hidden| network.decode_stage(stage, hidden);
        self.0.backward(grad, link)
    }
}

/// A sequence of layers, indexed as in checkpoints.
#[derive(Module, Debug)]
struct Sequence {
    layers: Vec<Layer>,
}

impl Sequence {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        forward(&self.layers, input)
    }

    /// The layers up to the first upsampling, up to the second, and so on.
    fn stages(&self) -> Vec<&[Layer]> {
        let (mut stages, mut first) = (Vec::new(), 0);
        for (index, layer) in self.layers.iter().enumerate() {
            if matches!(layer, Layer::Upsample(_)) {
                stages.push(&self.layers[first..index]);
                first = index;
            }
        }
        stages.push(&self.layers[first..]);
        stages
    }
}

fn forward(layers: &[Layer], input: Tensor<4>) -> Tensor<4> {
    let (mut hidden, mut layers) = (input, layers);
    // A convolution fuses the upsampling before it or the ReLU after it.
    while let Some((layer, mut rest)) = layers.split_first() {
        hidden = match (layer, rest) {
            (Layer::Convolution(convolution), [Layer::Relu(_), after @ ..]) => {
                rest = after;
                convolution.forward_with(hidden, Epilogue::default().with_relu())
            }
            (Layer::Upsample(_), [Layer::Convolution(convolution), after @ ..]) => {
                rest = after;
                convolution.forward_upsampled(hidden)
            }
            (Layer::Convolution(convolution), _) => convolution.forward(hidden),
            (Layer::Block(block), _) => block.forward(hidden),
            (Layer::Relu(_), _) => relu(hidden),
            (Layer::Upsample(_), _) => upsample_nearest_2x(hidden),
        };
        layers = rest;
    }
    hidden
}

#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there are only a few layers, each allocated once"
)]
enum Layer {
    Convolution(Conv2d),
    Block(Block),
    Relu(Relu),
    Upsample(Upsample),
}

/// Nearest-neighbour upsampling by 2; has no parameters.
#[derive(Module, Debug)]
struct Upsample;

/// Three convolutions on a residual path.
#[derive(Module, Debug)]
struct Block {
    conv: (Conv2d, Relu, Conv2d, Relu, Conv2d),
}

impl Block {
    fn new(channels: usize, device: &Device) -> Self {
        let conv = || Conv2dConfig::same3x3(channels, channels).init(device);
        Self {
            conv: (conv(), Relu, conv(), Relu, conv()),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let (first, _, second, _, third) = &self.conv;
        let relu = Epilogue::default().with_relu();
        let hidden = first.forward_with(input.clone(), relu.clone());
        let hidden = second.forward_with(hidden, relu.clone());
        third.forward_with(hidden, relu.with_residual(input))
    }
}
