//! Rows into columns.
#![allow(
    unsafe_code,
    reason = "vectors are loaded and stored by address, in a function compiled for what was detected"
)]

/// Rows and columns that are turned at once, and columns at least.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 8;
#[cfg(target_arch = "x86_64")]
const HALF: usize = SIDE / 2;

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
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        let (whole_rows, whole_columns) = (rows / SIDE * SIDE, columns / HALF * HALF);
        let squares = columns / SIDE * SIDE;
        for row in (0..whole_rows).step_by(SIDE) {
            // SAFETY: the feature was detected, and the squares and halves lie within both.
            unsafe {
                let from = from.as_ptr().add(row * from_row);
                let to = to.as_mut_ptr().add(row);
                for column in (0..squares).step_by(SIDE) {
                    x86::square(from.add(column), from_row, to.add(column * to_row), to_row);
                }
                if squares < whole_columns {
                    let column = squares;
                    x86::half(from.add(column), from_row, to.add(column * to_row), to_row);
                }
            }
        }
        let copy = one_by_one(from, from_row, to, to_row);
        return rest(copy, whole_rows, whole_columns, rows, columns);
    }
    rest(one_by_one(from, from_row, to, to_row), 0, 0, rows, columns);
}

fn one_by_one(
    from: &[f32],
    from_row: usize,
    to: &mut [f32],
    to_row: usize,
) -> impl FnMut(usize, usize) {
    move |row, column| to[column * to_row + row] = from[row * from_row + column]
}

/// What the squares have left.
fn rest(
    mut copy: impl FnMut(usize, usize),
    whole_rows: usize,
    whole_columns: usize,
    rows: usize,
    columns: usize,
) {
    for column in whole_columns..columns {
        (0..whole_rows).for_each(|row| copy(row, column));
    }
    for row in whole_rows..rows {
        (0..columns).for_each(|column| copy(row, column));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Eight rows of four.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn half(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for four numbers of eight rows, and eight places of four.
        unsafe {
            // Of each register the halves are four rows apart.
            let rows: [__m256; 4] = std::array::from_fn(|row| {
                let upper = _mm_loadu_ps(from.add(row * from_row));
                let lower = _mm_loadu_ps(from.add((row + 4) * from_row));
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(upper), lower)
            });
            let low = [
                _mm256_unpacklo_ps(rows[0], rows[1]),
                _mm256_unpacklo_ps(rows[2], rows[3]),
            ];
            let high = [
                _mm256_unpackhi_ps(rows[0], rows[1]),
                _mm256_unpackhi_ps(rows[2], rows[3]),
            ];
            for (i, [upper, lower]) in [low, high].into_iter().enumerate() {
                let first = _mm256_shuffle_ps::<0b01_00_01_00>(upper, lower);
                let second = _mm256_shuffle_ps::<0b11_10_11_10>(upper, lower);
                _mm256_storeu_ps(to.add(2 * i * to_row), first);
                _mm256_storeu_ps(to.add((2 * i + 1) * to_row), second);
            }
        }
    }

    /// Eight rows of eight.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn square(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller vouches for eight numbers of eight rows on either side.
        unsafe {
            let rows: [__m256; 8] =
                std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_row)));
            // Pairs of rows woven by ones, by twos, and then halves exchanged.
            let by_one: [__m256; 8] = std::array::from_fn(|i| {
                let (upper, lower) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
                match i % 2 {
                    0 => _mm256_unpacklo_ps(upper, lower),
                    _ => _mm256_unpackhi_ps(upper, lower),
                }
            });
            let by_two: [__m256; 8] = std::array::from_fn(|i| {
                let (half, pair) = (i / 4 * 4, i % 4 / 2);
                let (upper, lower) = (by_one[half + pair], by_one[half + pair + 2]);
                match i % 2 {
                    0 => _mm256_shuffle_ps::<0b01_00_01_00>(upper, lower),
                    _ => _mm256_shuffle_ps::<0b11_10_11_10>(upper, lower),
                }
            });
            for i in 0..4 {
                let (left, right) = (by_two[i], by_two[i + 4]);
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
