//! `x·Wᵀ` on the CPU for few rows: the numbers of a prompt's 77 tokens.
//!
//! A product of matrices first lays both out anew, which for few rows takes longer than the product. Here both are read as
//! they are, a few rows of either at a time, along the features that they share. For processors with AVX-512 or AVX2; on
//! others a product of matrices it is.
#![allow(
    unsafe_code,
    reason = "vectors are loaded by address, and threads write columns of their own into one output"
)]

use rayon::prelude::*;

use crate::epilogue::Epilogue;
use crate::multiply::multiply;
use crate::product::Matrix;
use crate::ran::Kernel;
use crate::scratch::with_scratch;
use crate::transpose::transpose;

/// Rows up to which this is the faster way.
const FEW: usize = 192;
/// Outputs that a thread takes at a time.
const BLOCK: usize = 32;
/// Rows whose sums are in registers at once.
const TILE_ROWS: usize = 4;
/// Outputs whose weights are laid out side by side for many rows: a strip of [`multiply`].
const STRIP: usize = 48;
/// Features that are summed before the next are laid out.
const INNER: usize = 512;
/// Rows that a strip of weights is used for at least, if there are so many.
const ROWS: usize = 512;

/// `[rows, inputs]` with weights `[outputs, inputs]` → `[rows, outputs]`.
///
/// # Panics
///
/// If there are no rows, inputs or outputs.
pub(crate) fn forward(
    input: &[f32],
    weight: &[f32],
    inputs: usize,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target(output.as_mut_ptr());
    match products() {
        Some(products) if rows <= FEW => {
            Kernel::FewRows.runs();
            by_rows(input, weight, inputs, epilogue, target, products);
        }
        _ => {
            Kernel::ManyRows.runs();
            by_strips(input, weight, inputs, epilogue, target);
        }
    }
    // SAFETY: so many fit, and every column of every row was written.
    unsafe { output.set_len(rows * outputs) };
    output
}

fn by_strips(input: &[f32], weight: &[f32], inputs: usize, epilogue: Epilogue<'_>, target: Target) {
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    let (strips, chunks) = (outputs.div_ceil(STRIP), rows.div_ceil(ROWS));
    let rows_of_chunk = rows.div_ceil(chunks);
    (0..strips * chunks).into_par_iter().for_each(|task| {
        let (chunk, strip) = (task / strips, task % strips);
        let (first, row) = (strip * STRIP, chunk * rows_of_chunk);
        let columns = STRIP.min(outputs - first);
        let rows = row..(row + rows_of_chunk).min(rows);
        for row in rows.clone() {
            let at = row * outputs + first;
            let mut start = [0.0; STRIP];
            epilogue.start(&mut start[..columns], first, at);
            // SAFETY: the row and the columns are of the output, and no other task has them.
            unsafe { target.write(at, &start[..columns]) };
        }
        with_scratch(|[strip]| {
            let strip = strip.numbers(INNER * STRIP);
            for from in (0..inputs).step_by(INNER) {
                let inner = INNER.min(inputs - from);
                transpose(
                    &weight[first * inputs + from..],
                    inputs,
                    [columns, inner],
                    strip,
                    STRIP,
                );
                let left = &input[row * inputs + from..];
                let left = Matrix::spaced(left, rows.len(), inner, inputs);
                let right = Matrix::spaced(strip, inner, columns, STRIP);
                // SAFETY: rows and columns are of the output, and this task's, which has just written them.
                unsafe {
                    let target = target.0.add(row * outputs + first);
                    multiply(target, outputs, left, right, true);
                }
            }
        });
    });
}

fn by_rows(
    input: &[f32],
    weight: &[f32],
    inputs: usize,
    epilogue: Epilogue<'_>,
    target: Target,
    products: Products,
) {
    let outputs = weight.len() / inputs;
    let blocks = weight.par_chunks(BLOCK * inputs).enumerate();
    blocks.for_each(|(block, weight)| {
        let (first, columns) = (block * BLOCK, weight.len() / inputs);
        let mut sums = [0.0; TILE_ROWS * BLOCK];
        for (tile, input) in input.chunks(TILE_ROWS * inputs).enumerate() {
            // SAFETY: the processor has what the function was compiled for.
            unsafe { products(input, weight, &mut sums, inputs) };
            for row in 0..input.len() / inputs {
                let place = (tile * TILE_ROWS + row) * outputs + first;
                let sums = &mut sums[row * BLOCK..][..columns];
                let mut start = [0.0; BLOCK];
                epilogue.start(&mut start[..columns], first, place);
                sums.iter_mut()
                    .zip(start)
                    .for_each(|(sum, start)| *sum += start);
                // SAFETY: the row and the columns are of the output, and no other block has these columns.
                unsafe { target.write(place, sums) };
            }
        }
    });
}

/// Where all threads write to.
#[derive(Clone, Copy)]
struct Target(*mut f32);

impl Target {
    /// # Safety
    ///
    /// The places are within the output, and no other thread writes to them.
    unsafe fn write(self, place: usize, values: &[f32]) {
        // SAFETY: as the caller has promised.
        unsafe {
            self.0
                .add(place)
                .copy_from_nonoverlapping(values.as_ptr(), values.len());
        };
    }
}

