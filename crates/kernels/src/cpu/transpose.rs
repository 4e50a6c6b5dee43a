//! Transposition, in squares that fit into registers.
#![allow(
    unsafe_code,
    reason = "vector loads and stores by address, in functions compiled for detected features"
)]

use std::mem::MaybeUninit;

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::cpu::vectors::{Vectors, vectors};

/// De-interleaves a row under sixteen tiles by the position in their patches: line `i` gets every fourth value, starting
/// with the i-th.
pub(crate) fn deinterleave(from: &[f32; 66], to: &mut [[f32; 16]; 6]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if vectors() == Vectors::Avx512 {
        // SAFETY: the CPU has AVX-512.
        return unsafe { x86::deinterleave(from, to) };
    }
    // Four lines are transposed faster than two, so two of the six are written twice.
    for first in [0, 2] {
        transpose(
            &from[first..],
            4,
            [16, 4],
            to[first..].as_flattened_mut(),
            16,
        );
    }
}

/// Interleaves four lines: the pixels of sixteen tiles, by column within the tile, become a row of the image.
pub(crate) fn interleave(from: &[[f32; 16]; 4], to: &mut [f32; 64]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if vectors() == Vectors::Avx512 {
        // SAFETY: the CPU has AVX-512.
        return unsafe { x86::interleave(from, to) };
    }
    transpose(from.as_flattened(), 16, [4, 16], to, 4);
}

/// `to[column·to_row + row] = from[row·from_row + column]`.
///
/// # Panics
///
/// If either is too short.
pub(crate) fn transpose(
    from: &[f32],
    from_row: usize,
    size: [usize; 2],
    to: &mut [f32],
    to_row: usize,
) {
    // SAFETY: `f32` and `MaybeUninit<f32>` have the same layout, and nothing but f32 is written.
    let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<f32>]) };
    transpose_into(from, from_row, size, to, to_row);
}

