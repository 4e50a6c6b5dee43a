use burn::module::Module;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, join_channels};

use crate::resnet::Resnet;
use crate::transformer::Transformer;
use crate::{Context, UNetConfig};

/// `DownBlock2D` or `CrossAttnDownBlock2D`.
#[derive(Module, Debug)]
pub(crate) struct DownBlock {
    resnets: Vec<Resnet>,
    attentions: Option<Vec<Transformer>>,
    downsamplers: Option<Vec<Resampler>>,
}

impl DownBlock {
    pub(crate) fn new(config: &UNetConfig, block: usize, device: &Device) -> Self {
        let outputs = config.block_out_channels[block];
        let inputs = config.block_out_channels[block.saturating_sub(1)];
        let layers = 0..config.layers_per_block.get(block);
        let is_last = block + 1 == config.block_out_channels.len();
        let attention = |_| Transformer::new(config, outputs, config.heads(block), device);
        let downsampler = || {
            let padding = config.downsample_padding;
            let conv = Conv2dConfig::new(outputs, outputs, 3)
                .with_stride(2)
                .with_padding((padding, padding));
            vec![Resampler {
                conv: conv.init(device),
            }]
        };
        Self {
            resnets: layers
                .clone()
                .map(|layer| {
                    Resnet::new(
                        config,
                        if layer == 0 { inputs } else { outputs },
                        outputs,
                        device,
                    )
                })
                .collect(),
            attentions: config.down_block_types[block]
                .has_attention()
                .then(|| layers.map(attention).collect()),
            downsamplers: (!is_last).then(downsampler),
        }
    }

    /// Returns the outputs of all layers, which are the skip connections. The last one is the output of the block.
    pub(crate) fn forward(
        &self,
        mut hidden: Tensor<4>,
        time: &Tensor<2>,
        context: &Context,
    ) -> Vec<Tensor<4>> {
        let layers = 0..self.n_layers();
        let outputs = layers.map(|layer| {
            hidden = self.layer(layer, hidden.clone(), time, context);
            hidden.clone()
        });
        outputs.collect()
    }

    /// Number of layers: residual blocks with their attention, and the downsampler.
    pub(crate) fn n_layers(&self) -> usize {
        self.resnets.len() + self.downsamplers.iter().flatten().count()
    }

    /// Computes the output of one layer.
    pub(crate) fn layer(
        &self,
        layer: usize,
        hidden: Tensor<4>,
        time: &Tensor<2>,
        context: &Context,
    ) -> Tensor<4> {
        let Some(resnet) = self.resnets.get(layer) else {
            let downsamplers = self.downsamplers.iter().flatten();
            return downsamplers.fold(hidden, |hidden, downsampler| {
                downsampler.conv.forward(hidden)
            });
        };
        let hidden = resnet.forward(hidden, time.clone());
        attend(&self.attentions, layer, hidden, context)
    }
}

/// `UNetMidBlock2DCrossAttn`.
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    attentions: Vec<Transformer>,
    resnets: Vec<Resnet>,
}

impl MidBlock {
    pub(crate) fn new(config: &UNetConfig, device: &Device) -> Self {
        let last = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[last];
        Self {
            attentions: vec![Transformer::new(
                config,
                channels,
                config.heads(last),
                device,
            )],
            resnets: (0..2)
                .map(|_| Resnet::new(config, channels, channels, device))
                .collect(),
        }
    }

    pub(crate) fn forward(
        &self,
        hidden: Tensor<4>,
        time: &Tensor<2>,
        context: &Context,
    ) -> Tensor<4> {
        let hidden = self.first(hidden, time, context);
        self.second(hidden, time)
    }

    /// Computes the first residual block and the attention.
    pub(crate) fn first(
        &self,
        hidden: Tensor<4>,
        time: &Tensor<2>,
        context: &Context,
    ) -> Tensor<4> {
        let hidden = self.resnets[0].forward(hidden, time.clone());
        self.attentions[0].forward(hidden, context)
    }

    /// Computes the second residual block.
    pub(crate) fn second(&self, hidden: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        self.resnets[1].forward(hidden, time.clone())
    }
}

