//! The classifier of the protocol: a convolutional network that is not used for training or for any choice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_checkpoint::{Archive, LazyTensor, named_tensors, with_tensors, write_tensors};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, GroupNorm, GroupNormConfig, Linear, LinearConfig};
use swiftbrush_metrics::Features;

use crate::attributes::{ATTRIBUTES, attribute_loss, name_attributes};
use crate::data::{Batch, SIDE, images};
use crate::training::{PARTS, Schedule, train};

/// Number of training steps of the shipped weights.
pub(crate) const STEPS: u64 = 4000;
/// Output channels of the convolutions; all but the first halve the side.
const CHANNELS: [usize; 4] = [32, 48, 64, 96];
/// Groups of channels that are normalised after each convolution.
const GROUPS: usize = 8;
/// Width of the features.
const WIDTH: usize = 64;

/// Classifier of the attributes of an image. It also predicts placements, so that its features encode where an object is
/// and not only what it is.
#[derive(Module, Debug)]
pub(crate) struct Classifier {
    convolutions: Vec<Conv2d>,
    norms: Vec<GroupNorm>,
    features: Linear,
    attributes: Linear,
    placements: Linear,
}

impl Classifier {
    /// Random weights.
    pub(crate) fn new(device: &Device) -> Self {
        let inputs = [3].into_iter().chain(CHANNELS);
        let convolutions = inputs
            .zip(CHANNELS)
            .enumerate()
            .map(|(at, (inputs, outputs))| {
                let stride = if at == 0 { 1 } else { 2 };
                let config = Conv2dConfig::same3x3(inputs, outputs).with_stride(stride);
                config.init(device)
            });
        let side = SIDE >> (CHANNELS.len() - 1);
        let flat = CHANNELS[CHANNELS.len() - 1] * side * side;
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Self {
            convolutions: convolutions.collect(),
            norms: CHANNELS
                .map(|channels| GroupNormConfig::new(GROUPS, channels).init(device))
                .into(),
            features: linear(flat, WIDTH),
            attributes: linear(WIDTH, ATTRIBUTES.iter().sum()),
            placements: linear(WIDTH, 6),
        }
    }

    /// File of the weights used for the reported tables.
    pub(crate) fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature/classifier.safetensors")
    }

    /// Writes the weights in f16.
    pub(crate) fn save(&self) -> Result<()> {
        let half = |(name, data): (String, TensorData)| {
            LazyTensor::ready(name, data.convert_dtype(DType::F16))
        };
        let tensors = named_tensors(self).into_iter().map(half).collect();
        Ok(write_tensors(Self::path(), tensors, HashMap::new())?)
    }

    /// Reads the weights.
    pub(crate) fn open(device: &Device) -> Result<Self> {
        let path = Self::path();
        let file = Archive::open(&path)?;
        let tensors = file.names().into_iter().map(|name| {
            let data = file.read(&name)?.convert_dtype(DType::F32);
            Ok((name, data))
        });
        let tensors: Result<_> = tensors.collect();
        Ok(with_tensors(Self::new(device), &tensors?, &path)?)
    }

    /// `[batch, 3, SIDE, SIDE]` in −1…1 → `[batch, WIDTH]`
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let convolved = self
            .convolutions
            .iter()
            .zip(&self.norms)
            .fold(images, |images, (layer, norm)| {
                norm.forward_silu(layer.forward(images))
            });
        let [batch, channels, height, width] = convolved.dims();
        let flat = convolved.reshape([batch, channels * height * width]);
        self.features.forward(flat)
    }

    fn loss(&self, batch: &Batch, device: &Device) -> Tensor<1> {
        /// Weight of the placements, whose squared errors are small.
        const PLACEMENTS: f64 = 10.0;
        let hidden = silu(self.forward(batch.images(device)));
        let logits = self.attributes.forward(hidden.clone());
        let expected = batch.placement_values();
        let expected = TensorData::new(expected, [batch.scenes.len(), 6]);
        let expected = Tensor::from_data(expected, device);
        let error = (self.placements.forward(hidden) - expected).powi_scalar(2);
        attribute_loss(logits, &batch.scenes) + error.mean() * PLACEMENTS
    }

    /// Features of RGB images, before the last activation.
    pub(crate) fn features(&self, pictures: &[Vec<u8>], device: &Device) -> Result<Features> {
        const BATCH: usize = 256;
        let mut values = Vec::with_capacity(pictures.len() * WIDTH);
        for pictures in pictures.chunks(BATCH) {
            let features = self.forward(images(pictures, device));
            values.extend(features.into_data().iter::<f32>());
        }
        Ok(Features::new(WIDTH, values)?)
    }

    /// Share of ground-truth images whose attributes are all predicted correctly.
    fn accuracy(&self, batch: &Batch, device: &Device) -> f64 {
        let hidden = silu(self.forward(batch.images(device)));
        let named = name_attributes(self.attributes.forward(hidden));
        let right = named.iter().zip(&batch.scenes);
        let right = right.filter(|(named, scene)| **named == crate::attributes::attributes(scene));
        right.count() as f64 / batch.scenes.len() as f64
    }
}

/// Trains the classifier on ground-truth images of the training pairs.
pub(crate) fn train_classifier(
    folder: &Path,
    seed: u64,
    steps: u64,
    device: &Device,
) -> Result<Classifier> {
    const BATCH: usize = 64 / PARTS as usize;
    let device = device.clone().autodiff();
    let schedule = Schedule {
        learning_rate: 2e-3,
        ..Schedule::new(steps, PARTS)
    };
    let loss = |model: &Classifier, step| model.loss(&Batch::new(seed, step, BATCH), &device);
    let look = |model: &Classifier, step| {
        let batch = Batch::new(seed ^ 1, u64::MAX, 512);
        let right = model.accuracy(&batch, &device.clone().inner());
        eprintln!("step {step}: every attribute of a true image named, {right:.3}");
        Ok(())
    };
    train(
        folder,
        Classifier::new(&device),
        schedule,
        &device,
        loss,
        look,
    )
}
