//! LPIPS, a perceptual distance of images.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, assert_shape};
use swiftbrush_checkpoint::{Model, Weights, load};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, Epilogue};
use swiftbrush_vae::AutoencoderTiny;

use crate::fingerprint::hash;
use crate::losses::with_gradient;
use crate::networks::stored;
use crate::{Error, FrozenStorage, Recipe};

/// Convolutions of each stage of VGG16; all but the first stage begin with max pooling.
pub(crate) const STAGES: [usize; 5] = [2, 2, 3, 3, 3];
/// Numbers of the convolutions in torchvision's `features`.
const LAYERS: [usize; 13] = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
/// Channels of each stage.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];
/// Mean and deviation of each channel of an image in −1…1, as the package rounds them.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Added to the length of features.
const EPSILON: f64 = 1e-10;

/// LPIPS, version 0.1 on VGG16 (Zhang et al., arXiv 1801.03924): the weighted squared difference of features of unit length, after
/// the last activation of each of five stages, averaged over the pixels.
#[derive(Module, Debug)]
pub struct Lpips {
    features: Vec<Conv2d>,
    /// Weights of the channels of each stage, `[1, channels, 1, 1]`.
    lins: Vec<Param<Tensor<4>>>,
}

impl Lpips {
    /// Loads torchvision's `vgg16` and the weights of the package `lpips` (`weights/v0.1/vgg.pth`), pickles or safetensors. The
    /// classifier is not used, and the channels are those of the files.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or does not match.
    pub fn load(
        vgg16: impl AsRef<Path>,
        linear: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, Error> {
        let features = Weights::open(vgg16)?.filter_map(|name| {
            let (number, parameter) = name.strip_prefix("features.")?.split_once('.')?;
            let number: usize = number.parse().ok()?;
            let index = LAYERS.iter().position(|&layer| layer == number)?;
            Some(format!("features.{index}.{parameter}"))
        })?;
        let linear = Weights::open(linear)?.filter_map(|name| {
            let (index, rest) = name.strip_prefix("lin")?.split_once('.')?;
            (rest == "model.1.weight").then(|| format!("lins.{index}"))
        })?;
        let network = Self::new(channels(&features), device);
        Ok(load(network, &features.and(linear)?, Some(DType::F32))?)
    }

    fn new(channels: [usize; 5], device: &Device) -> Self {
        let mut inputs = 3;
        let stages = STAGES.into_iter().zip(channels);
        let features = stages.flat_map(|(count, outputs)| {
            let first = Conv2dConfig::same3x3(std::mem::replace(&mut inputs, outputs), outputs);
            let others = Conv2dConfig::same3x3(outputs, outputs);
            (0..count).map(move |index| match index {
                0 => first.clone(),
                _ => others.clone(),
            })
        });
        Self {
            features: features.map(|config| config.init(device)).collect(),
            lins: channels
                .map(|channels| Param::from_tensor(Tensor::zeros([1, channels, 1, 1], device)))
                .into(),
        }
    }

    /// The distance of each image to its target.
    ///
    /// # Shapes
    ///
    /// - images, targets: `[batch, 3, height, width]`, RGB in −1…1, f32, height and width at least 16
    /// - returns: `[batch, 1, 1, 1]`, at least 0 with the published weights
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    #[track_caller]
    pub fn distance(&self, images: Tensor<4>, targets: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = images.dims();
        assert_shape!(targets, [batch, channels, height, width]);
        let stages = self.stages(images).into_iter().zip(self.stages(targets));
        let distances = stages.zip(&self.lins).map(|((images, targets), lin)| {
            let difference = unit(images) - unit(targets);
            let weighted = difference.powi_scalar(2) * lin.val().cast(FloatDType::F32);
            weighted.sum_dim(1).mean_dim(2).mean_dim(3)
        });
        let distances: Vec<_> = distances.collect();
        Tensor::cat(distances, 1).sum_dim(1)
    }

    /// Features after the last activation of each stage.
    fn stages(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let device = images.device();
        let channel = |values: [f32; 3]| {
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &device)
        };
        let mut hidden = (images - channel(SHIFT)) / channel(SCALE);
        let mut layers = self.features.iter();
        let stages = STAGES.into_iter().enumerate().map(|(stage, count)| {
            if stage > 0 {
                let options = MaxPoolOptions::new([2, 2]).with_stride([2, 2]);
                hidden = max_pool2d(hidden.clone(), options);
            }
            for layer in layers.by_ref().take(count) {
                hidden = layer.forward_with(hidden.clone(), Epilogue::default().with_relu());
            }
            hidden.clone()
        });
        stages.collect()
    }
}

