use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use swiftbrush_kernels::{
    Conv2d, Conv2dConfig, Epilogue, GroupNorm, GroupNormConfig, Linear, LinearConfig, Mask,
    attention,
};

/// Epsilon of every group normalisation in the autoencoder.
const EPSILON: f64 = 1e-6;

pub(crate) fn group_norm(groups: usize, channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(groups, channels)
        .with_epsilon(EPSILON)
        .init(device)
}

/// A residual block.
#[derive(Module, Debug)]
pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(groups: usize, inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            norm1: group_norm(groups, inputs, device),
            conv1: Conv2dConfig::same3x3(inputs, outputs).init(device),
            norm2: group_norm(groups, outputs, device),
            conv2: Conv2dConfig::same3x3(outputs, outputs).init(device),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2dConfig::new(inputs, outputs, 1).init(device)),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let hidden = self.conv1.forward(self.norm1.forward_silu(input.clone()));
        let skip = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(input),
            None => input,
        };
        let residual = Epilogue::default().with_residual(skip);
        self.conv2
            .forward_with(self.norm2.forward_silu(hidden), residual)
    }
}

/// One level of the encoder or the decoder: residual blocks and a change of resolution.
#[derive(Module, Debug)]
pub(crate) struct Level {
    resnets: Vec<Resnet>,
    downsamplers: Option<Vec<Resampler>>,
    upsamplers: Option<Vec<Resampler>>,
}

#[derive(Module, Debug)]
struct Resampler {
    conv: Conv2d,
}

impl Level {
    fn resnets(
        groups: usize,
        layers: usize,
        inputs: usize,
        outputs: usize,
        device: &Device,
    ) -> Vec<Resnet> {
        (0..layers)
            .map(|layer| {
                Resnet::new(
                    groups,
                    if layer == 0 { inputs } else { outputs },
                    outputs,
                    device,
                )
            })
            .collect()
    }

    pub(crate) fn down(
        groups: usize,
        layers: usize,
        inputs: usize,
        outputs: usize,
        halves: bool,
        device: &Device,
    ) -> Self {
        // The encoder pads only the bottom and right edges.
        let conv = Conv2dConfig::new(outputs, outputs, 3)
            .with_stride(2)
            .with_padding((0, 1));
        Self {
            resnets: Self::resnets(groups, layers, inputs, outputs, device),
            downsamplers: halves.then(|| {
                vec![Resampler {
                    conv: conv.init(device),
                }]
            }),
            upsamplers: None,
        }
    }

    pub(crate) fn up(
        groups: usize,
        layers: usize,
        inputs: usize,
        outputs: usize,
        doubles: bool,
        device: &Device,
    ) -> Self {
        let conv = Conv2dConfig::same3x3(outputs, outputs);
        Self {
            resnets: Self::resnets(groups, layers, inputs, outputs, device),
            downsamplers: None,
            upsamplers: doubles.then(|| {
                vec![Resampler {
                    conv: conv.init(device),
                }]
            }),
        }
    }

    pub(crate) fn forward(&self, mut hidden: Tensor<4>) -> Tensor<4> {
        for resnet in &self.resnets {
            hidden = resnet.forward(hidden);
        }
        for downsampler in self.downsamplers.iter().flatten() {
            hidden = downsampler.conv.forward(hidden);
        }
        for upsampler in self.upsamplers.iter().flatten() {
            hidden = upsampler.conv.forward_upsampled(hidden);
        }
        hidden
    }
}

/// `UNetMidBlock2D`: attention between two residual blocks.
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    attentions: Vec<PixelAttention>,
    resnets: Vec<Resnet>,
}

impl MidBlock {
    pub(crate) fn new(groups: usize, channels: usize, device: &Device) -> Self {
        Self {
            attentions: vec![PixelAttention::new(groups, channels, device)],
            resnets: (0..2)
                .map(|_| Resnet::new(groups, channels, channels, device))
                .collect(),
        }
    }

    pub(crate) fn forward(&self, hidden: Tensor<4>) -> Tensor<4> {
        let hidden = self.attentions[0].forward(self.resnets[0].forward(hidden));
        self.resnets[1].forward(hidden)
    }
}

/// Self-attention over pixels, with one head.
#[derive(Module, Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// The checkpoint's `to_out.0`, and its `to_out.1`, a dropout of rate 0.
    to_out: (Linear, Dropout),
}

impl PixelAttention {
    fn new(groups: usize, channels: usize, device: &Device) -> Self {
        let linear = || LinearConfig::new(channels, channels).init(device);
        Self {
            group_norm: group_norm(groups, channels, device),
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            to_out: (linear(), DropoutConfig::new(0.0).init()),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = input.dims();
        let tokens = self.group_norm.forward(input.clone());
        let tokens = tokens
            .permute([0, 2, 3, 1])
            .reshape([batch, height * width, channels]);
        let one_head = |layer: &Linear| layer.forward(tokens.clone()).unsqueeze_dim::<4>(1);
        let (query, key, value) = (
            one_head(&self.to_q),
            one_head(&self.to_k),
            one_head(&self.to_v),
        );
        let mixed = attention(query, key, value, Mask::None).squeeze_dim::<3>(1);
        let mixed = self.to_out.0.forward(mixed);
        input
            + mixed
                .reshape([batch, height, width, channels])
                .permute([0, 3, 1, 2])
    }
}
