use std::collections::VecDeque;

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use swiftbrush_torch_noise::{CpuGenerator, CudaGenerator};

use crate::Error;

/// Where unit normal noise comes from: what a picture begins with, and what some samplers add on the way.
pub trait Noise {
    /// The next noise.
    ///
    /// # Shapes
    ///
    /// - returns: `shape`
    ///
    /// # Errors
    ///
    /// If there is none of that shape.
    fn draw(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, Error>;
}

/// Whose numbers a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// ChaCha, the same on every machine and device.
    #[default]
    Native,
    /// PyTorch's on the CPU: diffusers with a generator there, ComfyUI.
    Cpu,
    /// PyTorch's on CUDA: AUTOMATIC1111's interface.
    Cuda,
}

/// A generator for each picture, so that a picture is the same alone and in a batch; in diffusers, a list of
/// generators.
#[derive(Debug)]
pub struct Seeds(Vec<Generator>);

#[derive(Debug)]
enum Generator {
    Native(Box<ChaCha8Rng>),
    Cpu(Box<CpuGenerator>),
    Cuda(CudaGenerator),
}

impl Seeds {
    /// Generators with these seeds, one for each picture.
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
            let text = format!("there are {} seeds for {batch} pictures", self.0.len());
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

/// Noise that is there already, in the order in which it is asked for.
#[derive(Clone, Debug)]
pub struct Given(VecDeque<Tensor<4>>);

impl Given {
    /// This noise, and no other.
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
            Error::Request("the sampler wants more noise than it was given".to_owned())
        })?;
        if noise.dims() != shape {
            let text = format!("the noise is {:?}, wanted is {shape:?}", noise.dims());
            return Err(Error::Request(text));
        }
        Ok(noise)
    }
}
