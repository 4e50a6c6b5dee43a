//! Scaled dot-product attention, whose gradient never materialises the whole score matrix.

use burn::backend::Dispatch;
use burn::tensor::{Tensor, assert_shape};

use crate::backend::Kernels;
use crate::options::Mask;

/// Attention, `softmax(Q·Kᵀ / √width)·V` (Vaswani et al., arXiv 1706.03762, equation 1).
///
/// Under autodiff, only the inputs and the output are kept. The gradient recomputes the scores of 256 queries at a time, so
/// memory grows linearly with the number of tokens (FlashAttention, arXiv 2205.14135, §3.1, in blocks of queries).
///
/// # Shapes
///
/// - query: `[batch, heads, queries, width]`
/// - key, value: `[batch, heads, keys, width]`
/// - returns: `[batch, heads, queries, width]`
///
/// # Panics
///
/// If the shapes do not match, or the three tensors differ in dtype.
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_kernels::{Mask, attention};
///
/// let device = Device::flex();
/// let query = Tensor::<4>::ones([1, 2, 3, 8], &device);
/// let (key, value) = (Tensor::ones([1, 2, 5, 8], &device), Tensor::ones([1, 2, 5, 8], &device));
/// assert_eq!(attention(query, key, value, Mask::None).dims(), [1, 2, 3, 8]);
/// ```
#[track_caller]
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: Mask) -> Tensor<4> {
    let [batch, heads, _, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    assert_shape!(key, [batch, heads, keys, width]);
    assert_shape!(value, [batch, heads, keys, width]);
    let dtypes = [query.dtype(), key.dtype(), value.dtype()];
    assert_eq!(
        dtypes, [dtypes[0]; 3],
        "query, key and value differ in dtype"
    );
    Tensor::from_dispatch(<Dispatch as Kernels>::blockwise_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        mask,
    ))
}

/// Softmax along the last axis, `eˣ` over the sum of `eˣ`.
///
/// # Shapes
///
/// - input and result: any
pub fn softmax<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    let dims = input.dims();
    if dims.contains(&0) {
        return input;
    }
    let rows = input.reshape([-1, dims[D - 1] as i32]).into_dispatch();
    Tensor::<2>::from_dispatch(<Dispatch as Kernels>::softmax_rows(rows)).reshape(dims)
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;
    use swiftbrush_testing::{assert_close, device, random};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::composed::attention::QUERY_BLOCK;

    /// Attention by its definition, differentiated by burn.
    fn reference(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: Mask) -> Tensor<4> {
        let [_, _, queries, width] = query.dims();
        let [_, _, keys, _] = key.dims();
        let scores = query.matmul(key.transpose()) / (width as f64).sqrt();
        let scores = match mask {
            Mask::None => scores,
            Mask::Causal => {
                let forbidden = Tensor::<2, burn::tensor::Bool>::tril_mask(
                    [queries, keys],
                    0,
                    &scores.device(),
                );
                scores.mask_fill(forbidden.unsqueeze::<4>(), -1e9)
            }
        };
        activation::softmax(scores, 3).matmul(value)
    }

    fn check(queries: usize, keys: usize, mask: Mask) {
        let device = device().autodiff();
        let inputs = [(queries, 0), (keys, 1), (keys, 2)]
            .map(|(tokens, seed)| random([2, 3, tokens, 8], seed, &device).require_grad());
        let weight = random([2, 3, queries, 8], 3, &device);

        let run = |operation: fn(Tensor<4>, Tensor<4>, Tensor<4>, Mask) -> Tensor<4>| {
            let [query, key, value] = inputs.clone();
            let output = operation(query, key, value, mask);
            let grads = (output.clone() * weight.clone()).sum().backward();
            let grads = inputs.each_ref().map(|input| input.grad(&grads).unwrap());
            (output.inner(), grads)
        };
        let (output, grads) = run(attention);
        let (expected, expected_grads) = run(reference);

        assert_close(output, expected, 1e-5);
        for (grad, expected) in grads.into_iter().zip(expected_grads) {
            assert_close(grad, expected, 1e-5);
        }
    }

    #[test]
    fn softmax_and_its_gradient_equal_those_of_burn() {
        let device = device().autodiff();
        for width in [1, 31, 77, 4096] {
            let input = (random([2, 3, width], 0, &device) * 20.0).require_grad();
            let weight = random([2, 3, width], 1, &device);
            let (found, expected) = (
                softmax(input.clone()),
                activation::softmax(input.clone(), 2),
            );
            let grad = |output: Tensor<3>| {
                let grads = (output * weight.clone()).sum().backward();
                input.grad(&grads).unwrap()
            };
            assert_close(grad(found.clone()), grad(expected.clone()), 1e-6);
            let plain = softmax(input.clone().inner());
            assert_close(plain, expected.clone().inner(), 1e-6);
            assert_close(found.inner(), expected.inner(), 1e-6);
        }
    }

    #[test]
    fn agrees_with_its_definition_within_one_block() {
        check(7, 5, Mask::None);
        check(6, 6, Mask::Causal);
    }

    #[test]
    fn agrees_with_its_definition_across_blocks() {
        check(QUERY_BLOCK + 3, 9, Mask::None);
        check(130, 1100, Mask::None);
        check(2 * QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 1, Mask::Causal);
    }
}
