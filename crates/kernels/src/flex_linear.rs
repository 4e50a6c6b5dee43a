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

/// Rows up to which this is the faster way.
pub(crate) const ROWS: usize = 192;
/// Outputs that a thread takes at a time.
const BLOCK: usize = 32;
/// Rows whose sums are in registers at once.
const TILE_ROWS: usize = 4;

/// `[rows, inputs]` with weights `[outputs, inputs]` → `[rows, outputs]`; none where the processor has no vectors for it.
///
/// # Panics
///
/// If there are no rows, inputs or outputs.
pub(crate) fn forward(input: &[f32], weight: &[f32], inputs: usize) -> Option<Vec<f32>> {
    let products = products()?;
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target(output.as_mut_ptr());
    let blocks = weight.par_chunks(BLOCK * inputs).enumerate();
    blocks.for_each(|(block, weight)| {
        let (first, columns) = (block * BLOCK, weight.len() / inputs);
        let mut sums = [0.0; TILE_ROWS * BLOCK];
        for (tile, input) in input.chunks(TILE_ROWS * inputs).enumerate() {
            // SAFETY: the processor has what the function was compiled for.
            unsafe { products(input, weight, &mut sums, inputs) };
            for row in 0..input.len() / inputs {
                let place = (tile * TILE_ROWS + row) * outputs + first;
                let sums = &sums[row * BLOCK..][..columns];
                // SAFETY: the row and the columns are of the output, and no other block has these columns.
                unsafe { target.write(place, sums) };
            }
        }
    });
    // SAFETY: so many fit, and the blocks have written every column of every row.
    unsafe { output.set_len(rows * outputs) };
    Some(output)
}

/// Where all threads write to.
struct Target(*mut f32);

impl Target {
    /// # Safety
    ///
    /// The places are within the output, and no other thread writes to them.
    unsafe fn write(&self, place: usize, values: &[f32]) {
        // SAFETY: as the caller has promised.
        unsafe {
            self.0
                .add(place)
                .copy_from_nonoverlapping(values.as_ptr(), values.len());
        };
    }
}

// SAFETY: each thread writes to columns of its own.
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
