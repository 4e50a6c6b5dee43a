//! Inception-v3 as used for FID (Szegedy et al., arXiv 1512.00567, with the weights of TensorFlow's release of 2015-12-05).

use std::path::Path;

use burn::module::Module;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, Tensor, activation};
use image::{Rgb32FImage, RgbImage};
use swiftbrush_checkpoint::{Weights, load};
use swiftbrush_images::{Filter, Grid, resize_bilinear, resize_floats, to_floats};

use super::layers::{BatchNorm, Classifier, Kernel, convolve};
use super::{FeatureNetwork, batch};
use crate::Error;

/// Side of the input, in pixels.
const SIDE: u32 = 299;
/// The number of pooled features.
const WIDTH: usize = 2048;
/// The number of classes, eight of which are unused.
const CLASSES: usize = 1008;

/// Input transform to 299×299 pixels in about −1…1. FID programs differ here, which changes FIDs by several points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InceptionInput {
    /// pytorch-fid: bilinear on floats without antialiasing, `2·x/255 − 1`.
    PytorchFid,
    /// torch-fidelity and the TensorFlow graph in guided-diffusion's evaluator: bilinear as in TensorFlow 1,
    /// `(x − 128)/128`.
    TorchFidelity,
    /// clean-fid: Pillow's bicubic filter on floats, clipped to 0…255, `(x − 128)/128`.
    CleanFid,
}

impl InceptionInput {
    fn prepare(self, picture: &RgbImage) -> Rgb32FImage {
        let mut prepared = match self {
            Self::PytorchFid => resize_bilinear(picture, SIDE, SIDE, Grid::Centres),
            Self::TorchFidelity => resize_bilinear(picture, SIDE, SIDE, Grid::Corners),
            Self::CleanFid => resize_floats(&to_floats(picture), SIDE, SIDE, Filter::Bicubic),
        };
        for value in prepared.iter_mut() {
            *value = match self {
                Self::PytorchFid => 2.0 * (*value / 255.0) - 1.0,
                Self::TorchFidelity => (*value - 128.0) / 128.0,
                Self::CleanFid => (value.clamp(0.0, 255.0) - 128.0) / 128.0,
            };
        }
        prepared
    }
}

/// The network with an input transform. Clones share the weights.
#[derive(Clone, Debug)]
pub struct Inception {
    network: InceptionV3,
    input: InceptionInput,
    device: Device,
}

impl Inception {
    /// Loads `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, torch-fidelity's
    /// (`weights-inception-2015-12-05-6726825d.pth`), or their tensors as safetensors.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or contains the weights of another network, such as torchvision's Inception with 1000 classes,
    /// which gives other distances.
    pub fn open(
        path: impl AsRef<Path>,
        input: InceptionInput,
        device: &Device,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        // The fields of this module are in lower case.
        let weights = Weights::open(path)?.rename(str::to_ascii_lowercase)?;
        Ok(Self {
            network: load(InceptionV3::new(device), &weights, Some(DType::F32))?,
            input,
            device: device.clone(),
        })
    }

    /// Returns the same network with another input transform.
    pub fn with_input(&self, input: InceptionInput) -> Self {
        Self {
            input,
            ..self.clone()
        }
    }

    /// Computes the pooled features of prepared images.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, 299, 299]`, in about −1…1
    /// - returns: `[batch, 2048]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.network.forward(images)
    }
}

impl FeatureNetwork for Inception {
    fn width(&self) -> usize {
        WIDTH
    }

    fn features(&self, pictures: &[RgbImage]) -> Tensor<2> {
        let prepare = |picture: &RgbImage| self.input.prepare(picture);
        self.forward(batch(pictures, prepare, &self.device))
    }

    /// torch-fidelity's `logits_unbiased`: without the bias of the last layer, as in TensorFlow's inception score.
    fn logits(&self, features: Tensor<2>) -> Option<Tensor<2>> {
        Some(self.network.fc.products(features))
    }
}

