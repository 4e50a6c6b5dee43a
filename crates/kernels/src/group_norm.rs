//! Group normalisation with an activation.

use burn::backend::Dispatch;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::options::{Activation, GroupNormOptions};
use crate::params::value;

/// Group normalisation (Wu and He, arXiv 1803.08494) followed by an activation.
///
/// Statistics are computed in f32, whatever the dtype of the input. Under autodiff, only the input and the parameters are kept.
///
/// # Shapes
///
/// - input: `[batch, channels, height, width]`
/// - gamma, beta: `[channels]`
/// - returns: same as input
///
/// # Panics
///
/// If the shapes do not match, the dtypes differ, or `channels` is not a multiple of `groups`.
#[track_caller]
pub fn group_norm(
    input: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> Tensor<4> {
    let [_, channels, _, _] = input.dims();
    assert_shape!(gamma, [channels]);
    assert_shape!(beta, [channels]);
    assert_eq!(
        channels % groups,
        0,
        "{channels} channels do not split into {groups} groups"
    );
    assert_eq!(
        input.dtype(),
        gamma.dtype(),
        "input and gamma differ in dtype"
    );

    Tensor::from_dispatch(<Dispatch as Kernels>::fused_group_norm(
        input.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        GroupNormOptions {
            groups,
            epsilon,
            activation,
        },
    ))
}

/// Configuration of a [`GroupNorm`].
#[derive(Config, Debug)]
pub struct GroupNormConfig {
    /// Number of groups of channels.
    pub groups: usize,
    /// Channels of the input, a multiple of `groups`.
    pub channels: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

impl GroupNormConfig {
    /// Creates a layer with a scale of one and a shift of zero.
    ///
    /// # Panics
    ///
    /// If `channels` is not a multiple of `groups`.
    #[track_caller]
    pub fn init(&self, device: &Device) -> GroupNorm {
        let Self {
            groups,
            channels,
            epsilon,
        } = *self;
        assert_eq!(
            channels % groups,
            0,
            "{channels} channels do not split into {groups} groups"
        );
        GroupNorm {
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
            groups,
            epsilon,
        }
    }
}

/// Group normalisation with its parameters; see [`group_norm`].
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Scale, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// Number of groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

impl GroupNorm {
    /// Normalises images. Shapes as in [`group_norm`].
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        self.apply(input, Activation::Identity)
    }

    /// Normalises images and applies SiLU. Shapes as in [`group_norm`].
    pub fn forward_silu(&self, input: Tensor<4>) -> Tensor<4> {
        self.apply(input, Activation::Silu)
    }

    fn apply(&self, input: Tensor<4>, activation: Activation) -> Tensor<4> {
        let dtype = input.dtype();
        let (weight, bias) = (value(&self.weight, dtype), value(&self.bias, dtype));
        group_norm(input, weight, bias, self.groups, self.epsilon, activation)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::silu;
    use swiftbrush_testing::{assert_close, assert_values_close, device, random};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const EPSILON: f64 = 1e-3;

    /// The definition, in burn's differentiable operations.
    fn reference(
        input: Tensor<4>,
        gamma: Tensor<1>,
        beta: Tensor<1>,
        groups: usize,
        activation: Activation,
    ) -> Tensor<4> {
        let shape = input.dims();
        let x = input.reshape([shape[0], groups, shape[1] / groups * shape[2] * shape[3]]);
        let (variance, mean) = x.clone().var_mean_bias(2);
        let x = ((x - mean) / (variance + EPSILON).sqrt()).reshape(shape);
        let channel = |t: Tensor<1>| t.reshape([1, shape[1], 1, 1]);
        let y = x * channel(gamma) + channel(beta);
        match activation {
            Activation::Identity => y,
            Activation::Silu => silu(y),
        }
    }

    fn inputs(shape: [usize; 4], device: &Device) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
        (
            random(shape, 0, device).require_grad(),
            random([shape[1]], 1, device).require_grad(),
            random([shape[1]], 2, device).require_grad(),
        )
    }

    fn check(shape: [usize; 4], groups: usize, activation: Activation) {
        let device = device().autodiff();
        let (input, gamma, beta) = inputs(shape, &device);
        let weight = random(shape, 3, &device);
        let run = |output: Tensor<4>| {
            let grads = (output.clone() * weight.clone()).sum().backward();
            let input = input.grad(&grads).unwrap();
            (
                output.inner(),
                input,
                gamma.grad(&grads).unwrap(),
                beta.grad(&grads).unwrap(),
            )
        };
        let found = run(group_norm(
            input.clone(),
            gamma.clone(),
            beta.clone(),
            groups,
            EPSILON,
            activation,
        ));
        let expected = run(reference(
            input.clone(),
            gamma.clone(),
            beta.clone(),
            groups,
            activation,
        ));

        assert_close(found.0, expected.0, 1e-5);
        assert_close(found.1, expected.1, 1e-5);
        assert_close(found.2, expected.2, 1e-5);
        assert_close(found.3, expected.3, 1e-5);
    }

    #[test]
    fn agrees_with_its_definition() {
        for activation in [Activation::Identity, Activation::Silu] {
            check([2, 6, 3, 5], 3, activation);
            check([1, 4, 1, 1], 1, activation);
            check([3, 8, 4, 4], 8, activation);
            // On a GPU, the sums of a group take more than one cube.
            check([2, 6, 40, 41], 2, activation);
        }
    }

    #[test]
    fn takes_an_input_whose_memory_is_permuted() {
        let device = device().autodiff();
        for side in [3, 60] {
            let (input, gamma, beta) = inputs([2, 6, side, 6], &device);
            let permuted = input.permute([0, 3, 1, 2]);
            let contiguous = Tensor::from_data(permuted.to_data(), &device);
            let run = |x| group_norm(x, gamma.clone(), beta.clone(), 2, EPSILON, Activation::Silu);
            assert_close(run(permuted), run(contiguous), 1e-6);
        }
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        let device = device();
        let parameter = |seed| random::<1>([4], seed, &device);
        let run = |x| {
            let (gamma, beta) = (parameter(1), parameter(2));
            group_norm(x, gamma, beta, 2, EPSILON, Activation::Identity)
        };
        // Multiples of a power of two, which 4096 is added to exactly.
        let input: Tensor<4> = random([1, 4, 30, 50], 0, &device);
        let input = (input * 256.0).round() / 256.0;
        // The mean itself is an f32.
        assert_close(run(input.clone() + 4096.0), run(input), 1e-4);
    }

    #[test]
    fn an_outlier_costs_no_precision_wherever_it_is() {
        let device = device();
        let shape = [1, 4, 128, 96];
        let (gamma, beta) = (random([4], 1, &device), random([4], 2, &device));
        for at in [0, 7, 24_575] {
            let mut values = swiftbrush_testing::values(random(shape, 0, &device));
            values[at] = 1e4;
            // The definition in f64, on the group of the outlier.
            let group: Vec<f64> = values[..24_576].iter().map(|x| f64::from(*x)).collect();
            let mean = group.iter().sum::<f64>() / group.len() as f64;
            let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            let deviation = (variance / group.len() as f64 + EPSILON).sqrt();
            let affine = [&gamma, &beta].map(|tensor| swiftbrush_testing::values(tensor.clone()));
            let expected = group.iter().enumerate().map(|(i, x)| {
                let channel = i / (128 * 96);
                let [gamma, beta] =
                    [&affine[0], &affine[1]].map(|values| f64::from(values[channel]));
                ((x - mean) / deviation * gamma + beta) as f32
            });
            let input = Tensor::from_data(burn::tensor::TensorData::new(values, shape), &device);
            let found = group_norm(
                input,
                gamma.clone(),
                beta.clone(),
                2,
                EPSILON,
                Activation::Identity,
            );
            let found = swiftbrush_testing::values(found.narrow(1, 0, 2));
            // Without the outlier itself, which would hide errors of all others.
            let without = |values: Vec<f32>| {
                let values = values.into_iter().enumerate();
                values.filter(|(i, _)| *i != at).map(|(_, x)| x).collect()
            };
            let (found, expected): (Vec<f32>, Vec<f32>) =
                (without(found), without(expected.collect()));
            assert_values_close(&found, &expected, 1e-5);
        }
    }
}
