//! Group normalisation, with the activation that follows it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Shape, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::linear::value;

/// What follows a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x · sigmoid(x)` (also called swish).
    Silu,
}

/// Group normalisation (Wu and He, arXiv 1803.08494) followed by an activation.
///
/// Statistics are taken in f32 whatever the dtype of the input. Under autodiff only the input and
/// the parameters are kept.
///
/// # Shapes
///
/// - input: `[batch, channels, height, width]`
/// - gamma, beta: `[channels]`
/// - returns: as input
///
/// # Panics
///
/// If the shapes do not agree, the dtypes differ, or `channels` is not a multiple of `groups`.
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
        groups,
        epsilon,
        activation,
    ))
}

/// Configuration of a [`GroupNorm`].
#[derive(Config, Debug)]
pub struct GroupNormConfig {
    /// Into how many groups the channels are split.
    pub groups: usize,
    /// Channels of the input; a multiple of `groups`.
    pub channels: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

impl GroupNormConfig {
    /// A layer that scales by one and shifts by nothing.
    ///
    /// # Panics
    ///
    /// If `channels` is not a multiple of `groups`.
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
    /// Into how many groups the channels are split.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

impl GroupNorm {
    /// Normalises images, and nothing else. Shapes as in [`group_norm`].
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

/// The input seen as `[batch, groups, elements]`, centred and scaled, in at least f32.
struct Normalized<B: Backend> {
    values: FloatTensor<B>,
    reciprocal_deviation: FloatTensor<B>,
}

fn normalize<B: Backend>(input: FloatTensor<B>, groups: usize, epsilon: f64) -> Normalized<B> {
    let [batch, channels, height, width] = input.shape().dims::<4>();
    let elements = channels / groups * height * width;
    let x = B::float_reshape(widen::<B>(input), Shape::new([batch, groups, elements]));
    let mean = B::float_mean_dim(x.clone(), 2);
    let centred = B::float_sub(x, mean);
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 2);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let reciprocal_deviation = B::float_recip(deviation);
    let values = B::float_mul(centred, reciprocal_deviation.clone());
    Normalized {
        values,
        reciprocal_deviation,
    }
}

pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(tensor, FloatDType::F32),
        _ => tensor,
    }
}

fn per_channel<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let channels = tensor.shape().num_elements();
    B::float_reshape(widen::<B>(tensor), Shape::new([1, channels, 1, 1]))
}

/// `γ·x̂ + β` from the normalised values.
fn affine<B: Backend>(
    normalized: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
) -> FloatTensor<B> {
    let scaled = B::float_mul(normalized, per_channel::<B>(gamma));
    B::float_add(scaled, per_channel::<B>(beta))
}

/// Composed of burn's operations, for every backend without a kernel of its own.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> FloatTensor<B> {
    let (shape, dtype) = (input.shape(), FloatDType::from(input.dtype()));
    let normalized = normalize::<B>(input, groups, epsilon).values;
    let y = affine::<B>(B::float_reshape(normalized, shape), gamma, beta);
    let y = match activation {
        Activation::Identity => y,
        Activation::Silu => B::float_mul(y.clone(), B::sigmoid(y)),
    };
    if y.dtype() == dtype.into() {
        y
    } else {
        B::float_cast(y, dtype)
    }
}

/// Gradients for input, gamma and beta.
///
/// With `x̂` the normalised input and `dx̂ = γ·dy`, the means taken over a group:
/// `dx = (dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)) / deviation`.
pub(crate) fn backward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    grad: FloatTensor<B>,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (shape, dtype) = (input.shape(), FloatDType::from(input.dtype()));
    let [batch, channels, height, width] = shape.dims::<4>();
    let grouped = Shape::new([batch, groups, channels / groups * height * width]);
    let Normalized {
        values,
        reciprocal_deviation,
    } = normalize::<B>(input, groups, epsilon);
    let normalized = B::float_reshape(values.clone(), shape.clone());

    let grad = match activation {
        Activation::Identity => widen::<B>(grad),
        Activation::Silu => {
            // silu'(y) = s·(1 + y·(1 − s)) with s = sigmoid(y)
            let y = affine::<B>(normalized.clone(), gamma.clone(), beta);
            let s = B::sigmoid(y.clone());
            let rest = B::float_add_scalar(B::float_neg(s.clone()), 1.0.into());
            let slope = B::float_add_scalar(B::float_mul(y, rest), 1.0.into());
            B::float_mul(widen::<B>(grad), B::float_mul(s, slope))
        }
    };

    let channel_sum = |tensor: FloatTensor<B>| {
        let sum = B::float_sum_dims(tensor, &[0, 2, 3]);
        B::float_cast(B::float_reshape(sum, Shape::new([channels])), dtype)
    };
    let gamma_grad = channel_sum(B::float_mul(grad.clone(), normalized));
    let beta_grad = channel_sum(grad.clone());

    let grad = B::float_mul(grad, per_channel::<B>(gamma));
    let grad = B::float_reshape(grad, grouped);
    let mean = B::float_mean_dim(grad.clone(), 2);
    let projection = B::float_mean_dim(B::float_mul(grad.clone(), values.clone()), 2);
    let grad = B::float_sub(B::float_sub(grad, mean), B::float_mul(values, projection));
    let grad = B::float_mul(grad, reciprocal_deviation);
    let input_grad = B::float_cast(B::float_reshape(grad, shape), dtype);
    (input_grad, gamma_grad, beta_grad)
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::silu;
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    const EPSILON: f64 = 1e-3;

    /// By its definition, in burn's differentiable operations.
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
            // More than one cube takes the sums of a group on a GPU.
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
}
