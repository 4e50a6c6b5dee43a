//! Rows into columns.
#![allow(
    unsafe_code,
    reason = "vectors are loaded and stored by address, in a function compiled for what was detected"
)]

#[cfg(target_arch = "x86_64")]
use crate::cpu::vectors::{Vectors, longest};

/// Every fourth of 66 numbers, from the first to the sixth on.
pub(crate) fn part(from: &[f32; 66], to: &mut [[f32; 16]; 6]) {
    #[cfg(target_arch = "x86_64")]
    if longest() == Vectors::Avx512 {
        // SAFETY: the processor has them.
        return unsafe { x86::part(from, to) };
    }
    // Four are turned faster than two, so two of them are turned twice.
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

/// Four rows as the columns of 64 numbers.
pub(crate) fn join(from: &[[f32; 16]; 4], to: &mut [f32; 64]) {
    #[cfg(target_arch = "x86_64")]
    if longest() == Vectors::Avx512 {
        // SAFETY: the processor has them.
        return unsafe { x86::join(from, to) };
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
    [rows, columns]: [usize; 2],
    to: &mut [f32],
    to_row: usize,
) {
    if rows * columns == 0 {
        return;
    }
    assert!((rows - 1) * from_row + columns <= from.len());
    assert!((columns - 1) * to_row + rows <= to.len());
    #[allow(unused_mut, reason = "other processors turn nothing at once")]
    let mut whole = [0, 0];
    #[cfg(target_arch = "x86_64")]
    if longest() >= Vectors::Avx2 {
        // SAFETY: the processor has them, and all rows and columns lie within both.
        whole = unsafe {
            x86::turn(
                from.as_ptr(),
                from_row,
                [rows, columns],
                to.as_mut_ptr(),
                to_row,
            )
        };
    }
    let mut copy = |row: usize, column: usize| {
        to[column * to_row + row] = from[row * from_row + column];
    };
    for column in whole[1]..columns {
        (0..whole[0]).for_each(|row| copy(row, column));
    }
    for row in whole[0]..rows {
        (0..columns).for_each(|column| copy(row, column));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Rows and columns of the squares that are turned at once; what is over is turned by halves of these.
    const SIDE: usize = 8;
    const HALF: usize = SIDE / 2;

    /// Turns what comes in squares and halves, and returns how many rows and columns that was.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn turn(
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
                // SAFETY: what is turned lies within both, as the caller vouches for.
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
    pub(super) fn part(from: &[f32; 66], to: &mut [[f32; 16]; 6]) {
        // SAFETY: so many numbers lie behind each place, and lines have sixteen.
        unsafe {
            let sixteen = |at: usize| _mm512_loadu_ps(from[at..].as_ptr());
            let near = woven_quarters([0, 16, 32, 48].map(sixteen));
            let far = woven_quarters([2, 18, 34, 50].map(sixteen));
            let columns = near.iter().chain(&far[2..]);
            for (to, column) in to.iter_mut().zip(columns) {
                let column = _mm512_permutexvar_ps(every_fourth(), *column);
                _mm512_storeu_ps(to.as_mut_ptr(), column);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn join(from: &[[f32; 16]; 4], to: &mut [f32; 64]) {
        // SAFETY: rows have sixteen numbers, and so many places lie behind each.
        unsafe {
            let rows = from.each_ref().map(|row| {
                let row = _mm512_loadu_ps(row.as_ptr());
                _mm512_permutexvar_ps(every_fourth(), row)
            });
            let (to, _) = to.as_chunks_mut::<16>();
            for (to, columns) in to.iter_mut().zip(woven_quarters(rows)) {
                _mm512_storeu_ps(to.as_mut_ptr(), columns);
            }
        }
    }

    /// Numbers 0, 4, 8, 12, then 1, 5, and so on; twice it is the order as it was.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn every_fourth() -> __m512i {
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
    }

    /// Of each quarter the rows become columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn woven_quarters([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (below_low, below_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0b01_00_01_00>(low, below_low),
            _mm512_shuffle_ps::<0b11_10_11_10>(low, below_low),
            _mm512_shuffle_ps::<0b01_00_01_00>(high, below_high),
            _mm512_shuffle_ps::<0b11_10_11_10>(high, below_high),
        ]
    }

    /// Eight rows of four.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn narrow(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for four numbers of eight rows, and eight places of four.
        unsafe {
            // Of each register the halves are four rows apart.
            let columns = woven(std::array::from_fn(|row| {
                let upper = _mm_loadu_ps(from.add(row * from_row));
                let lower = _mm_loadu_ps(from.add((row + 4) * from_row));
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(upper), lower)
            }));
            for (column, values) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(to.add(column * to_row), values);
            }
        }
    }

    /// Four rows of eight.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn low(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for eight numbers of four rows, and four places of eight.
        unsafe {
            let rows = std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_row)));
            // Of each register the halves are four columns apart.
            for (column, values) in woven(rows).into_iter().enumerate() {
                let near = _mm256_castps256_ps128(values);
                let far = _mm256_extractf128_ps::<1>(values);
                _mm_storeu_ps(to.add(column * to_row), near);
                _mm_storeu_ps(to.add((column + 4) * to_row), far);
            }
        }
    }

    /// Of either half the rows become columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn woven([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (below_low, below_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low, below_low),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, below_low),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, below_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, below_high),
        ]
    }

    /// Eight rows of eight.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn square(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for eight numbers of eight rows on either side.
        unsafe {
            let rows: [__m256; 8] =
                std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_row)));
            let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
            let (upper, lower) = (woven([r0, r1, r2, r3]), woven([r4, r5, r6, r7]));
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
    use super::*;

    #[test]
    fn fours_are_parted_and_joined() {
        let from = std::array::from_fn(|i| i as f32);
        let mut parted = [[0.0; 16]; 6];
        part(&from, &mut parted);
        for (place, line) in parted.iter().enumerate() {
            assert_eq!(*line, std::array::from_fn(|t| (4 * t + place) as f32));
        }
        let mut joined = [0.0; 64];
        join(parted.first_chunk().unwrap(), &mut joined);
        assert_eq!(joined, from[..64]);
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