/// Channels of the first convolution of each stage; those of VGG16 where a file has none, which loading then reports.
fn channels(features: &Weights) -> [usize; 5] {
    let mut first = 0;
    std::array::from_fn(|stage| {
        let shape = features.shape(&format!("features.{first}.weight"));
        first += STAGES[stage];
        let outputs = shape.and_then(|shape| shape.first().copied());
        outputs.unwrap_or(CHANNELS[stage])
    })
}

/// Features of unit length at each pixel.
fn unit(features: Tensor<4>) -> Tensor<4> {
    let squares = features.clone().powi_scalar(2).sum_dim(1);
    // A pixel without features would otherwise have a NaN as its gradient, as in the package.
    let length = squares.clamp_min(EPSILON * EPSILON).sqrt();
    features / (length + EPSILON)
}

/// The networks of a perceptual regression loss.
#[derive(Clone, Debug)]
pub struct LpipsNetworks {
    /// The distance.
    pub lpips: Lpips,
    /// The decoder that gradients pass through.
    pub decoder: AutoencoderTiny,
}

impl LpipsNetworks {
    /// Loads the files of [`Lpips::load`] and `taesd` of a model; weights are stored as the recipe says.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or does not match, or has weights beyond the range of their type.
    pub fn load(
        [vgg16, linear]: [&Path; 2],
        decoder: &Model,
        recipe: &Recipe,
        device: &Device,
    ) -> Result<Self, Error> {
        let networks = Self {
            lpips: Lpips::load(vgg16, linear, device)?,
            decoder: AutoencoderTiny::from_model(decoder, "taesd", Some(DType::F32), device)?,
        };
        networks.stored(recipe.frozen_weights)
    }

    pub(crate) fn stored(self, storage: FrozenStorage) -> Result<Self, Error> {
        Ok(Self {
            lpips: stored(storage, "lpips", self.lpips)?,
            decoder: stored(storage, "decoder", self.decoder)?,
        })
    }

    pub(crate) fn hash(&self) -> String {
        format!("{} {}", hash(&self.lpips), hash(&self.decoder))
    }

    /// The mean distance of decoded latents and decoded targets. Its gradient is computed at once, so that the graph of both
    /// networks does not exist beside that of the latents.
    ///
    /// # Shapes
    ///
    /// - latents, targets: `[batch, channels, height, width]`, scaled, f32; the latents on the student's graph, the targets without
    ///   autodiff
    /// - returns: `[1]`, on the same graph
    pub fn loss(&self, latents: Tensor<4>, targets: Tensor<4>) -> Tensor<1> {
        let lpips = self.lpips.clone().freeze().train();
        let decoder = self.decoder.clone().freeze().train();
        let targets = self.decoder.decode(targets).autodiff();
        let leaf = latents.clone().inner().autodiff().require_grad();
        let distance = lpips.distance(decoder.decode(leaf.clone()), targets);
        let loss = distance.mean();
        let grad = leaf.grad_remove(&mut loss.clone().backward());
        let grad = grad.expect("the distance depends on the latents");
        with_gradient(latents, loss.inner(), grad)
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, values};

    use super::*;

    #[test]
    fn features_of_zero_have_no_gradient() {
        let features = Tensor::<4>::from_data([[[[0.0, 3.0]], [[0.0, 4.0]]]], &device());
        let features = features.autodiff().require_grad();
        let found = unit(features.clone());
        assert_eq!(values(found.clone().inner()), [0.0, 0.6, 0.0, 0.8]);
        let squares = found.powi_scalar(2).sum();
        let grad = values(features.grad(&squares.backward()).unwrap());
        // A vector of unit length keeps it.
        assert!(grad.iter().all(|value| value.abs() < 1e-6), "{grad:?}");
    }
}