/// `UpBlock2D` or `CrossAttnUpBlock2D`.
#[derive(Module, Debug)]
pub(crate) struct UpBlock {
    resnets: Vec<Resnet>,
    attentions: Option<Vec<Transformer>>,
    upsamplers: Option<Vec<Resampler>>,
}

impl UpBlock {
    /// Creates a block of the decoder, numbered from the coarsest.
    pub(crate) fn new(config: &UNetConfig, block: usize, device: &Device) -> Self {
        let last = config.block_out_channels.len() - 1;
        let channels = |block: usize| config.block_out_channels[last - block.min(last)];
        let (outputs, previous) = (channels(block), channels(block.saturating_sub(1)));
        let n_down = config.layers_per_block.get(last - block);
        let layers = 0..n_down + 1;
        let resnet = |layer| {
            let skip = if layer == n_down {
                channels(block + 1)
            } else {
                outputs
            };
            let inputs = if layer == 0 { previous } else { outputs };
            Resnet::new(config, inputs + skip, outputs, device)
        };
        let attention = |_| Transformer::new(config, outputs, config.heads(last - block), device);
        let upsampler = || {
            vec![Resampler {
                conv: Conv2dConfig::same3x3(outputs, outputs).init(device),
            }]
        };
        Self {
            resnets: layers.clone().map(resnet).collect(),
            attentions: config.up_block_types[block]
                .has_attention()
                .then(|| layers.map(attention).collect()),
            upsamplers: (block != last).then(upsampler),
        }
    }

    /// Number of skip connections used by the block: one per layer.
    pub(crate) fn n_skips(&self) -> usize {
        self.resnets.len()
    }

    /// Computes the output from skip connections in the encoder's order; upsampled to the height and width `to` unless this is the
    /// last block.
    pub(crate) fn forward(
        &self,
        mut hidden: Tensor<4>,
        skips: Vec<Tensor<4>>,
        time: &Tensor<2>,
        context: &Context,
        to: [usize; 2],
    ) -> Tensor<4> {
        let mut skips = skips.into_iter().rev();
        for layer in 0..self.n_layers() {
            hidden = self.layer(layer, hidden, skips.next(), time, context, to);
        }
        hidden
    }

    /// Number of layers: residual blocks with their attention, and the upsampler.
    pub(crate) fn n_layers(&self) -> usize {
        self.resnets.len() + self.upsamplers.iter().flatten().count()
    }

    /// Computes the output of one layer. All but the upsampler take a skip connection.
    pub(crate) fn layer(
        &self,
        layer: usize,
        hidden: Tensor<4>,
        skip: Option<Tensor<4>>,
        time: &Tensor<2>,
        context: &Context,
        to: [usize; 2],
    ) -> Tensor<4> {
        let (Some(resnet), Some(skip)) = (self.resnets.get(layer), skip) else {
            let upsamplers = self.upsamplers.iter().flatten();
            return upsamplers.fold(hidden, |hidden, upsampler| upsampler.forward(hidden, to));
        };
        let hidden = resnet.forward(join_channels(hidden, skip), time.clone());
        attend(&self.attentions, layer, hidden, context)
    }
}

/// Applies the attention of a layer, if the block has any.
fn attend(
    attentions: &Option<Vec<Transformer>>,
    layer: usize,
    hidden: Tensor<4>,
    context: &Context,
) -> Tensor<4> {
    match attentions {
        Some(attentions) => attentions[layer].forward(hidden, context),
        None => hidden,
    }
}

/// The convolution of a down- or upsampler.
#[derive(Module, Debug)]
struct Resampler {
    conv: Conv2d,
}

impl Resampler {
    /// Convolves after nearest-neighbour upsampling to a height and width (twice the input's, except for odd sizes).
    fn forward(&self, input: Tensor<4>, to: [usize; 2]) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        if to == [2 * height, 2 * width] {
            return self.conv.forward_upsampled(input);
        }
        let nearest = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(to);
        self.conv.forward(interpolate(input, nearest))
    }
}
