//! Convolution and batch normalisation for classifiers.

use burn::module::{Module, Param, ParamId};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};

/// A parameter to load.
fn param<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, _| Tensor::zeros(shape, device);
    Param::uninitialized(ParamId::new(), zeros, device.clone(), false, shape.into())
}

/// The kernels of a convolution. It has no bias, because the normalisation after it does.
#[derive(Module, Debug)]
pub(super) struct Kernel {
    /// `[channels_out, channels_in / groups, height, width]`
    weight: Param<Tensor<4>>,
}

impl Kernel {
    pub(super) fn new(shape: [usize; 4], device: &Device) -> Self {
        Self {
            weight: param(shape, device),
        }
    }
}

/// Batch normalisation with the statistics of training.
#[derive(Module, Debug)]
pub(super) struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
}

impl BatchNorm {
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        let of_channels = || param([channels], device);
        Self {
            weight: of_channels(),
            bias: of_channels(),
            running_mean: of_channels(),
            running_var: of_channels(),
        }
    }
}

/// The last layer, from features to classes.
#[derive(Module, Debug)]
pub(super) struct Classifier {
    weight: Param<Tensor<2>>,
    pub(super) bias: Param<Tensor<1>>,
}

impl Classifier {
    pub(super) fn new(features: usize, classes: usize, device: &Device) -> Self {
        Self {
            weight: param([classes, features], device),
            bias: param([classes], device),
        }
    }

    /// The products without the bias: `[batch, features]` → `[batch, classes]`.
    pub(super) fn products(&self, features: Tensor<2>) -> Tensor<2> {
        features.matmul(self.weight.val().transpose())
    }
}

/// Epsilon of the normalisation in both networks.
const EPSILON: f64 = 1e-3;

/// Convolves with the normalisation folded in as a factor and an offset for each kernel.
pub(super) fn convolve(
    input: Tensor<4>,
    kernel: &Kernel,
    norm: &BatchNorm,
    options: ConvOptions<2>,
) -> Tensor<4> {
    let deviation = (norm.running_var.val() + EPSILON).sqrt();
    let scale = norm.weight.val() / deviation;
    let bias = norm.bias.val() - norm.running_mean.val() * scale.clone();
    let weight = kernel.weight.val() * scale.unsqueeze_dims::<4>(&[1, 2, 3]);
    conv2d(input, weight, Some(bias), options)
}