/// The network, whose tensors have torchvision's names in lower case.
#[derive(Module, Debug)]
struct InceptionV3 {
    conv2d_1a_3x3: Layer,
    conv2d_2a_3x3: Layer,
    conv2d_2b_3x3: Layer,
    conv2d_3b_1x1: Layer,
    conv2d_4a_3x3: Layer,
    mixed_5b: A,
    mixed_5c: A,
    mixed_5d: A,
    mixed_6a: B,
    mixed_6b: C,
    mixed_6c: C,
    mixed_6d: C,
    mixed_6e: C,
    mixed_7a: D,
    mixed_7b: E,
    mixed_7c: E,
    fc: Classifier,
}

impl InceptionV3 {
    fn new(device: &Device) -> Self {
        let new = |from, to, kernel| Layer::new(from, to, kernel, device);
        Self {
            conv2d_1a_3x3: new(3, 32, [3, 3]).with_stride(2),
            conv2d_2a_3x3: new(32, 32, [3, 3]),
            conv2d_2b_3x3: new(32, 64, [3, 3]).same(),
            conv2d_3b_1x1: new(64, 80, [1, 1]),
            conv2d_4a_3x3: new(80, 192, [3, 3]),
            mixed_5b: A::new(192, 32, device),
            mixed_5c: A::new(256, 64, device),
            mixed_5d: A::new(288, 64, device),
            mixed_6a: B::new(288, device),
            mixed_6b: C::new(768, 128, device),
            mixed_6c: C::new(768, 160, device),
            mixed_6d: C::new(768, 160, device),
            mixed_6e: C::new(768, 192, device),
            mixed_7a: D::new(768, device),
            mixed_7b: E::new(1280, Pool::Mean, device),
            mixed_7c: E::new(2048, Pool::Max, device),
            fc: Classifier::new(WIDTH, CLASSES, device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.conv2d_1a_3x3.forward(images);
        let x = self.conv2d_2a_3x3.forward(x);
        let x = shrink(self.conv2d_2b_3x3.forward(x));
        let x = self.conv2d_3b_1x1.forward(x);
        let x = shrink(self.conv2d_4a_3x3.forward(x));
        let x = [&self.mixed_5b, &self.mixed_5c, &self.mixed_5d]
            .iter()
            .fold(x, |x, block| block.forward(x));
        let x = self.mixed_6a.forward(x);
        let x = [
            &self.mixed_6b,
            &self.mixed_6c,
            &self.mixed_6d,
            &self.mixed_6e,
        ]
        .iter()
        .fold(x, |x, block| block.forward(x));
        let x = self.mixed_7a.forward(x);
        let x = self.mixed_7c.forward(self.mixed_7b.forward(x));
        let [batch, channels, rows, columns] = x.dims();
        x.reshape([batch, channels, rows * columns])
            .mean_dim(2)
            .squeeze_dim::<2>(2)
    }
}

/// Convolution, normalisation and ReLU: torchvision's `BasicConv2d`.
#[derive(Module, Debug)]
struct Layer {
    conv: Kernel,
    bn: BatchNorm,
    stride: usize,
    padding: [usize; 2],
    kernel: [usize; 2],
}

impl Layer {
    fn new(from: usize, to: usize, kernel: [usize; 2], device: &Device) -> Self {
        Self {
            conv: Kernel::new([to, from, kernel[0], kernel[1]], device),
            bn: BatchNorm::new(to, device),
            stride: 1,
            padding: [0, 0],
            kernel,
        }
    }

    fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// Adds zero padding that preserves height and width.
    fn same(mut self) -> Self {
        self.padding = self.kernel.map(|side| side / 2);
        self
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], self.padding, [1, 1], 1);
        activation::relu(convolve(input, &self.conv, &self.bn, options))
    }
}

/// 3×3 max pooling with stride 2.
fn shrink(input: Tensor<4>) -> Tensor<4> {
    max_pool2d(input, MaxPoolOptions::new([3, 3]).with_stride([2, 2]))
}

