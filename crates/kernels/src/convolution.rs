//! Two-dimensional convolution.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Tensor, module};

/// Convolution of a batch of images, the call behind every [`Conv2d`].
///
/// At present burn's own on every backend; kernels for 3×3 will stand behind this function.
///
/// # Shapes
///
/// - input: `[batch, channels_in, height, width]`
/// - weight: `[channels_out, channels_in / groups, kernel_height, kernel_width]`
/// - bias: `[channels_out]`
/// - returns: `[batch, channels_out, height', width']`
///
/// # Panics
///
/// If the shapes do not agree, or input and weight differ in dtype.
pub fn conv2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<2>,
) -> Tensor<4> {
    assert_eq!(input.dtype(), weight.dtype(), "input and weight differ in dtype");
    module::conv2d(input, weight, bias, options)
}

/// Configuration of a [`Conv2d`] with a square kernel.
#[derive(Config, Debug)]
pub struct Conv2dConfig {
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Distance between two applications of the kernel.
    #[config(default = 1)]
    pub stride: usize,
    /// Zeros around the input: above and to the left, below and to the right.
    #[config(default = "(0, 0)")]
    pub padding: (usize, usize),
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl Conv2dConfig {
    /// The 3×3 convolution that keeps height and width.
    pub fn same3x3(channels_in: usize, channels_out: usize) -> Self {
        Self::new(channels_in, channels_out, 3).with_padding((1, 1))
    }

    /// A layer initialised as PyTorch's: uniform within `1/√(channels_in·kernel²)`.
    pub fn init(&self, device: &Device) -> Conv2d {
        let Self { channels_in, channels_out, kernel, stride, padding, bias } = *self;
        let bound = 1.0 / ((channels_in * kernel * kernel) as f64).sqrt();
        let uniform = Distribution::Uniform(-bound, bound);
        let weight = [channels_out, channels_in, kernel, kernel];
        Conv2d {
            weight: Param::uninitialized(
                burn::module::ParamId::new(),
                move |device, _| Tensor::random(weight, uniform, device),
                device.clone(),
                true,
                weight.into(),
            ),
            bias: bias.then(|| Param::from_tensor(Tensor::random([channels_out], uniform, device))),
            stride,
            padding,
        }
    }
}

/// Convolution with its parameters; see [`conv2d`].
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[channels_out, channels_in, kernel, kernel]`
    pub weight: Param<Tensor<4>>,
    /// `[channels_out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between two applications of the kernel.
    pub stride: usize,
    /// Zeros around the input: above and to the left, below and to the right.
    pub padding: (usize, usize),
}

impl Conv2d {
    /// `[batch, channels_in, height, width]` → `[batch, channels_out, height', width']`
    ///
    /// # Panics
    ///
    /// If the input has other channels, or another dtype than the weights.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let stride = [self.stride; 2];
        let options = ConvOptions::new_with_padding(stride, [self.padding; 2], [1, 1], 1);
        conv2d(input, self.weight.val(), self.bias.as_ref().map(Param::val), options)
    }
}
