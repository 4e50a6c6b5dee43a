//! Quantised and packed inputs, and those of linear layers.

use rayon::prelude::*;

use crate::cpu::int8::STRIP;
use crate::cpu::int8::scale::quantize;
use crate::cpu::scratch::Scratch;
use crate::cpu::transpose::transpose;

/// Codes in a word, which is kept in the bits of an f32.
pub(super) const CODES: usize = 4;
/// Values of a cache line, and of the longest vector.
const LINE: usize = 16;

/// Codes of an input, 128 added.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    /// `[depth, line]`; each word has four consecutive inputs of a column.
    pub(super) words: &'a [f32],
    /// `[line]`
    pub(super) scales: &'a [f32],
    /// Distance between lines.
    pub(super) line: usize,
}

/// The length of a line for some columns: whole vectors, and an odd number of cache lines, which spreads a column over the
/// sets of a cache.
pub(super) fn line_of(columns: usize) -> usize {
    columns.next_multiple_of(LINE) | LINE
}

/// Quantised rows, which become columns: strips of [`STRIP`], one after the other, so that a strip is read in sequence.
pub(super) struct Strips<'a> {
    /// `[strips, depth, STRIP]`
    words: &'a [f32],
    /// `[strips, STRIP]`
    scales: &'a [f32],
    depth: usize,
}

impl Strips<'_> {
    pub(super) fn get(&self, index: usize) -> Packed<'_> {
        let size = self.depth * STRIP;
        Packed {
            words: &self.words[index * size..][..size],
            scales: &self.scales[index * STRIP..][..STRIP],
            line: STRIP,
        }
    }
}

/// Quantises and packs rows of `inputs` values.
pub(super) fn pack<'a>(
    input: &[f32],
    inputs: usize,
    [words, scales, codes]: [&'a mut Scratch; 3],
) -> Strips<'a> {
    let (rows, depth) = (input.len() / inputs, inputs.div_ceil(CODES));
    let strips = rows.div_ceil(STRIP);
    let (codes, scales) = (codes.values(rows * depth), scales.values(strips * STRIP));
    scales[rows..].fill(0.0);
    let outputs = codes.par_chunks_mut(depth).zip(&mut scales[..rows]);
    let rows_and_outputs = input.par_chunks(inputs).zip(outputs);
    rows_and_outputs.for_each(|(row, (codes, scale))| *scale = quantize(row, as_bytes(codes)));
    let words = words.values(strips * depth * STRIP);
    let strips = words.par_chunks_mut(depth * STRIP).enumerate();
    strips.for_each(|(strip, words)| {
        let first = strip * STRIP;
        let size = [STRIP.min(rows - first), depth];
        transpose(&codes[first * depth..], depth, size, words, STRIP);
    });
    Strips {
        words,
        scales,
        depth,
    }
}

/// The bytes of words.
pub(super) fn as_bytes(words: &mut [f32]) -> &mut [u8] {
    #[allow(unsafe_code, reason = "words are bytes without gaps")]
    // SAFETY: an f32 is exactly four bytes without padding, and any bytes are an f32.
    unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words))
    }
}

/// The codes in words.
pub(super) fn as_codes(words: &[f32]) -> &[i8] {
    #[allow(unsafe_code, reason = "words are codes without gaps")]
    // SAFETY: an f32 is exactly four bytes without padding, and any byte is an i8.
    unsafe {
        std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words))
    }
}
