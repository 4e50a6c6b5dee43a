//! The single-threaded product of codes, with sums in i32 at each tap and in f32 over taps.
//!
//! One step of a tile loads VECTORS vectors of words (four inputs of each column), splats a word of ROWS rows of the weight,
//! and adds ROWS·VECTORS vectors of four products each:
//!
//! | vectors | instruction | products of a step |
//! |---|---|---|
//! | AVX-512 with VNNI | `vpdpbusd zmm` | 64 |
//! | AVX2 with AVX-VNNI | `vpdpbusd ymm` | 32 |
//! | AVX2 | `vpmaddwd` of even and odd bytes, because `vpmaddubsw` saturates | 16 |
//! | SIMD128 of WebAssembly | `i32x4.dot_i16x8_s` of even and odd bytes | 8 |
//! | portable | scalar products, which the compiler vectorises | – |
#![allow(
    unsafe_code,
    reason = "vector loads and stores by address, in functions compiled for detected features"
)]

#[cfg(test)]
mod tests;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm32;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86;

use std::ops::Range;

use crate::cpu::int8::STRIP;
use crate::cpu::int8::rows::{CODES, Packed, as_codes};
use crate::cpu::int8::weight::Int8;
use crate::cpu::scratch::Scratch;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::cpu::vectors::{Vectors, vectors};

/// Distance between the rows of sums.
pub(super) const STRIDE: usize = STRIP;
/// Added to the codes of the input.
const SHIFT: i32 = 128;
/// Sums of the longest vector.
pub(super) const LANES: usize = 16;

/// Consecutive rows of a weight.
pub(super) struct Group<'a> {
    /// `[rows, taps, depth]` words.
    codes: &'a [i8],
    depth: usize,
    taps: usize,
    scales: &'a [f32],
    /// `[rows, taps]`: what the shift of the input's codes adds to a sum, subtracted.
    starts: Vec<i32>,
}

impl<'a> Group<'a> {
    /// Some rows of a weight, read in place if the inputs fill whole words; otherwise padded with zeros.
    pub(super) fn new(weight: &Int8<'a>, rows: Range<usize>, padded: &'a mut Scratch) -> Self {
        let Int8 { inputs, taps, .. } = *weight;
        let (first, rows) = (rows.start, rows.len());
        let (line, depth) = (taps * inputs, inputs.div_ceil(CODES));
        let codes = &weight.codes[first * line..][..rows * line];
        let sums = &weight.sums[first * taps..][..rows * taps];
        Self {
            codes: match inputs % CODES {
                0 => codes,
                _ => with_whole_words(codes, inputs, depth, padded),
            },
            depth,
            taps,
            scales: &weight.scales[first..][..rows],
            starts: sums.iter().map(|sum| -SHIFT * *sum as i32).collect(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.scales.len()
    }
}

/// Pads each tap to whole words.
fn with_whole_words<'a>(
    codes: &[i8],
    inputs: usize,
    depth: usize,
    padded: &'a mut Scratch,
) -> &'a [i8] {
    let words = padded.values(codes.len() / inputs * depth);
    for (words, codes) in words
        .chunks_exact_mut(depth)
        .zip(codes.chunks_exact(inputs))
    {
        for (word, codes) in words.iter_mut().zip(codes.chunks(CODES)) {
            let mut bytes = [0; CODES];
            let pairs = bytes.iter_mut().zip(codes);
            pairs.for_each(|(byte, code)| *byte = code.cast_unsigned());
            *word = f32::from_ne_bytes(bytes);
        }
    }
    as_codes(words)
}

/// Columns of a product: those from `x` on in lines of `width` columns, between which `skip` columns are left out. The first line
/// begins at column `start` of the operand.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) start: usize,
    pub(super) x: usize,
    pub(super) width: usize,
    pub(super) skip: usize,
    pub(super) count: usize,
}

impl Columns {
    /// The place of a column, relative to the start.
    #[inline(always)]
    fn place(&self, column: usize) -> usize {
        let at = self.x + column;
        at + at / self.width * self.skip
    }
}

/// Adjacent columns.
impl From<Range<usize>> for Columns {
    fn from(columns: Range<usize>) -> Self {
        Self {
            start: columns.start,
            x: 0,
            width: usize::MAX,
            skip: 0,
            count: columns.len(),
        }
    }
}

/// Computes rows of a group times some columns, with `taps` offsets in columns, into rows of sums that are [`STRIDE`] apart.
///
/// # Panics
///
/// If there are more than [`STRIP`] columns, a line does not consist of whole vectors, or the operands do not match.
pub(super) fn multiply(
    group: &Group<'_>,
    packed: Packed<'_>,
    taps: &[usize],
    columns: impl Into<Columns>,
    sums: &mut [f32],
) {
    let product = Product::new(group, packed, taps, columns.into(), sums);
    // SAFETY: the sizes have been checked.
    unsafe { product.dispatch() };
}

