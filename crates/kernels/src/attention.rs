//! Scaled dot-product attention whose gradient never holds the whole score matrix.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Slice, TensorMetadata};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Tensor, TensorData, assert_shape};

use crate::backend::Kernels;

/// Which keys a query may attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those at its own position and before (text encoders).
    Causal,
}

/// Queries whose scores are held at a time while the gradient is computed.
const QUERY_BLOCK: usize = 256;

/// Attention, `softmax(Q·Kᵀ / √width)·V` (Vaswani et al., arXiv 1706.03762, equation 1).
///
/// Under autodiff only the inputs and the output are kept. The gradient recomputes the scores for
/// 256 queries at a time, so memory grows linearly with the number of tokens (the scheme of
/// FlashAttention, arXiv 2205.14135, §3.1, in blocks of queries).
///
/// # Shapes
///
/// - query: `[batch, heads, queries, width]`
/// - key, value: `[batch, heads, keys, width]`
/// - returns: `[batch, heads, queries, width]`
///
/// # Panics
///
/// If the shapes do not agree, or the three tensors differ in dtype.
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: Mask) -> Tensor<4> {
    let [batch, heads, _, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    assert_shape!(key, [batch, heads, keys, width]);
    assert_shape!(value, [batch, heads, keys, width]);
    assert_eq!(query.dtype(), key.dtype(), "query and key differ in dtype");
    assert_eq!(
        query.dtype(),
        value.dtype(),
        "query and value differ in dtype"
    );

    Tensor::from_dispatch(<Dispatch as Kernels>::blockwise_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        mask,
    ))
}

/// `eˣ` over the sum of them along the last axis: the weights of an attention (equation 1 there).
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
    Tensor::<2>::from_dispatch(<Dispatch as Kernels>::softmax_of_rows(rows)).reshape(dims)
}

/// burn's own forward pass, which is blocked on every backend where it matters.
pub(crate) fn forward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: Mask,
) -> FloatTensor<B> {
    let options = AttentionModuleOptions {
        scale: None,
        softcap: None,
        is_causal: mask == Mask::Causal,
    };
    B::attention(query, key, value, None, None, options)
}

/// Gradients for query, key and value, block of queries by block of queries.
///
/// With `P = softmax(S)` and `S = Q·Kᵀ·scale`: `dV = Pᵀ·dO`, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`,
/// `dQ = dS·K·scale`, `dK = dSᵀ·Q·scale`.
pub(crate) fn backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    output: FloatTensor<B>,
    grad: FloatTensor<B>,
    mask: Mask,
) -> [FloatTensor<B>; 3] {
    let [_, _, queries, width] = query.shape().dims::<4>();
    let [_, _, keys, _] = key.shape().dims::<4>();
    let scale = 1.0 / (width as f64).sqrt();
    let key_t = B::float_transpose(key.clone());
    let value_t = B::float_transpose(value);

    let mut query_grads = Vec::new();
    let mut key_grad: Option<FloatTensor<B>> = None;
    let mut value_grad: Option<FloatTensor<B>> = None;
    for start in (0..queries).step_by(QUERY_BLOCK) {
        let end = (start + QUERY_BLOCK).min(queries);
        let rows = |tensor: &FloatTensor<B>| rows::<B>(tensor, start, end, queries);
        let (query, output, grad) = (rows(&query), rows(&output), rows(&grad));

        let scores = B::float_matmul(query.clone(), key_t.clone());
        let scores = B::float_mul_scalar(scores, scale.into());
        let scores = match mask {
            Mask::None => scores,
            Mask::Causal => {
                B::float_add(scores.clone(), causal_bias::<B>(start, end, keys, &scores))
            }
        };
        let probabilities = B::softmax(scores, 3);

        let row_sums = B::float_sum_dim(B::float_mul(grad.clone(), output), 3);
        let scores_grad = B::float_sub(B::float_matmul(grad.clone(), value_t.clone()), row_sums);
        let scores_grad = B::float_mul(probabilities.clone(), scores_grad);
        let scores_grad = B::float_mul_scalar(scores_grad, scale.into());

        query_grads.push(B::float_matmul(scores_grad.clone(), key.clone()));
        let add = |sum: Option<FloatTensor<B>>, part| match sum {
            Some(sum) => Some(B::float_add(sum, part)),
            None => Some(part),
        };
        key_grad = add(
            key_grad,
            B::float_matmul(B::float_transpose(scores_grad), query),
        );
        value_grad = add(
            value_grad,
            B::float_matmul(B::float_transpose(probabilities), grad),
        );
    }

    let query_grad = match query_grads.len() {
        1 => query_grads.remove(0),
        _ => B::float_cat(query_grads, 2),
    };
    let missing = "there is at least one query";
    [
        query_grad,
        key_grad.expect(missing),
        value_grad.expect(missing),
    ]
}

/// Rows `start..end` of the third axis; the tensor itself when that is all of it.
fn rows<B: Backend>(
    tensor: &FloatTensor<B>,
    start: usize,
    end: usize,
    queries: usize,
) -> FloatTensor<B> {
    if start == 0 && end == queries {
        return tensor.clone();
    }
    let all = Slice::full();
    B::float_slice(tensor.clone(), &[all, all, Slice::from(start..end)])
}

/// Zero where key ≤ query, −10⁹ elsewhere (finite in f32 and bf16; f16 saturates to −∞, which the
/// softmax takes since each query sees at least one key), `[1, 1, end − start, keys]`.
fn causal_bias<B: Backend>(
    start: usize,
    end: usize,
    keys: usize,
    like: &FloatTensor<B>,
) -> FloatTensor<B> {
    let values = (start..end)
        .flat_map(|query| (0..keys).map(move |key| if key <= query { 0.0 } else { -1e9 }))
        .collect::<Vec<f32>>();
    let data = TensorData::new(values, [1, 1, end - start, keys]).convert_dtype(like.dtype());
    B::float_from_data(data, &like.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

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
    fn softmax_is_burns_and_so_is_its_gradient() {
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
