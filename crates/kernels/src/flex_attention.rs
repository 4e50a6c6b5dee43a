//! Attention on the CPU, a block of queries after another, with the softmax taken as the keys come (Milakov & Gimelshein,
//! arXiv 1805.02867; FlashAttention, arXiv 2205.14135): of the scores only a block is ever there.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::Mask;
use crate::flex::{Contiguous, tensor};
use crate::flex_loops::{exp, for_this_machine};
use crate::product::{Matrix, Transposed, product_into};

/// Queries of a block: enough to pay for packing the keys.
const QUERIES: usize = 128;
/// Keys whose scores are there at once.
const KEYS: usize = 512;
/// Numbers that are summed, or whose largest is sought, side by side.
const LANES: usize = 16;

/// `[batch, heads, queries, width]` with keys and values `[batch, heads, keys, width]`; with a causal mask there are as
/// many keys as queries.
pub(crate) fn forward(
    query: &Contiguous,
    key: &Contiguous,
    value: &Contiguous,
    mask: Mask,
) -> FlexTensor {
    let [batch, heads, queries, width] = query.shape().dims::<4>();
    let [_, _, keys, _] = key.shape().dims::<4>();
    let mut output = vec![0.0; batch * heads * queries * width];
    let blocks: Vec<_> = output
        .chunks_mut((queries * width).max(1))
        .enumerate()
        .flat_map(|(head, output)| {
            let blocks = output.chunks_mut(QUERIES * width).enumerate();
            blocks.map(move |(block, output)| (head, block * QUERIES, output))
        })
        .collect();
    let of_keys = |head: usize| head * keys * width..(head + 1) * keys * width;
    blocks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, (head, first, output)| {
            let start = (head * queries + first) * width;
            let block = Block {
                first,
                query: &query.values()[start..start + output.len()],
                key: &key.values()[of_keys(head)],
                value: &value.values()[of_keys(head)],
                width,
                is_causal: mask == Mask::Causal,
            };
            block.attend(output, scratch);
        });
    tensor(output, Shape::new([batch, heads, queries, width]))
}

#[derive(Default)]
struct Scratch {
    query: Vec<f32>,
    scores: Vec<f32>,
}

/// Some queries of a head.
struct Block<'a> {
    first: usize,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    width: usize,
    is_causal: bool,
}

impl Block<'_> {
    /// Adds to what is zero.
    fn attend(&self, output: &mut [f32], scratch: &mut Scratch) {
        let width = self.width;
        let count = self.query.len() / width;
        let scale = 1.0 / (width as f32).sqrt();
        scratch.query.clear();
        scratch.query.extend(self.query.iter().map(|x| x * scale));
        // The largest score of each query so far, and the sum of the weights under it.
        let mut state = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
        let keys = self
            .key
            .chunks(KEYS * width)
            .zip(self.value.chunks(KEYS * width));
        for (index, (key, value)) in keys.enumerate() {
            let first = index * KEYS;
            if self.is_causal && first >= self.first + count {
                break;
            }
            let columns = key.len() / width;
            scratch.scores.resize(count * columns, 0.0);
            let query = Matrix::new(&scratch.query, width);
            let key = Transposed(Matrix::new(key, width));
            product_into(&mut scratch.scores, columns, query, key, false);
            let rows = scratch
                .scores
                .chunks_mut(columns)
                .zip(output.chunks_mut(width));
            for (row, ((scores, output), state)) in rows.zip(&mut state).enumerate() {
                let seen = match self.is_causal {
                    true => (self.first + row + 1).saturating_sub(first).min(columns),
                    false => columns,
                };
                let (seen, unseen) = scores.split_at_mut(seen);
                weigh(seen, output, state);
                unseen.fill(0.0);
            }
            let weights = Matrix::new(&scratch.scores, columns);
            product_into(output, width, weights, Matrix::new(value, width), true);
        }
        for (output, (_, sum)) in output.chunks_mut(width).zip(&state) {
            let reciprocal = 1.0 / sum;
            output.iter_mut().for_each(|x| *x *= reciprocal);
        }
    }
}

for_this_machine! {
    /// Turns scores of a query into weights under the largest so far, and what was summed up before to the same measure.
    fn weigh(scores: &mut [f32], output: &mut [f32], state: &mut (f32, f32)) {
        let (before, sum) = *state;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        let largest = lanes.iter().chain(rest).fold(before, |max, x| max.max(*x));
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = scores.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - largest);
                *sum += *score;
            }
        }
        for (sum, score) in sums.iter_mut().zip(rest) {
            *score = exp(*score - largest);
            *sum += *score;
        }
        let factor = exp(before - largest);
        *state = (largest, sum * factor + sums.iter().sum::<f32>());
        if factor != 1.0 {
            output.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