/// Operands and sums.
#[derive(Clone, Copy)]
struct Product<'a> {
    codes: *const i8,
    starts: *const i32,
    row_scales: *const f32,
    rows: usize,
    depth: usize,
    words: *const f32,
    column_scales: *const f32,
    line: usize,
    taps: &'a [usize],
    columns: Columns,
    sums: *mut f32,
}

/// A vector register of sums in i32. Every method requires the CPU features that its implementation is compiled for; loads and
/// stores require valid addresses for all lanes.
trait Sums: Copy {
    const LANES: usize;
    /// Words of the input, ready for multiplication.
    type Words: Copy;
    /// A word of the weight in all lanes, ready for multiplication.
    type Weight: Copy;
    /// The same lanes in f32.
    type Floats: Copy;

    unsafe fn splat(value: i32) -> Self;
    unsafe fn words(from: *const f32) -> Self::Words;
    unsafe fn weight(word: i32) -> Self::Weight;
    /// Adds the four products of each lane.
    unsafe fn add_products(self, words: Self::Words, weight: Self::Weight) -> Self;
    unsafe fn zeros() -> Self::Floats;
    unsafe fn floats(from: *const f32) -> Self::Floats;
    /// `total + self · scales`, rounded twice.
    unsafe fn add_scaled(self, total: Self::Floats, scales: Self::Floats) -> Self::Floats;
    /// Stores `total · scale`.
    unsafe fn store(total: Self::Floats, scale: f32, to: *mut f32);
}

impl<'a> Product<'a> {
    /// Checks that all rows, taps and columns, rounded up to whole vectors of up to sixteen lanes, are within the operands.
    ///
    /// # Panics
    ///
    /// If they are not.
    fn new(
        group: &Group<'a>,
        packed: Packed<'a>,
        taps: &'a [usize],
        columns: Columns,
        sums: &mut [f32],
    ) -> Self {
        let Columns {
            start, x, width, ..
        } = columns;
        let whole = columns.count.next_multiple_of(LANES);
        assert!(columns.skip == 0 || (x % LANES == 0 && width % LANES == 0));
        let after = whole
            .checked_sub(1)
            .map_or(0, |last| columns.place(last) + 1);
        let last = taps.iter().max().map_or(0, |tap| tap + start + after);
        assert!(whole <= STRIDE && last <= packed.line && packed.scales.len() >= packed.line);
        assert!(group.depth * packed.line <= packed.words.len());
        assert!(group.rows() * STRIDE <= sums.len() && group.taps == taps.len());
        let words = group.rows() * group.taps * group.depth;
        assert_eq!(group.codes.len(), words * CODES);
        Self {
            codes: group.codes.as_ptr(),
            starts: group.starts.as_ptr(),
            row_scales: group.scales.as_ptr(),
            rows: group.rows(),
            depth: group.depth,
            words: packed.words[start..].as_ptr(),
            column_scales: packed.scales[start..].as_ptr(),
            line: packed.line,
            taps,
            columns,
            sums: sums.as_mut_ptr(),
        }
    }

    /// # Safety
    ///
    /// All rows, taps and columns, rounded up to sixteen, can be read, and the rows of sums written.
    unsafe fn dispatch(self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            match vectors() {
                Vectors::Avx512 if x86::has_avx512_vnni() => {
                    // SAFETY: the CPU has AVX-512 and VNNI; the rest is guaranteed by the caller.
                    return unsafe { x86::with_avx512_vnni(self) };
                }
                Vectors::Avx512 | Vectors::Avx2 if x86::has_avx_vnni() => {
                    // SAFETY: the CPU has AVX2 and AVX-VNNI; the rest as above.
                    return unsafe { x86::with_avx_vnni(self) };
                }
                // SAFETY: the CPU has AVX2; the rest as above.
                Vectors::Avx512 | Vectors::Avx2 => return unsafe { x86::with_avx2(self) },
                Vectors::Portable => {}
            }
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        // SAFETY: the program is compiled for the feature; the rest as above.
        unsafe {
            wasm32::with_simd128(self);
        }
        #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
        // SAFETY: as above, without a feature to detect.
        unsafe {
            self.portable();
        }
    }

