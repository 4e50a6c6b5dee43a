//! Attention in blocks of queries, with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention,
//! arXiv 2205.14135): only a block of the score matrix exists at a time.
//!
//! ```text
//!              keys, packed in strips of STRIP columns
//!             ├──── KEYS at a time ────┤
//!             ┌─────┬─────┬─────┬─────┬─────┬─ ─        scores of a task: QUERIES × KEYS (96 KiB).
//!   QUERIES ┌ │     │     │     │     │     │           Each row keeps its largest score so far and the sum
//!   (a task)└ │     │     │     │     │     │           of its weights; when the largest grows, sum and output
//!             └─────┴─────┴─────┴─────┴─────┴─ ─        row are rescaled. The division comes last.
//! ```
#![allow(
    unsafe_code,
    reason = "threads write disjoint rows and heads of one output"
)]

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::loops::{exp, vectorized};
use crate::cpu::multiply::multiply;
use crate::cpu::product::Matrix;
use crate::cpu::scratch::with_scratch;
use crate::cpu::target::Target;
use crate::cpu::tensor::tensor;
use crate::cpu::transpose::transpose;
use crate::options::Mask;

/// Queries per task: enough to amortise reading all keys and values.
const QUERIES: usize = 128;
/// Keys per packed strip: three AVX-512 or six AVX2 vectors, whole tiles of [`multiply`].
const STRIP: usize = 48;
/// Number of keys whose scores exist at a time.
const KEYS: usize = 4 * STRIP;
/// Number of partial maxima and sums in the reduction of a row: the lanes of an AVX-512 vector.
const LANES: usize = 16;

/// Heads as matrices, `[batch, heads, rows, width]`, each row contiguous.
pub(crate) struct Heads(FlexTensor);

impl Heads {
    /// Uses the tensor in place if its rows are contiguous, else copies it.
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let layout = tensor.layout();
        let is_readable = layout.strides()[3] == 1 && layout.strides().iter().all(|&s| s >= 0);
        Self(if is_readable {
            tensor
        } else {
            tensor.to_contiguous()
        })
    }

    pub(crate) fn dims(&self) -> [usize; 4] {
        self.0.layout().shape().dims()
    }

    /// `count` rows of one head of one image, from row `first` on.
    pub(crate) fn rows(&self, head: usize, first: usize, count: usize) -> Matrix<'_> {
        let [_, heads, _, width] = self.dims();
        let layout = self.0.layout();
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        let start = head / heads * stride(0) + head % heads * stride(1) + first * stride(2);
        let values: &[f32] = self.0.storage();
        let values = &values[layout.start_offset() + start..];
        Matrix::strided(values, count, width, stride(2))
    }
}

/// Computes attention for queries `[batch, heads, queries, width]` and keys and values `[batch, heads, keys, width]`, none of
/// them empty. A causal mask needs the same number of keys and queries. The output is stored as
/// `[batch, queries, heads, width]`.
pub(crate) fn forward(query: &Heads, key: &Heads, value: &Heads, mask: Mask) -> FlexTensor {
    Kernel::Attention.count();
    let [batch, heads, queries, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    let count = batch * heads;
    let mut output = Vec::with_capacity(count * queries * width);
    let target = Target::of(&mut output);
    with_scratch(|[packed]| {
        // All keys, `[heads, strips, width, STRIP]`.
        let strips = keys.div_ceil(STRIP);
        let packed = packed.values(count * strips * width * STRIP);
        let of_strips = packed.par_chunks_mut(width * STRIP).enumerate();
        of_strips.for_each(|(index, strip)| {
            let (head, first) = (index / strips, index % strips * STRIP);
            let rows = key.rows(head, first, STRIP.min(keys - first));
            transpose(rows.values, rows.stride, [rows.rows, width], strip, STRIP);
        });

        let blocks = queries.div_ceil(QUERIES);
        (0..count * blocks).into_par_iter().for_each(|index| {
            let (head, first) = (index / blocks, index % blocks * QUERIES);
            let block = Block {
                first,
                query: query.rows(head, first, QUERIES.min(queries - first)),
                keys: &packed[head * strips * width * STRIP..][..strips * width * STRIP],
                value: value.rows(head, 0, keys),
                is_causal: mask == Mask::Causal,
            };
            let at = ((head / heads * queries + first) * heads + head % heads) * width;
            let output = Output {
                at: target.at(at),
                row: heads * width,
            };
            // SAFETY: these rows of this head are of the output, and no other block touches them.
            unsafe { block.attend(output) };
        });
    });
    // SAFETY: the capacity suffices, and the blocks wrote every row of every head.
    unsafe { output.set_len(count * queries * width) };
    tensor(output, Shape::new([batch, queries, heads, width])).transpose(1, 2)
}

/// Rows of the output, `row` elements apart.
#[derive(Clone, Copy)]
struct Output {
    at: *mut f32,
    row: usize,
}

impl Output {
    /// A row.
    ///
    /// # Safety
    ///
    /// The row is part of the output and initialised, and nothing else accesses it during the call.
    unsafe fn row<'a>(self, row: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.row), width) }
    }
}

