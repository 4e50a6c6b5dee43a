//! The transforms of Winograd's F(4×4, 3×3), vectorised over sixteen tiles.
//!
//! The interpolation points are 0, ±5/8, ±3/2 and ∞ instead of the usual 0, ±1, ±2, ∞. They are exact in binary and have about
//! a third of the error: 1.4e-6 of the output's root mean square instead of 3.1e-6, and at most 1.1e-5 instead of 4.2e-5, over
//! 256 channels of normal values (a direct sum has about 3e-7 and 2e-6; numpy, f32, the best of thirteen pairs,
//! docs/log.md, 2026-11-25).
#![allow(
    unsafe_code,
    reason = "patches are written to a buffer shared by threads"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "lanes, rows and columns index several arrays at once"
)]

use crate::cpu::loops::vectorized;

/// Side of an output tile.
pub(super) const TILE: usize = 4;
/// Side of the input patch that a tile depends on.
pub(super) const PATCH: usize = TILE + 2;
/// Number of interpolation points in two dimensions, which is the number of products per tile and pair of channels.
pub(super) const POINTS: usize = PATCH * PATCH;
/// Number of tiles transformed together: the lanes of one AVX-512 or two AVX2 vectors.
pub(super) const LANES: usize = 16;
/// The interpolation points are ±A and ±B besides 0 and ∞.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// The values of sixteen tiles or kernels at all points.
pub(super) type Unit = [[f32; LANES]; POINTS];

vectorized! {
    /// Transforms kernels to all points, `G·g·Gᵀ`, sixteen at a time.
    pub(super) fn kernels_at_points(taps: &[[f32; LANES]; 9], points: &mut Unit) {
        // The rows of G, up to the powers of ±A and ±B that its columns add.
        let at_zero = 1.0 / (A2 * B2);
        let at_a = 1.0 / (2.0 * A2 * (A2 - B2));
        let at_b = 1.0 / (2.0 * B2 * (B2 - A2));
        let at_points = |g0: f32, g1: f32, g2: f32| {
            let (even_a, odd_a) = (at_a * (g0 + A2 * g2), at_a * A * g1);
            let (even_b, odd_b) = (at_b * (g0 + B2 * g2), at_b * B * g1);
            [at_zero * g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2]
        };
        let mut down = [[[0.0f32; LANES]; 3]; PATCH];
        for column in 0..3 {
            for i in 0..LANES {
                let values = at_points(taps[column][i], taps[3 + column][i], taps[6 + column][i]);
                for row in 0..PATCH {
                    down[row][column][i] = values[row];
                }
            }
        }
        for row in 0..PATCH {
            for i in 0..LANES {
                let [g0, g1, g2] = [down[row][0][i], down[row][1][i], down[row][2][i]];
                let values = at_points(g0, g1, g2);
                for column in 0..PATCH {
                    points[PATCH * row + column][i] = values[column];
                }
            }
        }
    }
}

/// Six values of a row or column at the six points, `Bᵀ·d`.
#[inline(always)]
fn patch_at_points([d0, d1, d2, d3, d4, d5]: [f32; PATCH]) -> [f32; PATCH] {
    let (even_a, odd_a) = (d4 - B2 * d2, A * (d3 - B2 * d1));
    let (even_b, odd_b) = (d4 - A2 * d2, B * (d3 - A2 * d1));
    [
        A2 * B2 * d0 - (A2 + B2) * d2 + d4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        A2 * B2 * d1 - (A2 + B2) * d3 + d5,
    ]
}

/// Four pixels of a row or column from six points, `Aᵀ·m`.
#[inline(always)]
fn pixels_at([m0, a, minus_a, b, minus_b, m5]: [f32; PATCH]) -> [f32; TILE] {
    let (even_a, odd_a) = (a + minus_a, a - minus_a);
    let (even_b, odd_b) = (b + minus_b, b - minus_b);
    [
        m0 + even_a + even_b,
        A * odd_a + B * odd_b,
        A2 * even_a + B2 * even_b,
        A2 * A * odd_a + B2 * B * odd_b + m5,
    ]
}

vectorized! {
    /// Transforms sixteen patches to all points, `Bᵀ·d·B`, and writes the line of point `p` to `first + p·apart`.
    ///
    /// # Safety
    ///
    /// Each of these [`POINTS`] addresses is valid for writing [`LANES`] values, which no other thread accesses during the call.
    pub(super) unsafe fn patches_at_points(under: &[[[f32; LANES]; PATCH]; PATCH], first: *mut f32, apart: usize) {
        let mut across = [[[0.0f32; LANES]; PATCH]; PATCH];
        for (across, under) in across.iter_mut().zip(under) {
            for t in 0..LANES {
                let values = patch_at_points(std::array::from_fn(|column| under[column][t]));
                for column in 0..PATCH {
                    across[column][t] = values[column];
                }
            }
        }
        for column in 0..PATCH {
            let mut lines = [[0.0f32; LANES]; PATCH];
            for t in 0..LANES {
                let values = patch_at_points(std::array::from_fn(|row| across[row][column][t]));
                for row in 0..PATCH {
                    lines[row][t] = values[row];
                }
            }
            for (row, line) in lines.iter().enumerate() {
                let to = first.wrapping_add((PATCH * row + column) * apart);
                // SAFETY: guaranteed by the caller.
                unsafe { to.cast::<[f32; LANES]>().write_unaligned(*line) };
            }
        }
    }
}

vectorized! {
    /// Computes the pixels of sixteen tiles, `Aᵀ·m·A`, as four columns of each of four rows; the line of point `p` begins at
    /// `p·apart`.
    pub(super) fn pixels_of_points(
        points: &[f32],
        apart: usize,
        pixels: &mut [[[f32; LANES]; TILE]; TILE],
    ) {
        let mut down = [[[0.0f32; LANES]; PATCH]; TILE];
        for column in 0..PATCH {
            let lines: [&[f32; LANES]; PATCH] = std::array::from_fn(|row| {
                points[(PATCH * row + column) * apart..].first_chunk().expect("a line is there")
            });
            for t in 0..LANES {
                let values = pixels_at(lines.map(|line| line[t]));
                for row in 0..TILE {
                    down[row][column][t] = values[row];
                }
            }
        }
        for row in 0..TILE {
            for t in 0..LANES {
                let values = pixels_at(std::array::from_fn(|column| down[row][column][t]));
                for column in 0..TILE {
                    pixels[row][column][t] = values[column];
                }
            }
        }
    }
}
