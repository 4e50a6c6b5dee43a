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

/// [`attention`] in 8 bits, without a mask; for networks with weights in [int8](crate::Int8Weight).
///
/// Queries and keys, less their mean, have a scale per token, values one per channel, and the weights of each query one for
/// about 96 keys (SageAttention, arXiv 2410.02367, quantises the first two likewise). Sums of products are exact. A NaN or an
/// infinity makes the outputs that depend on it NaN.
///
/// # Shapes
///
/// Those of [`attention`].
///
/// # Panics
///
/// If the shapes do not match, a tensor is empty or not f32, or the device is not the CPU without autodiff.
#[track_caller]
pub fn int8_attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    let [batch, heads, _, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    assert_shape!(key, [batch, heads, keys, width]);
    assert_shape!(value, [batch, heads, keys, width]);
    Tensor::from_dispatch(<Dispatch as Kernels>::int8_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
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
    use swiftbrush_testing::{assert_close, cpu, device, random, values};
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

    /// Root mean square of a difference, relative to that of the expected values.
    fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            values.map(|x| f64::from(x).powi(2)).sum()
        };
        let mut differences = found.iter().zip(expected).map(|(x, y)| x - y);
        (squares(&mut differences) / squares(&mut expected.iter().copied())).sqrt()
    }

    #[test]
    fn int8_attention_is_close() {
        let device = cpu();
        for (queries, keys, width) in [
            (1, 1, 1),
            (5, 3, 7),
            (64, 96, 64),
            (70, 77, 64),
            (9, 98, 8),
            (130, 500, 40),
        ] {
            // The text encoder's and the denoiser's heads are views like these.
            let draw =
                |tokens, seed| random([2, tokens, 3, width], seed, &device).swap_dims(1, 2) * 1.5;
            let (query, key, value) = (draw(queries, 0), draw(keys, 1), draw(keys, 2));
            let expected = attention(query.clone(), key.clone(), value.clone(), Mask::None);
            let expected = values(expected);
            let check = |query: &Tensor<4>, key: Tensor<4>, bound: f64| {
                let found = int8_attention(query.clone(), key, value.clone());
                assert_eq!(found.dims(), [2, 3, queries, width]);
                let error = relative_error(&values(found), &expected);
                assert!(error < bound, "{queries}×{keys}×{width}: {error}");
            };
            check(&query, key.clone(), 0.03);
            // What all keys have in common takes no part of their codes.
            check(&query, key + 50.0, 0.03);
        }
    }

    #[test]
    fn a_dominant_key_in_int8_does_not_erase_the_others() {
        let device = cpu();
        let (keys, width) = (400, 16);
        // Each other key has 1/600 of the weight of key 0: 399 / (399 + 600) together.
        let first = Tensor::<4>::full([1, 1, 1, width], 600.0f32.ln() / 4.0, &device);
        let others = Tensor::zeros([1, 1, keys - 1, width], &device);
        let key = Tensor::cat(vec![first, others], 2);
        let value = Tensor::cat(
            vec![
                Tensor::<4>::zeros([1, 1, 1, width], &device),
                Tensor::ones([1, 1, keys - 1, width], &device),
            ],
            2,
        );
        let query = Tensor::ones([1, 1, 2, width], &device);
        let found = values(int8_attention(query, key, value));
        // Only the 79 in its block are lost: 320 / (320 + 600). One scale for all keys would leave nothing.
        for x in found {
            assert!((0.34..0.36).contains(&x), "{x}");
        }
    }

    #[test]
    fn a_nan_reaches_what_depends_on_it_in_int8() {
        let device = cpu();
        let draw = |tokens, seed| random([1, 2, tokens, 8], seed, &device);
        let spoil = |x: Tensor<4>, value: f32| {
            let spoiled = Tensor::full([1, 1, 1, 1], value, &device);
            x.slice_assign([0..1, 1..2, 2..3, 3..4], spoiled)
        };
        let (query, key, value) = (draw(5, 0), draw(100, 1), draw(100, 2));
        for bad in [f32::NAN, f32::INFINITY] {
            let check = |[query, key, value]: [Tensor<4>; 3], depends: &dyn Fn(usize) -> bool| {
                let found = values(int8_attention(query, key, value));
                for (place, x) in found.iter().enumerate() {
                    assert_eq!(x.is_nan(), depends(place), "{place}: {x}");
                }
            };
            let inputs = [query.clone(), key.clone(), value.clone()];
            let [q, k, v] = inputs.each_ref().map(|input| spoil(input.clone(), bad));
            check([q, key.clone(), value.clone()], &|place| place / 8 == 5 + 2);
            check([query.clone(), k, value.clone()], &|place| place >= 5 * 8);
            check([query.clone(), key.clone(), v], &|place| {
                place >= 5 * 8 && place % 8 == 3
            });
        }
    }

    #[test]
    #[should_panic(expected = "int8 is computed from values in f32, of at least one; found F16")]
    fn int8_attention_rejects_half_precision() {
        let tensor = Tensor::<4>::zeros([1, 1, 2, 4], &cpu()).cast(burn::tensor::FloatDType::F16);
        int8_attention(tensor.clone(), tensor.clone(), tensor);
    }

    #[test]
    #[should_panic(expected = "int8 needs burn's CPU backend, without autodiff")]
    fn int8_attention_rejects_autodiff() {
        let tensor = Tensor::<4>::zeros([1, 1, 2, 4], &cpu().autodiff());
        int8_attention(tensor.clone(), tensor.clone(), tensor);
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