/// A block of queries of one head.
struct Block<'a> {
    first: usize,
    query: Matrix<'a>,
    keys: &'a [f32],
    value: Matrix<'a>,
    is_causal: bool,
}

/// The largest score of a query so far, and the sum of the weights relative to it.
type State = (f32, f32);

impl Block<'_> {
    /// Writes the output of the block.
    ///
    /// # Safety
    ///
    /// The output has a row for each query with the same width, and no other thread accesses these rows during the call.
    unsafe fn attend(&self, output: Output) {
        let (count, width) = (self.query.rows, self.query.columns);
        let scale = 1.0 / (width as f32).sqrt();
        with_scratch(|[queries, scores]| {
            let queries = queries.values(count * width);
            let scores = scores.values(count * KEYS);
            for (row, scaled) in queries.chunks_mut(width).enumerate() {
                let query = &self.query.values[row * self.query.stride..][..width];
                scaled
                    .iter_mut()
                    .zip(query)
                    .for_each(|(to, x)| *to = x * scale);
            }
            let queries = Matrix::new(queries, width);
            let mut states = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
            for first in (0..self.value.rows).step_by(KEYS) {
                if self.is_causal && first >= self.first + count {
                    break;
                }
                let keys = KEYS.min(self.value.rows - first);
                self.score(queries, first, keys, scores);
                // SAFETY: the caller guarantees the rows, which are initialised from the second round on.
                unsafe {
                    self.weigh(first, keys, scores, &mut states, output);
                    let weights = Matrix::strided(scores, count, keys, KEYS);
                    let values = &self.value.values[first * self.value.stride..];
                    let values = Matrix::strided(values, keys, width, self.value.stride);
                    multiply(output.at, output.row, weights, values, first > 0);
                }
            }
            for (row, (_, sum)) in states[..count].iter().enumerate() {
                // SAFETY: as above, and there is at least one key.
                let output = unsafe { output.row(row, width) };
                scale_row(output, 1.0 / sum);
            }
        });
    }

    /// Writes the scores of `keys` keys from `first` on, in rows of KEYS.
    fn score(&self, queries: Matrix<'_>, first: usize, keys: usize, scores: &mut [f32]) {
        let width = queries.columns;
        for strip in (0..keys).step_by(STRIP) {
            let columns = STRIP.min(keys - strip);
            let packed = &self.keys[(first + strip) * width..][..width * STRIP];
            let right = Matrix::strided(packed, width, columns, STRIP);
            let target = scores[strip..].as_mut_ptr();
            // SAFETY: there is a row of KEYS scores for each query, and the columns are within it.
            unsafe { multiply(target, KEYS, queries, right, false) };
        }
    }

    /// Turns scores into weights, and rescales the output if the largest score has grown.
    ///
    /// # Safety
    ///
    /// Same as [`attend`](Self::attend); unless `first` is 0, the rows are initialised.
    unsafe fn weigh(
        &self,
        first: usize,
        keys: usize,
        scores: &mut [f32],
        states: &mut [State],
        output: Output,
    ) {
        for (row, (scores, state)) in scores.chunks_mut(KEYS).zip(states).enumerate() {
            let seen = match self.is_causal {
                true => (self.first + row + 1).saturating_sub(first).min(keys),
                false => keys,
            };
            let (seen, unseen) = scores[..keys].split_at_mut(seen);
            let factor = to_weights(seen, state);
            unseen.fill(0.0);
            if first > 0 && factor != 1.0 {
                // SAFETY: guaranteed by the caller.
                let output = unsafe { output.row(row, self.query.columns) };
                scale_row(output, factor);
            }
        }
    }
}

vectorized! {
    fn scale_row(row: &mut [f32], factor: f32) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

vectorized! {
    /// Turns the scores of a query into weights relative to its largest score so far; returns the factor that rescales
    /// earlier weights accordingly.
    fn to_weights(scores: &mut [f32], state: &mut State) -> f32 {
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
        factor
    }
}
