//! Attention with queries, keys, weights and values in 8 bits.
//!
//! ```text
//!                  queries, packed: STRIP columns                   weights, packed: four keys in a word
//!                 ┌──────────┐                                     ┌──────────┐┌──────────┐
//!                 │          │                                     │  tap 0   ││  tap 1   │ …
//!    keys         └──────────┘                   values            └──────────┘└──────────┘
//!   ┌───────┐     ┌──────────┐  largest of each  ┌──────┬──────┐   ┌──────────┐
//!   │ block │     │  scores  │  column, codes    │ tap 0│ tap 1│   │ output,  │ · factor of each column
//!   │ ≤ 96  │     │ (24 KiB) │  of 2^(s − max) ► │      │      │   │transposed│ + the sum over TAPS blocks
//!   ├───────┤     └──────────┘                   └──────┴──────┘   └──────────┘
//! ```
//!
//! Scores are transposed, a column per query, so that the softmax has no horizontal reductions and packing needs no shuffles.
//! As in SageAttention (arXiv 2410.02367, §4.2), queries and keys have a scale per token, and the mean of the keys is subtracted
//! first: it adds the same to all scores of a query. Values have a scale per channel. Weights are unsigned, 255 being the largest
//! of a query in a *block* of keys, so that a large one makes only its own block less precise. Blocks are combined by an online
//! softmax (arXiv 1805.02867), as the taps of a convolution: the scale of a column at a tap is what the block's weights are worth.
//! The weights of a query are divided by the sum of their codes, so that the output is a convex combination of the values' codes.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::attention::Heads;
use crate::cpu::counters::Kernel;
use crate::cpu::int8::STRIP;
use crate::cpu::int8::product::{Group, STRIDE, multiply};
use crate::cpu::int8::rows::{CODES, Packed, as_bytes, as_codes, line_of};
use crate::cpu::int8::scale::{quantize, quantize_centered};
use crate::cpu::int8::weight::Int8;
use crate::cpu::loops::vectorized;
use crate::cpu::product::Matrix;
use crate::cpu::scratch::with_scratch;
use crate::cpu::target::Target;
use crate::cpu::tensor::tensor;
use crate::cpu::transpose::transpose;
use crate::int8::{ROUNDER, Scale, magnitude, nearest};

/// Maximum number of keys in a block: their scores, 24 KiB, stay in the L1 cache.
const BLOCK: usize = 96;
/// Maximum number of blocks whose weights are multiplied with the values at once.
const TAPS: usize = 4;

/// Computes attention for queries `[batch, heads, queries, width]` and keys and values `[batch, heads, keys, width]`, none of
/// them empty. The output is stored as `[batch, queries, heads, width]`.
pub(crate) fn forward(query: &Heads, key: &Heads, value: &Heads) -> FlexTensor {
    Kernel::Int8Attention.count();
    let [batch, heads, queries, width] = query.dims();
    let [_, _, keys, _] = key.dims();
    let sizes = Sizes::new(keys, width);
    let mut output = Vec::with_capacity(batch * queries * heads * width);
    let target = Target::of(&mut output);
    with_scratch(|[keys_of_heads, values_of_heads]| {
        let count = batch * heads;
        let keys_of_heads = keys_of_heads.values(count * sizes.of_keys());
        let values_of_heads = values_of_heads.values(count * sizes.of_values());
        let all = keys_of_heads
            .par_chunks_mut(sizes.of_keys())
            .zip(values_of_heads.par_chunks_mut(sizes.of_values()));
        all.enumerate()
            .for_each(|(head, (packed_keys, packed_values))| {
                sizes.quantize_keys(key.rows(head, 0, keys), packed_keys);
                sizes.quantize_values(value.rows(head, 0, keys), packed_values);
            });
        let strips = queries.div_ceil(STRIP);
        (0..count * strips).into_par_iter().for_each(|task| {
            let (head, first) = (task / strips, task % strips * STRIP);
            let keys = &keys_of_heads[head * sizes.of_keys()..][..sizes.of_keys()];
            let values = &values_of_heads[head * sizes.of_values()..][..sizes.of_values()];
            let query = query.rows(head, first, STRIP.min(queries - first));
            attend(sizes, query, keys, values, |row, mixed| {
                let at = ((head / heads * queries + first + row) * heads + head % heads) * width;
                #[allow(unsafe_code, reason = "tasks write disjoint rows of one output")]
                // SAFETY: this row of this head is part of the output, and no other task writes it.
                unsafe {
                    target.write(at, mixed);
                }
            });
        });
    });
    #[allow(
        unsafe_code,
        reason = "the output is written in full before its length is set"
    )]
    // SAFETY: the capacity suffices, and the tasks wrote every row of every head.
    unsafe {
        output.set_len(batch * queries * heads * width);
    }
    tensor(output, Shape::new([batch, queries, heads, width])).transpose(1, 2)
}

