use burn::module::Module;
use burn::tensor::{Device, Tensor};
use swiftbrush_kernels::{
    Conv2d, Conv2dConfig, Epilogue, GroupNorm, GroupNormConfig, Linear, LinearConfig, silu,
};

use crate::UNetConfig;

/// A residual block conditioned on the timestep.
#[derive(Module, Debug)]
pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(crate) fn new(config: &UNetConfig, inputs: usize, outputs: usize, device: &Device) -> Self {
        let norm = |channels| {
            GroupNormConfig::new(config.norm_num_groups, channels)
                .with_epsilon(config.norm_eps)
                .init(device)
        };
        let time_width = 4 * config.block_out_channels[0];
        Self {
            norm1: norm(inputs),
            conv1: Conv2dConfig::same3x3(inputs, outputs).init(device),
            time_emb_proj: LinearConfig::new(time_width, outputs).init(device),
            norm2: norm(outputs),
            conv2: Conv2dConfig::same3x3(outputs, outputs).init(device),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2dConfig::new(inputs, outputs, 1).init(device)),
        }
    }

    /// `[batch, inputs, height, width]`, `[batch, time width]` → `[batch, outputs, height, width]`
    pub(crate) fn forward(&self, input: Tensor<4>, time: Tensor<2>) -> Tensor<4> {
        let shift = Epilogue::default().with_shift(self.time_emb_proj.forward(silu(time)));
        let hidden = self.norm1.forward_silu(input.clone());
        let hidden = self.conv1.forward_with(hidden, shift);
        let skip = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(input),
            None => input,
        };
        let residual = Epilogue::default().with_residual(skip);
        self.conv2
            .forward_with(self.norm2.forward_silu(hidden), residual)
    }
}
