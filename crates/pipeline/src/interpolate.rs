//! Interpolation between prompts and between noises, for animations.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::{Conditioning, Error, Noise};

/// Cosine above which two noises count as parallel, where the formula divides by zero.
const PARALLEL: f64 = 0.9995;

/// Spherical interpolation, `(sin((1−s)θ)·a + sin(sθ)·b) / sin θ` where θ is the angle between the samples: unlike a
/// weighted mean, it keeps the norm, so that noise stays noise. Almost parallel samples are averaged.
///
/// # Shapes
///
/// - from, to and the result: `[batch, channels, height, width]`
/// - shares: one per sample; 0 is `from`, 1 is `to`
///
/// # Panics
///
/// If the shapes differ, or the number of shares is not the number of samples.
///
/// # References
///
/// Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
#[track_caller]
pub fn slerp(from: Tensor<4>, to: Tensor<4>, shares: &[f64]) -> Tensor<4> {
    assert_eq!(from.dims(), to.dims(), "the noises differ in shape");
    assert_eq!(shares.len(), from.dims()[0], "one share per sample");
    let [from, to] = [from, to].map(|noise| noise.cast(FloatDType::F32));
    let sums = |a: &Tensor<4>, b: &Tensor<4>| -> Vec<f64> {
        let products: Tensor<2> = (a.clone() * b.clone()).flatten(1, 3);
        let sums = products.sum_dim(1).into_data();
        sums.iter::<f32>().map(f64::from).collect()
    };
    let (both, first, second) = (sums(&from, &to), sums(&from, &from), sums(&to, &to));
    let weights = shares.iter().enumerate().map(|(index, &share)| {
        let cosine = both[index] / (first[index] * second[index]).sqrt();
        spherical(cosine, share)
    });
    let (of_from, of_to): (Vec<f32>, Vec<f32>) = weights.unzip();
    let column = |weights: Vec<f32>| {
        let shape = [shares.len(), 1, 1, 1];
        Tensor::<4>::from_data(TensorData::new(weights, shape), &from.device())
    };
    from.clone() * column(of_from) + to * column(of_to)
}

/// Weights of both ends.
fn spherical(cosine: f64, share: f64) -> (f32, f32) {
    // A NaN, of noise that is zero, is parallel too.
    if cosine.abs() <= PARALLEL {
        let angle = cosine.acos();
        let weight = |share: f64| ((share * angle).sin() / angle.sin()) as f32;
        (weight(1.0 - share), weight(share))
    } else {
        ((1.0 - share) as f32, share as f32)
    }
}

/// Noise between two sources; see [`slerp`].
#[derive(Clone, Debug)]
pub struct Between<A, B> {
    from: A,
    to: B,
    shares: Vec<f64>,
}

impl<A: Noise, B: Noise> Between<A, B> {
    /// Noise between `from` and `to`, with a share for each image: 0 is `from`, 1 is `to`.
    pub fn new(from: A, to: B, shares: impl Into<Vec<f64>>) -> Self {
        let shares = shares.into();
        Self { from, to, shares }
    }
}

impl<A: Noise, B: Noise> Noise for Between<A, B> {
    fn draw(&mut self, shape: [usize; 4], device: &Device) -> Result<Tensor<4>, Error> {
        let [batch, ..] = shape;
        if self.shares.len() != batch {
            return Err(Error::Request(format!(
                "expected a share for each of {batch} images, found {}",
                self.shares.len()
            )));
        }
        let (from, to) = (self.from.draw(shape, device)?, self.to.draw(shape, device)?);
        Ok(slerp(from, to, &self.shares))
    }
}

impl Conditioning {
    /// Embeddings between two prompts, `(1−s)·a + s·b`, one per share: 0 is `self`, 1 is `to`. Negative embeddings are
    /// those of `self`.
    ///
    /// # Errors
    ///
    /// If a share is not from 0 to 1, or the number of prompts on either side is neither one nor the number of shares.
    pub fn interpolate(&self, to: &Self, shares: &[f64]) -> Result<Self, Error> {
        if let Some(share) = shares.iter().find(|share| !(0.0..=1.0).contains(*share)) {
            let text = format!("share {share} between two prompts; expected 0 to 1");
            return Err(Error::Request(text));
        }
        let count = shares.len();
        let [_, length, width] = self.context.dims();
        for found in [self.context.dims(), to.context.dims()] {
            let expected = [[1, length, width], [count, length, width]];
            if !expected.contains(&found) {
                return Err(Error::Request(format!(
                    "expected embeddings of shape {:?} to interpolate, found {found:?}",
                    [count, length, width]
                )));
            }
        }
        let shares: Vec<f32> = shares.iter().map(|&share| share as f32).collect();
        let device = self.context.device();
        let shares = Tensor::<3>::from_data(TensorData::new(shares, [count, 1, 1]), &device);
        let dtype = FloatDType::from(self.context.dtype());
        let [from, to_context] =
            [&self.context, &to.context].map(|x| x.clone().cast(FloatDType::F32));
        let of_from = -shares.clone() + 1.0;
        let context: Tensor<3> = from * of_from + to_context * shares;
        let warnings = self.warnings.iter().chain(&to.warnings).cloned();
        Ok(Self {
            tokens: None,
            context: context.cast(dtype),
            negative: self.negative.clone(),
            warnings: warnings.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    #[test]
    fn the_ends_are_the_noises_and_parallel_noises_are_averaged() {
        let device = device();
        let [a, b] = [0, 1].map(|seed| random([2, 4, 3, 3], seed, &device));
        assert_close(slerp(a.clone(), b.clone(), &[0.0, 0.0]), a.clone(), 1e-6);
        assert_close(slerp(a.clone(), b.clone(), &[1.0, 1.0]), b, 1e-6);
        let doubled = slerp(a.clone(), a.clone() * 2.0, &[0.5, 0.25]);
        let expected = Tensor::cat(
            vec![a.clone().narrow(0, 0, 1) * 1.5, a.narrow(0, 1, 1) * 1.25],
            0,
        );
        assert_close(doubled, expected, 1e-6);
    }
}