/// The division of the keys of a head. Buffers are in words, kept in the bits of f32 values.
#[derive(Clone, Copy)]
struct Sizes {
    keys: usize,
    width: usize,
    /// Number of blocks, and keys in each: whole words; the last block may have fewer.
    blocks: usize,
    block: usize,
    /// Words of a token.
    depth: usize,
}

impl Sizes {
    fn new(keys: usize, width: usize) -> Self {
        let block = keys.div_ceil(keys.div_ceil(BLOCK)).next_multiple_of(CODES);
        Self {
            keys,
            width,
            blocks: keys.div_ceil(block),
            block,
            depth: width.div_ceil(CODES),
        }
    }

    /// Codes, scales and sums of codes of the keys of a head.
    fn of_keys(&self) -> usize {
        self.keys * (self.depth + 2)
    }

    /// Codes and scales of the values of a head.
    fn of_values(&self) -> usize {
        self.width * (self.words() * self.blocks + 1)
    }

    /// Words of a block in a channel of the values.
    fn words(&self) -> usize {
        self.block / CODES
    }

    /// Writes `[keys, depth]` words of codes, `[keys]` scales and `[keys]` sums of codes.
    fn quantize_keys(&self, keys: Matrix<'_>, packed: &mut [f32]) {
        let mut means = vec![0.0; self.width];
        for row in rows(keys) {
            add(&mut means, row);
        }
        means.iter_mut().for_each(|mean| *mean /= self.keys as f32);
        let (codes, rest) = packed.split_at_mut(self.keys * self.depth);
        let (scales, sums) = rest.split_at_mut(self.keys);
        let outputs = codes.chunks_exact_mut(self.depth).zip(scales).zip(sums);
        for (row, ((codes, scale), sum)) in rows(keys).zip(outputs) {
            (*scale, *sum) = quantize_centered(row, &means, as_bytes(codes));
        }
    }

    /// Writes the codes of each group of [`TAPS`] blocks, `[width, taps, words]`, and `[width]` scales.
    fn quantize_values(&self, values: Matrix<'_>, packed: &mut [f32]) {
        let mut largest = vec![0; self.width];
        for row in rows(values) {
            keep_largest(&mut largest, row);
        }
        let scales = largest.into_iter().map(Scale::new);
        let (scales, factors): (Vec<_>, Vec<_>) = scales.map(|s| (s.scale, s.factor)).unzip();
        let (codes, to) = packed.split_at_mut(self.width * self.words() * self.blocks);
        to.copy_from_slice(&scales);
        with_scratch(|[words]| {
            for (group, codes) in codes
                .chunks_mut(TAPS * self.width * self.words())
                .enumerate()
            {
                let count = codes.len() / self.width; // words of a channel
                let words = words.values(codes.len());
                let first = group * TAPS * self.block;
                for (word, words) in words.chunks_exact_mut(self.width).enumerate() {
                    words.fill(0.0);
                    let first = first + word * CODES;
                    for key in first..(first + CODES).min(self.keys) {
                        let row = &values.values[key * values.stride..][..self.width];
                        insert(words, row, &factors, 8 * (key - first) as u32);
                    }
                }
                transpose(words, self.width, [count, self.width], codes, count);
            }
        });
    }
}

/// The rows of a matrix.
fn rows(matrix: Matrix<'_>) -> impl Iterator<Item = &[f32]> {
    (0..matrix.rows).map(move |row| &matrix.values[row * matrix.stride..][..matrix.columns])
}

