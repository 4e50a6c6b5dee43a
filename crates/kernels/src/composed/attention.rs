//! Attention, and a gradient that never materialises the whole score matrix.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Slice, TensorMetadata};
use burn::tensor::TensorData;
use burn::tensor::ops::AttentionModuleOptions;

use crate::options::Mask;

/// Queries per block of the gradient, whose scores are held at a time. At 4096 keys and f32 a block is 4 MiB per head.
pub(crate) const QUERY_BLOCK: usize = 256;

/// burn's own forward pass, which works in blocks on every backend where it matters.
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

/// Gradients of query, key and value, one block of queries at a time.
pub(crate) fn backward<B: Backend>(
    [query, key, value]: [FloatTensor<B>; 3],
    output: FloatTensor<B>,
    grad: FloatTensor<B>,
    mask: Mask,
) -> [FloatTensor<B>; 3] {
    let [_, _, queries, width] = query.shape().dims::<4>();
    let keys = Keys::<B> {
        key_t: B::float_transpose(key.clone()),
        value_t: B::float_transpose(value),
        key,
        scale: 1.0 / (width as f64).sqrt(),
        mask,
    };
    let mut query_grads = Vec::new();
    let mut sums: Option<[FloatTensor<B>; 2]> = None;
    for start in (0..queries).step_by(QUERY_BLOCK) {
        let end = (start + QUERY_BLOCK).min(queries);
        let block = [&query, &output, &grad].map(|tensor| rows::<B>(tensor, start, end, queries));
        let [query_grad, key_grad, value_grad] = keys.block_grads(block, start);
        query_grads.push(query_grad);
        sums = Some(match sums {
            None => [key_grad, value_grad],
            Some([keys, values]) => [
                B::float_add(keys, key_grad),
                B::float_add(values, value_grad),
            ],
        });
    }
    let query_grad = match query_grads.len() {
        1 => query_grads.remove(0),
        _ => B::float_cat(query_grads, 2),
    };
    let [key_grad, value_grad] = sums.expect("there is at least one query");
    [query_grad, key_grad, value_grad]
}

/// Keys and values in the form needed by every block of queries.
struct Keys<B: Backend> {
    key: FloatTensor<B>,
    key_t: FloatTensor<B>,
    value_t: FloatTensor<B>,
    scale: f64,
    mask: Mask,
}

impl<B: Backend> Keys<B> {
    /// The contribution of a block to the gradients of query, key and value, from its queries, output and output gradient.
    ///
    /// With `P = softmax(S)` and `S = Q·Kᵀ·scale`: `dV = Pᵀ·dO`, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`,
    /// `dQ = dS·K·scale`, `dK = dSᵀ·Q·scale`.
    fn block_grads(
        &self,
        [query, output, grad]: [FloatTensor<B>; 3],
        start: usize,
    ) -> [FloatTensor<B>; 3] {
        let scores = B::float_matmul(query.clone(), self.key_t.clone());
        let scores = B::float_mul_scalar(scores, self.scale.into());
        let scores = match self.mask {
            Mask::None => scores,
            Mask::Causal => {
                let bias = causal_bias::<B>(start, &scores);
                B::float_add(scores, bias)
            }
        };
        let probabilities = B::softmax(scores, 3);

        let row_sums = B::float_sum_dim(B::float_mul(grad.clone(), output), 3);
        let products = B::float_matmul(grad.clone(), self.value_t.clone());
        let scores_grad = B::float_mul(probabilities.clone(), B::float_sub(products, row_sums));
        let scores_grad = B::float_mul_scalar(scores_grad, self.scale.into());
        [
            B::float_matmul(scores_grad.clone(), self.key.clone()),
            B::float_matmul(B::float_transpose(scores_grad), query),
            B::float_matmul(B::float_transpose(probabilities), grad),
        ]
    }
}

/// Rows `start..end` of the third axis; the tensor itself if that is all of them.
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

/// The mask of a block of scores whose first query is `start`, `[1, 1, queries, keys]`: 0 where key ≤ query, −10⁹ elsewhere
/// (finite in f32 and bf16; f16 saturates to −∞, which is harmless because each query sees at least one key).
fn causal_bias<B: Backend>(start: usize, scores: &FloatTensor<B>) -> FloatTensor<B> {
    let [_, _, queries, keys] = scores.shape().dims::<4>();
    let values = (start..start + queries)
        .flat_map(|query| (0..keys).map(move |key| if key <= query { 0.0 } else { -1e9 }))
        .collect::<Vec<f32>>();
    let data = TensorData::new(values, [1, 1, queries, keys]).convert_dtype(scores.dtype());
    B::float_from_data(data, &scores.device())
}
