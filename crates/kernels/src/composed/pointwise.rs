//! Activations.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

/// `[rows, 2·width]` → `[rows, width]`: the first half times the GELU of the second, which is given because its gradient is
/// not that of burn's own.
pub(crate) fn gated_gelu<B: Backend>(
    input: FloatTensor<B>,
    gelu: impl FnOnce(FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let [rows, twice] = input.shape().dims::<2>();
    let half = |half: usize| {
        let columns = half * twice / 2..(half + 1) * twice / 2;
        B::float_slice(input.clone(), &[(0..rows).into(), columns.into()])
    };
    B::float_mul(half(0), gelu(half(1)))
}

/// `dx = dy·(Φ(x) + x·φ(x))`
pub(crate) fn gelu_grad<B: Backend>(input: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(input.clone(), FRAC_1_SQRT_2.into()));
    let cumulative = B::float_mul_scalar(B::float_add_scalar(erf, 1.0.into()), 0.5.into());
    let square = B::float_mul(input.clone(), input.clone());
    let density = B::float_exp(B::float_mul_scalar(square, (-0.5).into()));
    let density = B::float_mul_scalar(density, (1.0 / (2.0 * PI).sqrt()).into());
    let slope = B::float_add(cumulative, B::float_mul(input, density));
    B::float_mul(grad, slope)
}

/// `x·σ(x)`
pub(crate) fn silu<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(input.clone(), B::sigmoid(input))
}
