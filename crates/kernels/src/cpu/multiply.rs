//! Products of matrices on one thread, for matrices that lie as the registers want them: the left one with its rows along
//! the numbers that are summed, the right one with its columns side by side.
//!
//! Nothing is laid out anew here. A tile of the product stays in registers while its sums run, each in one chain of fused
//! multiplications and additions; AVX2 and AVX-512 therefore give every bit of the same.
#![allow(
    unsafe_code,
    reason = "vectors are loaded and stored by address, in functions compiled for what was detected"
)]

use crate::cpu::fetch::{LINE, fetch};
use crate::cpu::product::Matrix;
#[cfg(target_arch = "x86_64")]
use crate::cpu::vectors::{Vectors, longest};

/// `target (+)= left·right`, for a target whose rows begin `target_row` apart.
///
/// The left matrix is best read through once for each 64 columns, and a strip of the right one should fit the second cache.
///
/// # Safety
///
/// Elements `i·target_row + j` of the target, for each row i and column j of the product, can be written (and read, if it
/// is added to them), and no other thread touches them meanwhile.
///
/// # Panics
///
/// If the matrices do not match.
pub(crate) unsafe fn multiply(
    target: *mut f32,
    target_row: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    add: bool,
) {
    assert_eq!(left.columns, right.rows, "the matrices do not match");
    let product = Product {
        left: left.values.as_ptr(),
        left_row: left.stride,
        right: right.values.as_ptr(),
        right_row: right.stride,
        target,
        target_row,
        rows: left.rows,
        columns: right.columns,
        inner: left.columns,
        add,
    };
    #[cfg(target_arch = "x86_64")]
    {
        match longest() {
            // SAFETY: the processor has them; matrices are no longer than their values; the caller vouches for the target.
            Vectors::Avx512 => return unsafe { x86::with_avx512(product) },
            // SAFETY: as above.
            Vectors::Avx2 => return unsafe { x86::with_avx2(product) },
            Vectors::Any => {}
        }
    }
    // SAFETY: as above, and there is nothing to detect.
    unsafe { product.portable() };
}

/// What is multiplied, and where it goes.
#[derive(Clone, Copy)]
struct Product {
    left: *const f32,
    left_row: usize,
    right: *const f32,
    right_row: usize,
    target: *mut f32,
    target_row: usize,
    rows: usize,
    columns: usize,
    inner: usize,
    add: bool,
}

/// A vector of some processor.
trait Vector: Copy {
    const LANES: usize;
    /// Vectors at most in a strip, 2 or 4 (5, if no more are left): with sixteen registers more would leave none for the sums.
    const WIDEST: usize;
    /// Says which lanes are loaded or stored.
    type Mask: Copy;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn first(count: usize) -> Self::Mask;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_part(from: *const f32, mask: Self::Mask) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_part(self, to: *mut f32, mask: Self::Mask);
    /// `self + x·y`
    unsafe fn add_product(self, x: Self, y: Self) -> Self;
}

impl Product {
    /// For processors without vectors that are known here.
    unsafe fn portable(self) {
        // SAFETY: the caller vouches for the matrices.
        unsafe { self.run::<[f32; 8], 8, 6, 4, 2>() };
    }

    /// Strip by strip, with as many rows in a tile as leave registers for the sums: `R1` of strips of one vector, and so on.
    #[inline(always)]
    unsafe fn run<V: Vector, const R1: usize, const R2: usize, const R3: usize, const R4: usize>(
        self,
    ) {
        let mut first = 0;
        while first < self.columns {
            let left = (self.columns - first).div_ceil(V::LANES);
            // SAFETY: strips begin within the columns; the rest is the caller's.
            first += unsafe {
                match left {
                    1 => self.strip::<V, R1, 1>(first),
                    2 => self.strip::<V, R2, 2>(first),
                    _ if V::WIDEST == 2 => self.strip::<V, R2, 2>(first),
                    5 => self.strip::<V, 5, 5>(first),
                    _ if left % 3 == 0 => self.strip::<V, R3, 3>(first),
                    _ => self.strip::<V, R4, 4>(first),
                }
            };
        }
    }

