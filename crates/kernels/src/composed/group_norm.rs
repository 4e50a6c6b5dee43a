//! Group normalisation.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use crate::composed::{narrow, widen};
use crate::options::{Activation, GroupNormOptions};

/// The input as `[batch, groups, elements]`, centred and scaled, in at least f32.
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

/// Normalises groups of channels, then applies the activation.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    options: GroupNormOptions,
) -> FloatTensor<B> {
    let (shape, dtype) = (input.shape(), FloatDType::from(input.dtype()));
    let normalized = normalize::<B>(input, options.groups, options.epsilon).values;
    let y = affine::<B>(B::float_reshape(normalized, shape), gamma, beta);
    let y = match options.activation {
        Activation::Identity => y,
        Activation::Silu => B::float_mul(y.clone(), B::sigmoid(y)),
    };
    narrow::<B>(y, dtype)
}

/// Gradients of input, gamma and beta.
///
/// With `x̂` the normalised input and `dx̂ = γ·dy`, and means over a group:
/// `dx = (dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)) / deviation`.
pub(crate) fn backward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    grad: FloatTensor<B>,
    options: GroupNormOptions,
) -> [FloatTensor<B>; 3] {
    let (shape, dtype) = (input.shape(), FloatDType::from(input.dtype()));
    let [_, channels, _, _] = shape.dims::<4>();
    let Normalized {
        values,
        reciprocal_deviation,
    } = normalize::<B>(input, options.groups, options.epsilon);
    let normalized = B::float_reshape(values.clone(), shape.clone());

    let grad = widen::<B>(grad);
    let grad = match options.activation {
        Activation::Identity => grad,
        Activation::Silu => {
            let y = affine::<B>(normalized.clone(), gamma.clone(), beta);
            B::float_mul(grad, silu_slope::<B>(y))
        }
    };

    let channel_sum = |tensor: FloatTensor<B>| {
        let sum = B::float_sum_dims(tensor, &[0, 2, 3]);
        B::float_cast(B::float_reshape(sum, Shape::new([channels])), dtype)
    };
    let gamma_grad = channel_sum(B::float_mul(grad.clone(), normalized));
    let beta_grad = channel_sum(grad.clone());

    let grad = B::float_mul(grad, per_channel::<B>(gamma));
    let grad = B::float_reshape(grad, values.shape());
    let mean = B::float_mean_dim(grad.clone(), 2);
    let projection = B::float_mean_dim(B::float_mul(grad.clone(), values.clone()), 2);
    let grad = B::float_sub(B::float_sub(grad, mean), B::float_mul(values, projection));
    let grad = B::float_mul(grad, reciprocal_deviation);
    let input_grad = B::float_cast(B::float_reshape(grad, shape), dtype);
    [input_grad, gamma_grad, beta_grad]
}

/// `silu'(y) = s·(1 + y·(1 − s))` with `s = sigmoid(y)`
fn silu_slope<B: Backend>(y: FloatTensor<B>) -> FloatTensor<B> {
    let s = B::sigmoid(y.clone());
    let rest = B::float_add_scalar(B::float_neg(s.clone()), 1.0.into());
    B::float_mul(s, B::float_add_scalar(B::float_mul(y, rest), 1.0.into()))
}
