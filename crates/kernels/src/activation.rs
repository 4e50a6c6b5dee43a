//! GELU with its exact gradient, GEGLU and SiLU.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use crate::backend::Kernels;

/// `x·Φ(x)` with Φ the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// burn's own operation computes the same value, but has the gradient of the tanh approximation.
///
/// # Shapes
///
/// - input and result: any
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Kernels>::exact_gelu(input.into_dispatch()))
}

/// `x·σ(x)` with σ the logistic function (same paper, §2), also called swish.
///
/// # Shapes
///
/// - input and result: any
pub fn silu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Kernels>::silu(input.into_dispatch()))
}

/// GEGLU (Shazeer, arXiv 2002.05202): one half of the last axis times the [`gelu`] of the other.
///
/// # Shapes
///
/// - input: `[…, 2·width]`, values before gates
/// - returns: `[…, width]`
///
/// # Panics
///
/// If the last axis is odd.
#[track_caller]
pub fn gated_gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    let mut dims = input.dims();
    check_halves(dims[D - 1]);
    let rows = input.reshape([-1, dims[D - 1] as i32]).into_dispatch();
    dims[D - 1] /= 2;
    Tensor::<2>::from_dispatch(<Dispatch as Kernels>::gated_gelu(rows)).reshape(dims)
}

#[track_caller]
pub(crate) fn check_halves(width: usize) {
    assert!(
        width.is_multiple_of(2),
        "half of the last axis gates the other; found {width} values"
    );
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;
    use swiftbrush_testing::{assert_close, assert_values_close, device, random, values};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    /// x, gelu(x) and its derivative to nine digits, computed with scipy's norm.cdf and norm.pdf.
    const KNOWN: [(f64, f64, f64); 6] = [
        (-3.0, -0.00404969409, -0.0119456472),
        (-1.0, -0.158655254, -0.0833154706),
        (-0.1, -0.0460172163, 0.420476908),
        (0.0, 0.0, 0.5),
        (0.7, 0.530625443, 0.976614101),
        (2.5, 2.48447584, 1.03761109),
    ];

    #[test]
    fn silu_and_its_gradient_equal_those_of_burn() {
        let device = device().autodiff();
        let input = (random([3, 7000], 0, &device) * 5.0).require_grad();
        let (found, expected) = (silu(input.clone()), activation::silu(input.clone()));
        let grad = |output: Tensor<2>| input.grad(&output.sum().backward()).unwrap();
        assert_close(grad(found.clone()), grad(expected.clone()), 1e-6);
        let plain = silu(input.clone().inner());
        assert_close(plain, expected.clone().inner(), 1e-6);
        assert_close(found.inner(), expected.inner(), 1e-6);
    }

    #[test]
    fn geglu_gates_one_half_by_the_other() {
        let device = device().autodiff();
        for width in [1, 5, 40] {
            let input = random([2, 3, 2 * width], 0, &device).require_grad();
            let halves = input.clone().chunk(2, 2);
            let expected = halves[0].clone() * gelu(halves[1].clone());
            let found = gated_gelu(input.clone());
            let grad = |output: Tensor<3>| {
                let grads = output.powi_scalar(2).sum().backward();
                input.grad(&grads).unwrap()
            };
            assert_close(grad(found.clone()), grad(expected.clone()), 1e-6);
            let plain = gated_gelu(input.clone().inner());
            assert_close(plain, expected.clone().inner(), 1e-6);
            assert_close(found.inner(), expected.inner(), 1e-6);
        }
    }

    #[test]
    fn gelu_and_its_gradient_are_exact() {
        let input = Tensor::<1>::from_data(KNOWN.map(|(x, _, _)| x as f32), &device().autodiff())
            .require_grad();
        let output = gelu(input.clone());
        assert_values_close(
            &values(output.clone().inner()),
            &KNOWN.map(|(_, y, _)| y as f32),
            1e-6,
        );
        let grads = output.sum().backward();
        assert_values_close(
            &values(input.grad(&grads).unwrap()),
            &KNOWN.map(|(_, _, d)| d as f32),
            1e-6,
        );
    }
}