    /// All rows of up to `VECTORS` vectors of columns; returns how many columns these are.
    #[inline(always)]
    unsafe fn strip<V: Vector, const ROWS: usize, const VECTORS: usize>(
        &self,
        first: usize,
    ) -> usize {
        let columns = (self.columns - first).min(VECTORS * V::LANES);
        // SAFETY: rows and columns are of the matrices.
        unsafe {
            let (right, target) = (self.right.add(first), self.target.add(first));
            let left = columns - (VECTORS - 1) * V::LANES;
            for row in (0..self.rows).step_by(ROWS) {
                let rows = ROWS.min(self.rows - row);
                let target = target.add(row * self.target_row);
                if left == V::LANES {
                    self.tile::<V, ROWS, VECTORS, true>(row, rows, right, target, left);
                } else {
                    self.tile::<V, ROWS, VECTORS, false>(row, rows, right, target, left);
                }
            }
        }
        columns
    }

    /// Up to `ROWS` rows of a strip, whose last vector is whole, or has so many columns.
    #[inline(always)]
    unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize, const WHOLE: bool>(
        &self,
        row: usize,
        rows: usize,
        right: *const f32,
        target: *mut f32,
        last: usize,
    ) {
        // SAFETY: all addresses are of rows and columns that are there; of the last vector only what the mask names.
        unsafe {
            let mask = V::first(last);
            // At the edge the last row is taken more than once.
            let left: [*const f32; ROWS] =
                std::array::from_fn(|i| self.left.add((row + i.min(rows - 1)) * self.left_row));
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            if self.add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let target = target.add(i.min(rows - 1) * self.target_row);
                    *sums = load::<V, VECTORS, WHOLE>(target, mask);
                }
            }
            let next = left.map(|left| left.wrapping_add(ROWS * self.left_row));
            for k in 0..self.inner {
                if k % LINE == 0 {
                    next.iter()
                        .for_each(|next| fetch(next.wrapping_add(k), LINE));
                }
                let right = load::<V, VECTORS, WHOLE>(right.add(k * self.right_row), mask);
                for (sums, left) in sums.iter_mut().zip(left) {
                    let left = V::splat(*left.add(k));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = sum.add_product(left, right);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                if i < rows {
                    let target = target.add(i * self.target_row);
                    for (j, sum) in sums.into_iter().enumerate() {
                        let target = target.add(j * V::LANES);
                        if WHOLE || j + 1 < VECTORS {
                            sum.store(target);
                        } else {
                            sum.store_part(target, mask);
                        }
                    }
                }
            }
        }
    }
}

/// Vectors side by side, of the last one, if it is not whole, what the mask names.
#[inline(always)]
unsafe fn load<V: Vector, const VECTORS: usize, const WHOLE: bool>(
    from: *const f32,
    mask: V::Mask,
) -> [V; VECTORS] {
    // SAFETY: the caller vouches for the numbers.
    std::array::from_fn(|j| unsafe {
        if WHOLE || j + 1 < VECTORS {
            V::load(from.add(j * V::LANES))
        } else {
            V::load_part(from.add(j * V::LANES), mask)
        }
    })
}

