//! Attention on the CPU, a block of queries after another, with the softmax taken as the keys come (Milakov & Gimelshein,
//! arXiv 1805.02867; FlashAttention, arXiv 2205.14135): of the scores only a block is ever there.
#![allow(
    unsafe_code,
    reason = "threads write queries and heads of their own into one output"
)]

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::Mask;
use crate::cpu::loops::{exp, for_this_machine};
use crate::cpu::multiply::multiply;
use crate::cpu::product::Matrix;
use crate::cpu::scratch::with_scratch;
use crate::cpu::target::Target;
use crate::cpu::tensor;
use crate::cpu::transpose::transpose;

/// Queries of a block: enough to pay for reading the keys.
const QUERIES: usize = 128;
/// Keys that lie side by side for the products: a strip of [`multiply`].
const STRIP: usize = 48;
/// Keys whose scores are there at once.
const KEYS: usize = 4 * STRIP;
/// Numbers that are summed, or whose largest is sought, side by side.
const LANES: usize = 16;

/// Rows of heads, `[batch, heads, rows, width]`, of which each lies in one piece.
pub(crate) struct Heads(FlexTensor);

impl Heads {
    /// Takes the tensor as it lies, if the numbers of a row lie side by side.
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let layout = tensor.layout();
        let is_readable = layout.strides()[3] == 1 && layout.strides().iter().all(|&s| s >= 0);
        Self(if is_readable {
            tensor
        } else {
            tensor.to_contiguous()
        })
    }

    fn dims(&self) -> [usize; 4] {
        self.0.layout().shape().dims()
    }

    /// Rows of one head of one image from the first on.
    fn rows(&self, head: usize, first: usize, count: usize) -> Matrix<'_> {
        let [_, heads, _, width] = self.dims();
        let layout = self.0.layout();
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        let start = head / heads * stride(0) + head % heads * stride(1) + first * stride(2);
        let values: &[f32] = self.0.storage();
        let values = &values[layout.start_offset() + start..];
        Matrix::spaced(values, count, width, stride(2))
    }
}

/// `[batch, heads, queries, width]` with keys and values `[batch, heads, keys, width]`, none of them empty; with a causal
/// mask there are as many keys as queries. The output lies as `[batch, queries, heads, width]`.
pub(crate) fn forward(query: &Heads, key: &Heads, value: &Heads, mask: Mask) -> FlexTensor {
    let [batch, heads, queries, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    let count = batch * heads;

    // All keys, in strips: `[heads, strips, width, STRIP]`.
    let strips = keys.div_ceil(STRIP);
    let mut turned = vec![0.0; count * strips * width * STRIP];
    let of_strips = turned.par_chunks_mut(width * STRIP).enumerate();
    of_strips.for_each(|(index, strip)| {
        let (head, first) = (index / strips, index % strips * STRIP);
        let rows = key.rows(head, first, STRIP.min(keys - first));
        transpose(rows.values, rows.stride, [rows.rows, width], strip, STRIP);
    });

    let mut output = vec![0.0; count * queries * width];
    let target = Target::of(&mut output);
    let blocks = queries.div_ceil(QUERIES);
    (0..count * blocks).into_par_iter().for_each(|index| {
        let (head, first) = (index / blocks, index % blocks * QUERIES);
        let block = Block {
            first,
            query: query.rows(head, first, QUERIES.min(queries - first)),
            keys: &turned[head * strips * width * STRIP..][..strips * width * STRIP],
            value: value.rows(head, 0, keys),
            is_causal: mask == Mask::Causal,
        };
        let at = ((head / heads * queries + first) * heads + head % heads) * width;
        let output = Output {
            at: target.at(at),
            row: heads * width,
        };
        // SAFETY: these rows of this head are of the output, are zero, and no other block touches them.
        unsafe { block.attend(output) };
    });
    tensor(output, Shape::new([batch, queries, heads, width])).transpose(1, 2)
}

/// Rows of the output, apart from one another.
#[derive(Clone, Copy)]
struct Output {
    at: *mut f32,
    row: usize,
}

/// Some queries of a head.
struct Block<'a> {
    first: usize,
    query: Matrix<'a>,
    keys: &'a [f32],
    value: Matrix<'a>,
    is_causal: bool,
}

impl Block<'_> {
    /// Adds to what is zero.
    ///
    /// # Safety
    ///
    /// The output has a row for each query, as wide as that, and no other thread touches them meanwhile.
    unsafe fn attend(&self, output: Output) {
        let (count, width) = (self.query.rows, self.query.columns);
        let scale = 1.0 / (width as f32).sqrt();
        with_scratch(|[queries, scores]| {
            let queries = queries.numbers(count * width);
            let scores = scores.numbers(count * KEYS);
            for (row, scaled) in queries.chunks_mut(width).enumerate() {
                let query = &self.query.values[row * self.query.stride..][..width];
                scaled
                    .iter_mut()
                    .zip(query)
                    .for_each(|(to, x)| *to = x * scale);
            }
            let queries = Matrix::new(queries, width);
            // The largest score of each query so far, and the sum of the weights under it.
            let mut state = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
            for first in (0..self.value.rows).step_by(KEYS) {
                if self.is_causal && first >= self.first + count {
                    break;
                }
                let keys = KEYS.min(self.value.rows - first);
                for strip in (0..keys).step_by(STRIP) {
                    let columns = STRIP.min(keys - strip);
                    let right = Matrix::spaced(
                        &self.keys[(first + strip) * width..][..width * STRIP],
                        width,
                        columns,
                        STRIP,
                    );
                    let target = scores[strip..].as_mut_ptr();
                    // SAFETY: the columns are of the scores, which are this thread's.
                    unsafe { multiply(target, KEYS, queries, right, false) };
                }
                let rows = scores.chunks_mut(KEYS).zip(&mut state).enumerate();
                for (row, (scores, state)) in rows {
                    let seen = match self.is_causal {
                        true => (self.first + row + 1).saturating_sub(first).min(keys),
                        false => keys,
                    };
                    let (seen, unseen) = scores[..keys].split_at_mut(seen);
                    // SAFETY: the row is of the output; the rest is the caller's.
                    let output = unsafe {
                        std::slice::from_raw_parts_mut(output.at.add(row * output.row), width)
                    };
                    weigh(seen, output, state);
                    unseen.fill(0.0);
                }
                let weights = Matrix::spaced(scores, count, keys, KEYS);
                let stride = self.value.stride;
                let values =
                    Matrix::spaced(&self.value.values[first * stride..], keys, width, stride);
                // SAFETY: the rows are of the output; the rest is the caller's.
                unsafe { multiply(output.at, output.row, weights, values, true) };
            }
            for (row, (_, sum)) in state[..count].iter().enumerate() {
                // SAFETY: as above.
                let output = unsafe {
                    std::slice::from_raw_parts_mut(output.at.add(row * output.row), width)
                };
                let reciprocal = 1.0 / sum;
                output.iter_mut().for_each(|x| *x *= reciprocal);
            }
        });
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