// SAFETY: each thread writes to rows and columns of its own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// Products of up to [`TILE_ROWS`] rows with up to [`BLOCK`] rows of the weight, `[TILE_ROWS, BLOCK]`.
type Products = unsafe fn(&[f32], &[f32], &mut [f32; TILE_ROWS * BLOCK], usize);

/// The function for this processor.
fn products() -> Option<Products> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(avx512::products);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(avx2::products);
        }
    }
    None
}

/// [`Products`] with the vectors of some processor.
#[cfg(target_arch = "x86_64")]
macro_rules! with_vectors {
    ($module:ident, $features:literal, $lanes:literal, $columns:literal, $zero:ident, $load:ident, $fma:ident, $store:ident) => {
        mod $module {
            use std::arch::x86_64::{$fma, $load, $store, $zero};

            use super::{BLOCK, TILE_ROWS};

            /// Outputs whose sums are in registers at once.
            const COLUMNS: usize = $columns;

            #[target_feature(enable = $features)]
            pub(super) fn products(
                input: &[f32],
                weight: &[f32],
                sums: &mut [f32; TILE_ROWS * BLOCK],
                inputs: usize,
            ) {
                let (rows, columns) = (input.len() / inputs, weight.len() / inputs);
                // At the edges the last rows are taken more than once.
                let x: [&[f32]; TILE_ROWS] =
                    std::array::from_fn(|i| &input[i.min(rows - 1) * inputs..][..inputs]);
                for first in (0..columns).step_by(COLUMNS) {
                    let w: [&[f32]; COLUMNS] = std::array::from_fn(|j| {
                        &weight[(first + j).min(columns - 1) * inputs..][..inputs]
                    });
                    let tile = dots(x, w, inputs);
                    for (row, dots) in tile.iter().enumerate() {
                        for (column, dot) in dots.iter().enumerate().take(columns - first) {
                            sums[row * BLOCK + first + column] = *dot;
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn dots(
                x: [&[f32]; TILE_ROWS],
                w: [&[f32]; COLUMNS],
                inputs: usize,
            ) -> [[f32; COLUMNS]; TILE_ROWS] {
                let mut sums = [[$zero(); COLUMNS]; TILE_ROWS];
                let whole = inputs / $lanes * $lanes;
                for at in (0..whole).step_by($lanes) {
                    // SAFETY: every row has `inputs` numbers, and as many as a vector holds lie behind `at`.
                    let vector = |row: &[f32]| unsafe { $load(row.as_ptr().add(at)) };
                    let (xs, ws) = (x.map(vector), w.map(vector));
                    for (sums, x) in sums.iter_mut().zip(xs) {
                        for (sum, w) in sums.iter_mut().zip(ws) {
                            *sum = $fma(x, w, *sum);
                        }
                    }
                }
                let mut dots = [[0.0; COLUMNS]; TILE_ROWS];
                for i in 0..TILE_ROWS {
                    for j in 0..COLUMNS {
                        let mut lanes = [0.0f32; $lanes];
                        // SAFETY: there are as many numbers as a vector holds.
                        unsafe { $store(lanes.as_mut_ptr(), sums[i][j]) };
                        let rest = x[i][whole..].iter().zip(&w[j][whole..]);
                        let rest: f32 = rest.map(|(x, w)| x * w).sum();
                        dots[i][j] = lanes.iter().sum::<f32>() + rest;
                    }
                }
                dots
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
with_vectors!(
    avx512,
    "avx512f",
    16,
    4,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
#[cfg(target_arch = "x86_64")]
with_vectors!(
    avx2,
    "avx2,fma",
    8,
    2,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use swiftbrush_testing::{assert_values_close, device, random, values};

    use super::*;

    #[test]
    fn both_kinds_of_vectors_give_the_products() {
        let mut kinds: Vec<Products> = Vec::new();
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kinds.push(avx2::products);
        }
        if is_x86_feature_detected!("avx512f") {
            kinds.push(avx512::products);
        }
        for (rows, columns, inputs) in [(1, 1, 1), (4, 32, 48), (3, 31, 37), (2, 5, 1000)] {
            let x = values(random([rows, inputs], 0, &device()));
            let w = values(random([columns, inputs], 1, &device()));
            for products in &kinds {
                let mut sums = [0.0; TILE_ROWS * BLOCK];
                // SAFETY: what they need was detected.
                unsafe { products(&x, &w, &mut sums, inputs) };
                for row in 0..rows {
                    let dot = |column: usize| {
                        let pairs = x[row * inputs..][..inputs]
                            .iter()
                            .zip(&w[column * inputs..]);
                        pairs
                            .map(|(x, w)| f64::from(*x) * f64::from(*w))
                            .sum::<f64>() as f32
                    };
                    let expected: Vec<f32> = (0..columns).map(dot).collect();
                    assert_values_close(&sums[row * BLOCK..][..columns], &expected, 1e-5);
                }
            }
        }
    }
}
