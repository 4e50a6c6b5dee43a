//! Layer normalisation over the last axis.

use burn::backend::Dispatch;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, assert_shape};

use crate::backend::Kernels;
use crate::params::value;

/// Layer normalisation (Ba et al., arXiv 1607.06450); statistics are computed in f32, whatever the dtype of the input.
///
/// # Shapes
///
/// - input: `[batch, tokens, width]`
/// - gamma, beta: `[width]`
/// - returns: same as input
///
/// # Panics
///
/// If the shapes do not match, or the dtypes differ.
#[track_caller]
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
    /// Creates a layer with a scale of one and a shift of zero.
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
    /// Normalises each token: `[batch, tokens, width]` → the same.
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let dtype = input.dtype();
        let (weight, bias) = (value(&self.weight, dtype), value(&self.bias, dtype));
        layer_norm(input, weight, bias, self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

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
