//! Random numbers as a function of seed, purpose and step.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The purpose of random numbers; each has its own stream at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The order of the data.
    Data = 0,
    /// Noise and timesteps of the student's step.
    Student = 1,
    /// Noise, timesteps and null prompts of the fake teacher's step.
    Fake = 2,
    /// Noise of preview images.
    Preview = 3,
    /// Initial weights.
    Weights = 4,
    /// Scales of classifier-free guidance.
    Guidance = 5,
    /// Noise of the watcher's images.
    Watch = 6,
    /// The order of pairs.
    Pairs = 7,
    /// The order of real images, and their noise.
    Denoise = 8,
}

/// A random number generator for one purpose at one step.
///
/// It has no state to save: a resumed run draws the same numbers that it would have drawn.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// Creates the generator for a purpose at a step.
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step << 8 | purpose as u64);
        Self(rng)
    }

    /// Draws unit normal noise, the same on every device.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| StandardNormal.sample(&mut self.0))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Draws integers uniformly from `range`.
    pub fn integers(&mut self, count: usize, range: std::ops::Range<usize>) -> Vec<usize> {
        (0..count)
            .map(|_| self.0.random_range(range.clone()))
            .collect()
    }

    /// Returns true with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Draws 64 bits.
    pub(crate) fn word(&mut self) -> u64 {
        self.0.random()
    }

    /// Draws a number uniformly from 0…1, 1 excluded.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_purpose_and_step() {
        let draw = |seed, purpose, step| Random::new(seed, purpose, step).integers(4, 0..1 << 30);
        let base = draw(1, Purpose::Student, 5);
        assert_eq!(base, draw(1, Purpose::Student, 5));
        assert_ne!(base, draw(2, Purpose::Student, 5));
        assert_ne!(base, draw(1, Purpose::Fake, 5));
        assert_ne!(base, draw(1, Purpose::Student, 6));
    }
}