/// Computes up to [`STRIP`] queries of a head, and passes each output to `write`.
fn attend(
    sizes: Sizes,
    query: Matrix<'_>,
    keys: &[f32],
    values: &[f32],
    mut write: impl FnMut(usize, &[f32]),
) {
    let Sizes {
        width,
        depth,
        block,
        ..
    } = sizes;
    let count = query.rows;
    let line = line_of(TAPS * STRIP);
    with_scratch(
        |[codes, words, scales, scores, weights, worth, sums, output]| {
            let codes = codes.values(count * depth);
            let scales = scales.values(STRIP);
            scales[count..].fill(0.0);
            // Scores are in units of log 2.
            let unit = std::f32::consts::LOG2_E / (width as f32).sqrt();
            let outputs = codes.chunks_exact_mut(depth).zip(scales.iter_mut());
            for (row, (codes, scale)) in rows(query).zip(outputs) {
                *scale = quantize(row, as_bytes(codes)) * unit;
            }
            let words = words.values(depth * STRIP);
            transpose(codes, depth, [count, depth], words, STRIP);
            let queries = Packed {
                words,
                scales,
                line: STRIP,
            };

            let (codes, rest) = keys.split_at(sizes.keys * depth);
            let (key_scales, key_sums) = rest.split_at(sizes.keys);
            let keys = Int8 {
                codes: as_codes(codes),
                scales: key_scales,
                sums: key_sums,
                inputs: depth * CODES,
                taps: 1,
            };
            let (codes, value_scales) = values.split_at(width * sizes.words() * sizes.blocks);
            let no_sums = vec![0.0; width * TAPS]; // the codes of weights are not shifted

            let scores = scores.values(block * STRIDE);
            let weights = weights.values(sizes.words() * line);
            let worth = worth.values(line);
            let sums = sums.values(width * STRIDE);
            let output = output.values(width * STRIP);
            output.fill(0.0);
            let mut states = States::new();
            let values = codes.chunks(TAPS * width * sizes.words());
            for (values, first) in values.zip((0..sizes.blocks).step_by(TAPS)) {
                let taps = TAPS.min(sizes.blocks - first);
                let mut found = [const { Found::new() }; TAPS];
                for (tap, found) in found[..taps].iter_mut().enumerate() {
                    let first = (first + tap) * block;
                    let seen = first..(first + block).min(sizes.keys);
                    let scores = &mut scores[..seen.len() * STRIDE];
                    score(&keys, seen, queries, count, scores);
                    find_largest(scores, &mut found.largest);
                    weigh(scores, found, &mut weights[tap * STRIP..], line);
                }
                let factors = states.combine(&found[..taps], worth);
                let group = Int8 {
                    codes: as_codes(values),
                    scales: value_scales,
                    sums: &no_sums[..width * taps],
                    inputs: block,
                    taps,
                };
                let packed = Packed {
                    words: &*weights,
                    scales: &*worth,
                    line,
                };
                let offsets: [usize; TAPS] = std::array::from_fn(|tap| tap * STRIP);
                with_scratch(|[padded]| {
                    let group = Group::new(&group, 0..width, padded);
                    multiply(&group, packed, &offsets[..taps], 0..count, sums);
                });
                accumulate(output, sums, &factors);
            }
            divide(output, &states.sums);
            let mixed = sums; // no longer needed
            transpose(output, STRIP, [width, count], mixed, width);
            for (row, mixed) in mixed.chunks_exact(width).take(count).enumerate() {
                write(row, mixed);
            }
        },
    );
}

/// Writes the scores of some keys, a row of [`STRIDE`] for each.
fn score(
    keys: &Int8<'_>,
    seen: Range<usize>,
    queries: Packed<'_>,
    count: usize,
    scores: &mut [f32],
) {
    with_scratch(|[padded]| {
        let group = Group::new(keys, seen, padded);
        multiply(&group, queries, &[0], 0..count, scores);
    });
}

/// The largest score of each query in a block, and the sum of its codes.
struct Found {
    largest: [f32; STRIP],
    sums: [u32; STRIP],
}

impl Found {
    const fn new() -> Self {
        Self {
            largest: [f32::NEG_INFINITY; STRIP],
            sums: [0; STRIP],
        }
    }
}

/// The largest score of each query so far, and the sum of its weights relative to it.
struct States {
    largest: [f32; STRIP],
    sums: [f32; STRIP],
}

impl States {
    fn new() -> Self {
        Self {
            largest: [f32::NEG_INFINITY; STRIP],
            sums: [0.0; STRIP],
        }
    }

    /// Adds some blocks: writes what the weights of each are worth, [`STRIP`] values per block, and returns the factors that
    /// rescale earlier sums.
    fn combine(&mut self, blocks: &[Found], worth: &mut [f32]) -> [f32; STRIP] {
        let before = self.largest;
        for found in blocks {
            keep_larger(&mut self.largest, &found.largest);
        }
        let mut factors = [0.0; STRIP];
        powers(&mut factors, &before, &self.largest);
        scale(&mut self.sums, &factors);
        for (found, worth) in blocks.iter().zip(worth.chunks_exact_mut(STRIP)) {
            powers(worth, &found.largest, &self.largest);
            add_products(&mut self.sums, worth, &found.sums);
        }
        factors
    }
}

/// 2ˣ for x ≤ 0, within 3e-6 of it; 2⁻¹²⁶ below that. A least-squares fit of degree 4 on [−½, ½] of the fraction.
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    let x = if x < -126.0 { -126.0 } else { x };
    let (n, r) = split(x);
    let p = 0.009_560_51 * r + 0.055_917_04;
    let p = p * r + 0.240_249_81;
    let p = p * r + 0.693_121_97;
    scaled(p * r + 0.999_999_19, n)
}

