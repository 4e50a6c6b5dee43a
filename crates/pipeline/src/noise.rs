use std::collections::VecDeque;

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use swiftbrush_torch_noise::{CpuGenerator, CudaGenerator};

use crate::Error;

/// A source of unit normal noise for the initial latents, and for samplers that add noise.
pub trait Noise {
    /// Draws the next noise.
    ///
    /// # Shapes
    ///
    /// - returns: `shape`
    ///
    /// # Errors
    ///
    /// If no noise of that shape is available.
    fn draw(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, Error>;
}

/// A random number generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// ChaCha8, the same on every machine and device.
    #[default]
    Native,
    /// PyTorch's CPU generator in f32, as in diffusers with a CPU generator, and in ComfyUI. diffusers in half precision
    /// draws in half precision, which gives different values.
    Cpu,
    /// PyTorch's CUDA generator in f32, as in AUTOMATIC1111's web UI.
    Cuda,
}

/// One generator per image, like a list of generators in diffusers: the noise of an image is the same alone and in a
/// batch. The image may still differ in its last bits, because networks sum in a different order.
#[derive(Clone, Debug)]
pub struct Seeds(Vec<Generator>);

#[derive(Clone, Debug)]
enum Generator {
    Native(Box<ChaCha8Rng>),
    Cpu(Box<CpuGenerator>),
    Cuda(CudaGenerator),
}

impl Seeds {
    /// Creates generators with these seeds, one for each image.
    pub fn new(rng: Rng, seeds: impl IntoIterator<Item = u64>) -> Self {
        let generator = |seed| match rng {
            Rng::Native => Generator::Native(Box::new(ChaCha8Rng::seed_from_u64(seed))),
            Rng::Cpu => Generator::Cpu(Box::new(CpuGenerator::new(seed))),
            Rng::Cuda => Generator::Cuda(CudaGenerator::new(seed)),
        };
        Self(seeds.into_iter().map(generator).collect())
    }
}

impl Generator {
    fn draw(&mut self, count: usize) -> Vec<f32> {
        match self {
            Self::Native(rng) => StandardNormal.sample_iter(rng).take(count).collect(),
            Self::Cpu(generator) => generator.randn(count),
            Self::Cuda(generator) => generator.randn(count),
        }
    }
}

impl Noise for Seeds {
    fn draw(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, Error> {
        let [batch, channels, height, width] = shape;
        if self.0.len() != batch {
            let text = format!(
                "expected {batch} seeds for {batch} images, found {}",
                self.0.len()
            );
            return Err(Error::Request(text));
        }
        let count = channels * height * width;
        let values = self.0.iter_mut().flat_map(|rng| rng.draw(count)).collect();
        Ok(Tensor::from_data(
            TensorData::new::<f32, _>(values, shape),
            device,
        ))
    }
}

/// Predetermined noise, in the order in which it is drawn.
#[derive(Clone, Debug)]
pub struct Given(VecDeque<Tensor<4>>);

impl Given {
    /// Returns this noise in order; drawing more is an error.
    pub fn new(noise: impl IntoIterator<Item = Tensor<4>>) -> Self {
        Self(noise.into_iter().collect())
    }
}

impl From<Tensor<4>> for Given {
    fn from(noise: Tensor<4>) -> Self {
        Self::new([noise])
    }
}

impl Noise for Given {
    fn draw(&mut self, shape: [usize; 4], _device: &Device) -> Result<Tensor<4>, Error> {
        let noise = self.0.pop_front().ok_or_else(|| {
            Error::Request("the sampler needs more noise than was given".to_owned())
        })?;
        if noise.dims() != shape {
            let text = format!(
                "expected noise of shape {shape:?}, found {:?}",
                noise.dims()
            );
            return Err(Error::Request(text));
        }
        Ok(noise)
    }
}