    /// # Safety
    ///
    /// Same as [`dispatch`](Self::dispatch).
    #[cfg_attr(
        all(target_arch = "wasm32", target_feature = "simd128"),
        allow(dead_code, reason = "the reference in tests")
    )]
    unsafe fn portable(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.run::<[i32; 8], 4, 2, 2, 2>() };
    }

    /// Computes all tiles: of `R1` rows where one vector is left, of `R2` where two are, and so on.
    ///
    /// # Safety
    ///
    /// Same as [`dispatch`](Self::dispatch), with the features of the vector.
    #[inline(always)]
    unsafe fn run<V: Sums, const R1: usize, const R2: usize, const R3: usize, const R4: usize>(
        self,
    ) {
        let mut column = 0;
        while column < self.columns.count {
            let left = (self.columns.count - column).div_ceil(V::LANES);
            // SAFETY: the strip begins within the columns; the rest is guaranteed by the caller.
            column += V::LANES
                * unsafe {
                    match left {
                        1 => self.strip::<V, R1, 1>(column),
                        2 => self.strip::<V, R2, 2>(column),
                        _ if V::LANES <= 8 => self.strip::<V, R2, 2>(column),
                        3 => self.strip::<V, R3, 3>(column),
                        _ => self.strip::<V, R4, 4>(column),
                    }
                };
        }
    }

    /// Computes all rows of a strip; returns its number of vectors.
    ///
    /// # Safety
    ///
    /// Same as [`run`](Self::run).
    #[inline(always)]
    unsafe fn strip<V: Sums, const ROWS: usize, const VECTORS: usize>(
        &self,
        column: usize,
    ) -> usize {
        for row in (0..self.rows).step_by(ROWS) {
            // SAFETY: guaranteed by the caller.
            unsafe { self.tile::<V, ROWS, VECTORS>(row, column) };
        }
        VECTORS
    }

    /// Computes a tile. The last one repeats its last row, so that the inner loop has no branch.
    ///
    /// # Safety
    ///
    /// Same as [`run`](Self::run); there is a row `row`.
    #[inline(always)]
    unsafe fn tile<V: Sums, const ROWS: usize, const VECTORS: usize>(
        &self,
        row: usize,
        column: usize,
    ) {
        let rows: [usize; ROWS] = std::array::from_fn(|i| (row + i).min(self.rows - 1));
        let places: [usize; VECTORS] =
            std::array::from_fn(|j| self.columns.place(column + j * V::LANES));
        let taps = self.taps.len();
        // SAFETY: all addresses are of existing rows, taps and columns.
        unsafe {
            let mut totals = [[V::zeros(); VECTORS]; ROWS];
            for (tap, &offset) in self.taps.iter().enumerate() {
                let codes = rows.map(|row| {
                    let place = (row * taps + tap) * self.depth * CODES;
                    self.codes.add(place).cast::<i32>()
                });
                let starts = rows.map(|row| *self.starts.add(row * taps + tap));
                let words = places.map(|place| self.words.add(place + offset));
                let sums = self.tap::<V, ROWS, VECTORS>(codes, starts, words);
                let scales = places.map(|place| V::floats(self.column_scales.add(place + offset)));
                for (totals, sums) in totals.iter_mut().zip(sums) {
                    for ((total, sum), scale) in totals.iter_mut().zip(sums).zip(scales) {
                        *total = sum.add_scaled(*total, scale);
                    }
                }
            }
            for (row, totals) in rows.into_iter().zip(totals) {
                let scale = *self.row_scales.add(row);
                let to = self.sums.add(row * STRIDE + column);
                for (j, total) in totals.into_iter().enumerate() {
                    V::store(total, scale, to.add(j * V::LANES));
                }
            }
        }
    }

    /// Sums the products of one tap.
    ///
    /// # Safety
    ///
    /// The codes are of `depth` words, and as many lines of words begin at `words`.
    #[inline(always)]
    unsafe fn tap<V: Sums, const ROWS: usize, const VECTORS: usize>(
        &self,
        codes: [*const i32; ROWS],
        starts: [i32; ROWS],
        words: [*const f32; VECTORS],
    ) -> [[V; VECTORS]; ROWS] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let mut sums = starts.map(|start| [V::splat(start); VECTORS]);
            for k in 0..self.depth {
                let words = words.map(|words| V::words(words.add(k * self.line)));
                for (sums, codes) in sums.iter_mut().zip(codes) {
                    let weight = V::weight(codes.add(k).read_unaligned());
                    for (sum, words) in sums.iter_mut().zip(words) {
                        *sum = sum.add_products(words, weight);
                    }
                }
            }
            sums
        }
    }
}

/// Eight sums, which the compiler maps to the vectors of the target.
impl Sums for [i32; 8] {
    const LANES: usize = 8;
    type Words = [u32; 8];
    type Weight = [i32; CODES];
    type Floats = [f32; 8];

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn words(from: *const f32) -> [u32; 8] {
        // SAFETY: guaranteed by the caller.
        unsafe { from.cast::<[u32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn weight(word: i32) -> [i32; CODES] {
        word.to_ne_bytes().map(|code| i32::from(code.cast_signed()))
    }

    #[inline(always)]
    unsafe fn add_products(self, words: [u32; 8], weight: [i32; CODES]) -> Self {
        std::array::from_fn(|lane| {
            let codes = words[lane].to_ne_bytes().map(i32::from);
            let products = codes.into_iter().zip(weight).map(|(x, w)| x * w);
            self[lane] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn zeros() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [f32; 8] {
        // SAFETY: guaranteed by the caller.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn add_scaled(self, total: [f32; 8], scales: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| total[lane] + self[lane] as f32 * scales[lane])
    }

    #[inline(always)]
    unsafe fn store(total: [f32; 8], scale: f32, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            to.cast::<[f32; 8]>()
                .write_unaligned(total.map(|x| x * scale));
        };
    }
}
