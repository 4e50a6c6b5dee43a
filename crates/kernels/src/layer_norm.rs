//! Layer normalisation over the last axis.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Shape, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::group_norm::widen;
use crate::linear::value;

/// Layer normalisation (Ba et al., arXiv 1607.06450), statistics in f32 whatever the dtype.
///
/// # Shapes
///
/// - input: `[batch, tokens, width]`
/// - gamma, beta: `[width]`
/// - returns: as input
///
/// # Panics
///
/// If the shapes do not agree, or the dtypes differ.
pub fn layer_norm(input: Tensor<3>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let [_, _, width] = input.dims();
    assert_shape!(gamma, [width]);
    assert_shape!(beta, [width]);
    assert_eq!(
        input.dtype(),
        gamma.dtype(),
        "input and gamma differ in dtype"
    );

    Tensor::from_dispatch(<Dispatch as Kernels>::fused_layer_norm(
        input.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        epsilon,
    ))
}

/// Normalised values and the reciprocal of the deviation, in at least f32.
fn normalize<B: Backend>(input: FloatTensor<B>, epsilon: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = widen::<B>(input);
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 2));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 2);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let reciprocal = B::float_recip(deviation);
    (B::float_mul(centred, reciprocal.clone()), reciprocal)
}

fn per_element<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let width = tensor.shape().num_elements();
    B::float_reshape(widen::<B>(tensor), Shape::new([1, 1, width]))
}

/// Composed of burn's operations, for every backend without a kernel of its own.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let dtype = FloatDType::from(input.dtype());
    let (normalized, _) = normalize::<B>(input, epsilon);
    let scaled = B::float_mul(normalized, per_element::<B>(gamma));
    let output = B::float_add(scaled, per_element::<B>(beta));
    if output.dtype() == dtype.into() {
        output
    } else {
        B::float_cast(output, dtype)
    }
}

/// Gradients for input, gamma and beta: `dx = (dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)) / deviation` with
/// `dx̂ = γ·dy`, the means over a row.
pub(crate) fn backward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dtype = FloatDType::from(input.dtype());
    let [_, _, width] = input.shape().dims::<3>();
    let (normalized, reciprocal) = normalize::<B>(input, epsilon);
    let grad = widen::<B>(grad);

    let row_sum = |tensor: FloatTensor<B>| {
        let sum = B::float_sum_dims(tensor, &[0, 1]);
        B::float_cast(B::float_reshape(sum, Shape::new([width])), dtype)
    };
    let gamma_grad = row_sum(B::float_mul(grad.clone(), normalized.clone()));
    let beta_grad = row_sum(grad.clone());

    let grad = B::float_mul(grad, per_element::<B>(gamma));
    let mean = B::float_mean_dim(grad.clone(), 2);
    let projection = B::float_mean_dim(B::float_mul(grad.clone(), normalized.clone()), 2);
    let grad = B::float_sub(
        B::float_sub(grad, mean),
        B::float_mul(normalized, projection),
    );
    let input_grad = B::float_cast(B::float_mul(grad, reciprocal), dtype);
    (input_grad, gamma_grad, beta_grad)
}

/// Configuration of a [`LayerNorm`].
#[derive(Config, Debug)]
pub struct LayerNormConfig {
    /// Size of the last axis.
    pub width: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

impl LayerNormConfig {
    /// A layer that scales by one and shifts by nothing.
    pub fn init(&self, device: &Device) -> LayerNorm {
        LayerNorm {
            weight: Param::from_tensor(Tensor::ones([self.width], device)),
            bias: Param::from_tensor(Tensor::zeros([self.width], device)),
            epsilon: self.epsilon,
        }
    }
}

/// Layer normalisation with its parameters; see [`layer_norm`].
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale, `[width]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[width]`.
    pub bias: Param<Tensor<1>>,
    /// Added to the variance.
    pub epsilon: f64,
}

impl LayerNorm {
    /// `[batch, tokens, width]` → the same, each token normalised.
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let dtype = input.dtype();
        let (weight, bias) = (value(&self.weight, dtype), value(&self.bias, dtype));
        layer_norm(input, weight, bias, self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    #[test]
    fn agrees_with_its_definition() {
        let device = device().autodiff();
        for shape in [[2, 5, 48], [1, 1, 7], [3, 2, 33], [1, 3, 700]] {
            let input = random(shape, 0, &device).require_grad();
            let gamma = random([shape[2]], 1, &device).require_grad();
            let beta = random([shape[2]], 2, &device).require_grad();
            let weight = random(shape, 3, &device);
            let run = |output: Tensor<3>| {
                let grads = (output.clone() * weight.clone()).sum().backward();
                let input = input.grad(&grads).unwrap();
                (
                    output.inner(),
                    input,
                    gamma.grad(&grads).unwrap(),
                    beta.grad(&grads).unwrap(),
                )
            };
            let found = run(layer_norm(input.clone(), gamma.clone(), beta.clone(), 1e-3));
            let (variance, mean) = input.clone().var_mean_bias(2);
            let normalized = (input.clone() - mean) / (variance + 1e-3).sqrt();
            let expected =
                run(normalized * gamma.clone().unsqueeze::<3>() + beta.clone().unsqueeze::<3>());

            assert_close(found.0, expected.0, 1e-5);
            assert_close(found.1, expected.1, 1e-5);
            assert_close(found.2, expected.2, 1e-5);
            assert_close(found.3, expected.3, 1e-5);
        }
    }
}
