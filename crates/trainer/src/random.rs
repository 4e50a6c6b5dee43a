//! Random numbers that depend on nothing but a seed, a purpose and a step.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What random numbers are drawn for; each purpose has a stream of its own at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The order of the data.
    Data = 0,
    /// Everything of the student's step.
    Student = 1,
    /// Everything of the fake teacher's step.
    Fake = 2,
    /// Pictures for people to look at.
    Preview = 3,
    /// Initial weights.
    Weights = 4,
}

/// A source of random numbers for one purpose at one step.
///
/// There is no state to save: a run that resumes at a step draws what it would have drawn.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The source for a purpose at a step of a run.
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step << 8 | purpose as u64);
        Self(rng)
    }

    /// Unit normal noise of a shape, the same on every device.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| StandardNormal.sample(&mut self.0))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Whole numbers, uniform in `range`.
    pub fn integers(&mut self, count: usize, range: std::ops::Range<usize>) -> Vec<usize> {
        (0..count)
            .map(|_| self.0.random_range(range.clone()))
            .collect()
    }

    /// True with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Uniform in 0…1.
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