/// The code of the weight 2ˣ, x ≤ 0: 255·2ˣ, within 0.02 of it, rounded. A fit of degree 3.
#[inline(always)]
fn weight_code(x: f32) -> u32 {
    let x = if x < -16.0 { -16.0 } else { x };
    let (n, r) = split(x);
    let p = 14.047_613 * r + 61.864_03;
    let p = p * r + 176.785_44;
    (scaled(p * r + 254.981_88, n) + ROUNDER).to_bits() & 0xff
}

/// The bits of the nearest integer plus [`ROUNDER`], and the rest.
#[inline(always)]
fn split(x: f32) -> (u32, f32) {
    let shifted = x + ROUNDER;
    (shifted.to_bits(), x - (shifted - ROUNDER))
}

/// `value · 2ⁿ`; all bits of `n` but the lowest nine are lost, and those of [`ROUNDER`] are zero.
#[inline(always)]
fn scaled(value: f32, n: u32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(n << 23))
}

vectorized! {
    fn add(sums: &mut [f32], row: &[f32]) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

vectorized! {
    fn keep_largest(largest: &mut [u32], row: &[f32]) {
        largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = magnitude(*x).max(*largest));
    }
}

vectorized! {
    /// Puts the codes of a key into words, `shift` bits from their lowest.
    fn insert(words: &mut [f32], row: &[f32], factors: &[f32], shift: u32) {
        for ((word, x), factor) in words.iter_mut().zip(row).zip(factors) {
            *word = f32::from_bits(word.to_bits() | u32::from(nearest(*x, *factor)) << shift);
        }
    }
}

vectorized! {
    /// The largest score of each column.
    fn find_largest(scores: &[f32], largest: &mut [f32; STRIP]) {
        let mut found = [f32::NEG_INFINITY; STRIP];
        for row in scores.as_chunks::<STRIDE>().0 {
            for (found, x) in found.iter_mut().zip(row) {
                *found = if *x > *found { *x } else { *found };
            }
        }
        *largest = found;
    }
}

vectorized! {
    /// Writes the codes of the weights of a block, four keys in a word, and their sums.
    fn weigh(scores: &[f32], found: &mut Found, words: &mut [f32], line: usize) {
        let mut sums = [0; STRIP];
        for (keys, words) in scores.chunks(CODES * STRIDE).zip(words.chunks_mut(line)) {
            let mut packed = [0; STRIP];
            for (shift, row) in (0..).step_by(8).zip(keys.as_chunks::<STRIDE>().0) {
                let columns = row.iter().zip(&found.largest).zip(&mut packed).zip(&mut sums);
                for (((x, largest), packed), sum) in columns {
                    let code = weight_code(x - largest);
                    *packed |= code << shift;
                    *sum += code;
                }
            }
            words.iter_mut().zip(packed).for_each(|(word, packed)| *word = f32::from_bits(packed));
        }
        found.sums = sums;
    }
}

vectorized! {
    fn keep_larger(largest: &mut [f32; STRIP], others: &[f32; STRIP]) {
        for (largest, other) in largest.iter_mut().zip(others) {
            *largest = if *other > *largest { *other } else { *largest };
        }
    }
}

vectorized! {
    /// Writes 2 to the power of each difference.
    fn powers(to: &mut [f32], from: &[f32; STRIP], largest: &[f32; STRIP]) {
        for ((to, x), largest) in to.iter_mut().zip(from).zip(largest) {
            *to = power_of_two(x - largest);
        }
    }
}

vectorized! {
    fn scale(values: &mut [f32; STRIP], factors: &[f32; STRIP]) {
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    }
}

vectorized! {
    fn add_products(values: &mut [f32; STRIP], factors: &[f32], counts: &[u32; STRIP]) {
        for ((value, factor), count) in values.iter_mut().zip(factors).zip(counts) {
            *value += factor * *count as f32;
        }
    }
}

vectorized! {
    /// `output · factor + sums` of each column.
    fn accumulate(output: &mut [f32], sums: &[f32], factors: &[f32; STRIP]) {
        let rows = output.as_chunks_mut::<STRIP>().0.iter_mut().zip(sums.as_chunks::<STRIDE>().0);
        for (output, sums) in rows {
            for ((output, sum), factor) in output.iter_mut().zip(sums).zip(factors) {
                *output = *output * factor + sum;
            }
        }
    }
}

vectorized! {
    /// `output / sum` of each column.
    fn divide(output: &mut [f32], sums: &[f32; STRIP]) {
        let reciprocals = sums.map(|sum| 1.0 / sum);
        for output in output.as_chunks_mut::<STRIP>().0 {
            output.iter_mut().zip(&reciprocals).for_each(|(output, factor)| *output *= factor);
        }
    }
}