/// The 3×3 pooling in the pooling branch of a block.
#[derive(Clone, Copy, Debug)]
enum Pool {
    /// Mean that does not count padding, as in TensorFlow.
    Mean,
    /// Maximum, in the last block of FID's network.
    Max,
}

impl Pool {
    fn apply(self, input: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Mean => {
                let options = AvgPoolOptions::new([3, 3])
                    .with_stride([1, 1])
                    .with_padding([1, 1])
                    .with_count_include_pad(false);
                avg_pool2d(input, options)
            }
            Self::Max => {
                let options = MaxPoolOptions::new([3, 3])
                    .with_stride([1, 1])
                    .with_padding([1, 1]);
                max_pool2d(input, options)
            }
        }
    }
}

fn chain(input: Tensor<4>, layers: &[&Layer]) -> Tensor<4> {
    layers.iter().fold(input, |x, layer| layer.forward(x))
}

#[derive(Module, Debug)]
struct A {
    branch1x1: Layer,
    branch5x5_1: Layer,
    branch5x5_2: Layer,
    branch3x3dbl_1: Layer,
    branch3x3dbl_2: Layer,
    branch3x3dbl_3: Layer,
    branch_pool: Layer,
}

impl A {
    fn new(from: usize, pooled: usize, device: &Device) -> Self {
        let new = |from, to, side| Layer::new(from, to, [side, side], device).same();
        Self {
            branch1x1: new(from, 64, 1),
            branch5x5_1: new(from, 48, 1),
            branch5x5_2: new(48, 64, 5),
            branch3x3dbl_1: new(from, 64, 1),
            branch3x3dbl_2: new(64, 96, 3),
            branch3x3dbl_3: new(96, 96, 3),
            branch_pool: new(from, pooled, 1),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = [
            &self.branch3x3dbl_1,
            &self.branch3x3dbl_2,
            &self.branch3x3dbl_3,
        ];
        let branches = vec![
            self.branch1x1.forward(x.clone()),
            chain(x.clone(), &[&self.branch5x5_1, &self.branch5x5_2]),
            chain(x.clone(), &double),
            self.branch_pool.forward(Pool::Mean.apply(x)),
        ];
        Tensor::cat(branches, 1)
    }
}

#[derive(Module, Debug)]
struct B {
    branch3x3: Layer,
    branch3x3dbl_1: Layer,
    branch3x3dbl_2: Layer,
    branch3x3dbl_3: Layer,
}

impl B {
    fn new(from: usize, device: &Device) -> Self {
        let new = |from, to, side| Layer::new(from, to, [side, side], device);
        Self {
            branch3x3: new(from, 384, 3).with_stride(2),
            branch3x3dbl_1: new(from, 64, 1),
            branch3x3dbl_2: new(64, 96, 3).same(),
            branch3x3dbl_3: new(96, 96, 3).with_stride(2),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = [
            &self.branch3x3dbl_1,
            &self.branch3x3dbl_2,
            &self.branch3x3dbl_3,
        ];
        let branches = vec![
            self.branch3x3.forward(x.clone()),
            chain(x.clone(), &double),
            shrink(x),
        ];
        Tensor::cat(branches, 1)
    }
}

#[derive(Module, Debug)]
struct C {
    branch1x1: Layer,
    branch7x7_1: Layer,
    branch7x7_2: Layer,
    branch7x7_3: Layer,
    branch7x7dbl_1: Layer,
    branch7x7dbl_2: Layer,
    branch7x7dbl_3: Layer,
    branch7x7dbl_4: Layer,
    branch7x7dbl_5: Layer,
    branch_pool: Layer,
}

impl C {
    fn new(from: usize, inner: usize, device: &Device) -> Self {
        let new = |from, to, kernel| Layer::new(from, to, kernel, device).same();
        Self {
            branch1x1: new(from, 192, [1, 1]),
            branch7x7_1: new(from, inner, [1, 1]),
            branch7x7_2: new(inner, inner, [1, 7]),
            branch7x7_3: new(inner, 192, [7, 1]),
            branch7x7dbl_1: new(from, inner, [1, 1]),
            branch7x7dbl_2: new(inner, inner, [7, 1]),
            branch7x7dbl_3: new(inner, inner, [1, 7]),
            branch7x7dbl_4: new(inner, inner, [7, 1]),
            branch7x7dbl_5: new(inner, 192, [1, 7]),
            branch_pool: new(from, 192, [1, 1]),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let single = [&self.branch7x7_1, &self.branch7x7_2, &self.branch7x7_3];
        let double = [
            &self.branch7x7dbl_1,
            &self.branch7x7dbl_2,
            &self.branch7x7dbl_3,
            &self.branch7x7dbl_4,
            &self.branch7x7dbl_5,
        ];
        let branches = vec![
            self.branch1x1.forward(x.clone()),
            chain(x.clone(), &single),
            chain(x.clone(), &double),
            self.branch_pool.forward(Pool::Mean.apply(x)),
        ];
        Tensor::cat(branches, 1)
    }
}

#[derive(Module, Debug)]
struct D {
    branch3x3_1: Layer,
    branch3x3_2: Layer,
    branch7x7x3_1: Layer,
    branch7x7x3_2: Layer,
    branch7x7x3_3: Layer,
    branch7x7x3_4: Layer,
}

impl D {
    fn new(from: usize, device: &Device) -> Self {
        let new = |from, to, kernel| Layer::new(from, to, kernel, device);
        Self {
            branch3x3_1: new(from, 192, [1, 1]),
            branch3x3_2: new(192, 320, [3, 3]).with_stride(2),
            branch7x7x3_1: new(from, 192, [1, 1]),
            branch7x7x3_2: new(192, 192, [1, 7]).same(),
            branch7x7x3_3: new(192, 192, [7, 1]).same(),
            branch7x7x3_4: new(192, 192, [3, 3]).with_stride(2),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let wide = [
            &self.branch7x7x3_1,
            &self.branch7x7x3_2,
            &self.branch7x7x3_3,
            &self.branch7x7x3_4,
        ];
        let branches = vec![
            chain(x.clone(), &[&self.branch3x3_1, &self.branch3x3_2]),
            chain(x.clone(), &wide),
            shrink(x),
        ];
        Tensor::cat(branches, 1)
    }
}

#[derive(Module, Debug)]
struct E {
    branch1x1: Layer,
    branch3x3_1: Layer,
    branch3x3_2a: Layer,
    branch3x3_2b: Layer,
    branch3x3dbl_1: Layer,
    branch3x3dbl_2: Layer,
    branch3x3dbl_3a: Layer,
    branch3x3dbl_3b: Layer,
    branch_pool: Layer,
    #[module(skip)]
    pool: Pool,
}

impl E {
    fn new(from: usize, pool: Pool, device: &Device) -> Self {
        let new = |from, to, kernel| Layer::new(from, to, kernel, device).same();
        Self {
            branch1x1: new(from, 320, [1, 1]),
            branch3x3_1: new(from, 384, [1, 1]),
            branch3x3_2a: new(384, 384, [1, 3]),
            branch3x3_2b: new(384, 384, [3, 1]),
            branch3x3dbl_1: new(from, 448, [1, 1]),
            branch3x3dbl_2: new(448, 384, [3, 3]),
            branch3x3dbl_3a: new(384, 384, [1, 3]),
            branch3x3dbl_3b: new(384, 384, [3, 1]),
            branch_pool: new(from, 192, [1, 1]),
            pool,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let single = self.branch3x3_1.forward(x.clone());
        let double = chain(x.clone(), &[&self.branch3x3dbl_1, &self.branch3x3dbl_2]);
        let branches = vec![
            self.branch1x1.forward(x.clone()),
            self.branch3x3_2a.forward(single.clone()),
            self.branch3x3_2b.forward(single),
            self.branch3x3dbl_3a.forward(double.clone()),
            self.branch3x3dbl_3b.forward(double),
            self.branch_pool.forward(self.pool.apply(x)),
        ];
        Tensor::cat(branches, 1)
    }
}