/// [`transpose`] into memory that may be uninitialised.
///
/// # Panics
///
/// Same as there.
pub(crate) fn transpose_into(
    from: &[f32],
    from_row: usize,
    [rows, columns]: [usize; 2],
    to: &mut [MaybeUninit<f32>],
    to_row: usize,
) {
    if rows * columns == 0 {
        return;
    }
    assert!((rows - 1) * from_row + columns <= from.len());
    assert!((columns - 1) * to_row + rows <= to.len());
    #[allow(unused_mut, reason = "squares exist only on x86-64")]
    let mut whole = [0, 0];
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if vectors() >= Vectors::Avx2 {
        let (from, to) = (from.as_ptr(), to.as_mut_ptr().cast());
        // SAFETY: the CPU has AVX2, and all rows and columns lie within both.
        whole = unsafe { x86::transpose(from, from_row, [rows, columns], to, to_row) };
    }
    let mut copy = |row: usize, column: usize| {
        to[column * to_row + row].write(from[row * from_row + column]);
    };
    for column in whole[1]..columns {
        (0..whole[0]).for_each(|row| copy(row, column));
    }
    for row in whole[0]..rows {
        (0..columns).for_each(|column| copy(row, column));
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::*;

    /// Side of the squares that fit into registers; the rest is transposed in halves of these.
    const SIDE: usize = 8;
    const HALF: usize = SIDE / 2;

    /// Transposes whole squares and halves, and returns the number of rows and columns in them.
    ///
    /// # Safety
    ///
    /// All rows and columns lie within both arrays.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose(
        from: *const f32,
        from_row: usize,
        [rows, columns]: [usize; 2],
        to: *mut f32,
        to_row: usize,
    ) -> [usize; 2] {
        let [rows, columns] = match rows / SIDE {
            0 => [rows / HALF * HALF, columns / SIDE * SIDE],
            squares => [squares * SIDE, columns / HALF * HALF],
        };
        for row in (0..rows).step_by(SIDE) {
            for column in (0..columns).step_by(SIDE) {
                // SAFETY: the square lies within both arrays, as the caller guarantees.
                unsafe {
                    let from = from.add(row * from_row + column);
                    let to = to.add(column * to_row + row);
                    match (rows - row, columns - column) {
                        (HALF, _) => low(from, from_row, to, to_row),
                        (_, HALF) => narrow(from, from_row, to, to_row),
                        _ => square(from, from_row, to, to_row),
                    }
                }
            }
        }
        [rows, columns]
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn deinterleave(from: &[f32; 66], to: &mut [[f32; 16]; 6]) {
        // SAFETY: sixteen values follow each of these positions, and a line has sixteen.
        unsafe {
            let sixteen = |at: usize| _mm512_loadu_ps(from[at..].as_ptr());
            let near = transposed_quarters([0, 16, 32, 48].map(sixteen));
            let far = transposed_quarters([2, 18, 34, 50].map(sixteen));
            let columns = near.iter().chain(&far[2..]);
            for (to, column) in to.iter_mut().zip(columns) {
                let column = _mm512_permutexvar_ps(every_fourth(), *column);
                _mm512_storeu_ps(to.as_mut_ptr(), column);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn interleave(from: &[[f32; 16]; 4], to: &mut [f32; 64]) {
        // SAFETY: a line has sixteen values, and so has each chunk.
        unsafe {
            let rows = from.each_ref().map(|row| {
                let row = _mm512_loadu_ps(row.as_ptr());
                _mm512_permutexvar_ps(every_fourth(), row)
            });
            let (to, _) = to.as_chunks_mut::<16>();
            for (to, columns) in to.iter_mut().zip(transposed_quarters(rows)) {
                _mm512_storeu_ps(to.as_mut_ptr(), columns);
            }
        }
    }

    /// Lanes 0, 4, 8, 12, then 1, 5, and so on; its own inverse.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn every_fourth() -> __m512i {
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
    }

    /// Transposes the 4×4 squares in each quarter of the registers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed_quarters([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (below_low, below_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0b01_00_01_00>(low, below_low),
            _mm512_shuffle_ps::<0b11_10_11_10>(low, below_low),
            _mm512_shuffle_ps::<0b01_00_01_00>(high, below_high),
            _mm512_shuffle_ps::<0b11_10_11_10>(high, below_high),
        ]
    }

    /// Transposes eight rows of four.
    ///
    /// # Safety
    ///
    /// Four values of eight rows can be read, and eight of four written.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn narrow(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            // The halves of each register are four rows apart.
            let columns = transposed_halves(std::array::from_fn(|row| {
                let upper = _mm_loadu_ps(from.add(row * from_row));
                let lower = _mm_loadu_ps(from.add((row + 4) * from_row));
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(upper), lower)
            }));
            for (column, values) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(to.add(column * to_row), values);
            }
        }
    }

    /// Transposes four rows of eight.
    ///
    /// # Safety
    ///
    /// Eight values of four rows can be read, and four of eight written.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn low(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let rows = std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_row)));
            // The halves of each register are four columns apart.
            for (column, values) in transposed_halves(rows).into_iter().enumerate() {
                let near = _mm256_castps256_ps128(values);
                let far = _mm256_extractf128_ps::<1>(values);
                _mm_storeu_ps(to.add(column * to_row), near);
                _mm_storeu_ps(to.add((column + 4) * to_row), far);
            }
        }
    }

    /// Transposes the 4×4 squares in each half of the registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed_halves([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (below_low, below_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low, below_low),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, below_low),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, below_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, below_high),
        ]
    }

    /// Transposes eight rows of eight.
    ///
    /// # Safety
    ///
    /// Eight values of eight rows can be read, and the same number written.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn square(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let rows: [__m256; 8] =
                std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_row)));
            let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
            let (upper, lower) = (
                transposed_halves([r0, r1, r2, r3]),
                transposed_halves([r4, r5, r6, r7]),
            );
            for i in 0..4 {
                let (left, right) = (upper[i], lower[i]);
                let low = _mm256_permute2f128_ps::<0x20>(left, right);
                let high = _mm256_permute2f128_ps::<0x31>(left, right);
                _mm256_storeu_ps(to.add(i * to_row), low);
                _mm256_storeu_ps(to.add((i + 4) * to_row), high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn rows_are_deinterleaved_and_interleaved() {
        let from = std::array::from_fn(|i| i as f32);
        let mut lines = [[0.0; 16]; 6];
        deinterleave(&from, &mut lines);
        for (place, line) in lines.iter().enumerate() {
            assert_eq!(*line, std::array::from_fn(|t| (4 * t + place) as f32));
        }
        let mut row = [0.0; 64];
        interleave(lines.first_chunk().unwrap(), &mut row);
        assert_eq!(row, from[..64]);
    }

    #[test]
    fn rows_become_columns() {
        for (rows, columns) in [
            (1, 1),
            (8, 8),
            (16, 24),
            (7, 9),
            (19, 33),
            (9, 64),
            (16, 4),
            (17, 13),
        ] {
            let (from_row, to_row) = (columns + 3, rows + 2);
            let from: Vec<f32> = (0..rows * from_row).map(|i| i as f32).collect();
            let mut to = vec![-1.0; columns * to_row];
            transpose(&from, from_row, [rows, columns], &mut to, to_row);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(to[column * to_row + row], from[row * from_row + column]);
                }
            }
            assert!(to.chunks(to_row).all(|line| line[rows..] == [-1.0; 2]));
        }
    }
}