/// For processors without vectors that are known here; the compiler finds what it can.
impl Vector for [f32; 8] {
    const LANES: usize = 8;
    const WIDEST: usize = 2;
    type Mask = usize;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn first(count: usize) -> usize {
        count
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight numbers.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller vouches for so many.
        std::array::from_fn(|i| match i < count {
            true => unsafe { *from.add(i) },
            false => 0.0,
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight places.
        unsafe { to.cast::<Self>().write_unaligned(self) };
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the caller vouches for so many.
        unsafe { to.copy_from_nonoverlapping(self.as_ptr(), count) };
    }

    #[inline(always)]
    unsafe fn add_product(self, x: Self, y: Self) -> Self {
        std::array::from_fn(|i| self[i] + x[i] * y[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Product, Vector};

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn with_avx512(product: Product) {
        // SAFETY: the caller vouches for the matrices.
        unsafe { product.run::<__m512, 16, 12, 8, 6>() };
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn with_avx2(product: Product) {
        // SAFETY: the caller vouches for the matrices.
        unsafe { product.run::<__m256, 8, 6, 4, 2>() };
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        const WIDEST: usize = 4;
        type Mask = __mmask16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: here and below the processor has the feature, or `with_avx512` had not been called.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn first(count: usize) -> __mmask16 {
            (((1_u32) << count) - 1) as __mmask16
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above; the caller vouches for the numbers.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, mask: __mmask16) -> Self {
            // SAFETY: as above; only what the mask names is read.
            unsafe { _mm512_maskz_loadu_ps(mask, from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above; the caller vouches for the places.
            unsafe { _mm512_storeu_ps(to, self) };
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, mask: __mmask16) {
            // SAFETY: as above; only what the mask names is written.
            unsafe { _mm512_mask_storeu_ps(to, mask, self) };
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(x, y, self) }
        }
    }

    /// Eight numbers of which the sign is set, and eight others: a window on them is a mask.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    impl Vector for __m256 {
        const LANES: usize = 8;
        const WIDEST: usize = 2;
        type Mask = __m256i;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: here and below the processor has the features, or `with_avx2` had not been called.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn first(count: usize) -> __m256i {
            // SAFETY: as above, and the window is within the masks, for a count of at most eight.
            unsafe { _mm256_loadu_si256(MASKS[8 - count..].as_ptr().cast()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above; the caller vouches for the numbers.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, mask: __m256i) -> Self {
            // SAFETY: as above; only what the mask names is read.
            unsafe { _mm256_maskload_ps(from, mask) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above; the caller vouches for the places.
            unsafe { _mm256_storeu_ps(to, self) };
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, mask: __m256i) {
            // SAFETY: as above; only what the mask names is written.
            unsafe { _mm256_maskstore_ps(to, mask, self) };
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(x, y, self) }
        }
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_values_close, device, random, values};

    use super::*;

    #[test]
    fn every_kind_of_vectors_gives_the_product() {
        let mut kinds: Vec<unsafe fn(Product)> = vec![|product| unsafe { product.portable() }];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kinds.push(|product| unsafe { x86::with_avx2(product) });
            }
            if is_x86_feature_detected!("avx512f") {
                kinds.push(|product| unsafe { x86::with_avx512(product) });
            }
        }
        // Strips of every number of vectors, whole and not, and rows that tiles come out even with and not.
        for columns in [1, 8, 15, 16, 17, 33, 48, 50, 64, 79, 96, 113, 130] {
            for (rows, inner, add) in [(1, 1, false), (7, 33, true), (24, 20, false)] {
                let [left_row, right_row, target_row] = [inner + 3, columns + 5, columns + 2];
                let draw =
                    |rows: usize, row: usize, seed| values(random([rows, row], seed, &device()));
                let (left, right) = (draw(rows, left_row, 0), draw(inner, right_row, 1));
                let before = draw(rows, target_row, 2);
                let mut expected = before.clone();
                for row in 0..rows {
                    for column in 0..columns {
                        let products = (0..inner).map(|k| {
                            let right = f64::from(right[k * right_row + column]);
                            f64::from(left[row * left_row + k]) * right
                        });
                        let place = &mut expected[row * target_row + column];
                        let start = if add { f64::from(*place) } else { 0.0 };
                        *place = (start + products.sum::<f64>()) as f32;
                    }
                }
                for kind in &kinds {
                    let mut found = before.clone();
                    let product = Product {
                        left: left.as_ptr(),
                        left_row,
                        right: right.as_ptr(),
                        right_row,
                        target: found.as_mut_ptr(),
                        target_row,
                        rows,
                        columns,
                        inner,
                        add,
                    };
                    // SAFETY: the sizes are those of the three.
                    unsafe { kind(product) };
                    assert_values_close(&found, &expected, 1e-5);
                }
            }
        }
    }
}
