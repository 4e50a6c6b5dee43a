//! The single-threaded matrix product, of operands that need no packing: the rows of the left matrix run along the summed axis,
//! and the columns of the right matrix are adjacent.
//!
//! ```text
//!                         right: inner × columns, row-major;
//!                         a strip should fit the L2 cache
//!                         ┌─────────────┬──────
//!                         │             │
//!            k →          │      k ↓    │
//!                         └─────────────┴──────
//!  left:    ┌─────────┐   ┌──┬──┬──┬──┐┬──────
//!  rows ×   │─────────│   │  tile in    │  strip: VECTORS vectors wide, all rows
//!  inner    │─────────│   │  registers  │
//!           │─────────│   │ ROWS×VECTORS│   one step of k: load VECTORS vectors of the right matrix,
//!           ├─────────┤   ├──┴──┴──┴──┤┤   splat ROWS values of the left, ROWS·VECTORS multiply-adds
//!           │prefetch │   │  next tile  │
//! ```
//!
//! A tile of the product stays in registers while k runs over the whole inner axis. Each sum is one chain of fused
//! multiply-adds in the order of k, so AVX2 and AVX-512 are bit-identical.
//!
//! Tile sizes fill the registers: with 32 AVX-512 registers, 6×4, 8×3, 12×2 or 16×1 sums (24 or 16) plus the vectors they are
//! multiplied by; with 16 AVX2 registers, 6×2 or 8×1. Measured (docs/log.md, 2026-11-25, U-Net of SD-Turbo): 6 rows of 64
//! columns beat 12 of 32 by a tenth or more, because the left matrix is read half as often; with AVX2, 6×2 takes 2.7 s and
//! 4×3 takes 4.45 s. Packing the left matrix into panels of ROWS rows was up to a fifth slower than reading it in place.
#![allow(
    unsafe_code,
    reason = "vector loads and stores by address, in functions compiled for detected features"
)]

use crate::cpu::prefetch::{LINE, prefetch};
use crate::cpu::product::Matrix;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::cpu::vectors::{Vectors, vectors};

/// `target = left·right`, or `target += left·right` with `add`, for a target whose rows begin `target_row` apart.
///
/// # Safety
///
/// Elements `i·target_row + j` of the target, for each row i and column j of the product, are valid for writing (with `add`,
/// also initialised), and no other thread accesses them during the call.
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
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        match vectors() {
            // SAFETY: the CPU has AVX-512; matrices are no longer than their values; the target is guaranteed by the caller.
            Vectors::Avx512 => return unsafe { x86::with_avx512(product) },
            // SAFETY: the CPU has AVX2; the rest as above.
            Vectors::Avx2 => return unsafe { x86::with_avx2(product) },
            Vectors::Portable => {}
        }
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    // SAFETY: as above; the program is compiled for the feature.
    unsafe {
        product.with_simd128();
    }
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    // SAFETY: as above, without a feature to detect.
    unsafe {
        product.portable();
    }
}

/// Operands and target.
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

/// A vector register. Every method requires the CPU feature that its implementation is compiled for; loads and stores require
/// valid addresses for the lanes they access.
trait Vector: Copy {
    const LANES: usize;
    /// Maximum number of vectors in a strip, 2 or 4 (5 for the last strip): with sixteen registers, more would leave none for
    /// the sums.
    const WIDEST: usize;
    /// Selects the lanes to load or store.
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
    /// Multiplies with loops that the compiler vectorises.
    ///
    /// # Safety
    ///
    /// Same as [`multiply`].
    #[cfg_attr(
        all(target_arch = "wasm32", target_feature = "simd128"),
        allow(dead_code, reason = "the reference in tests")
    )]
    unsafe fn portable(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.run::<[f32; 8], 8, 6, 4, 2>() };
    }

    /// # Safety
    ///
    /// Same as [`multiply`].
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    unsafe fn with_simd128(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.run::<std::arch::wasm32::v128, 8, 6, 4, 2>() };
    }

    /// Multiplies strip by strip: tiles have `R1` rows in strips of one vector, `R2` in strips of two, and so on.
    ///
    /// # Safety
    ///
    /// Same as [`multiply`], with the feature of the vector.
    #[inline(always)]
    unsafe fn run<V: Vector, const R1: usize, const R2: usize, const R3: usize, const R4: usize>(
        self,
    ) {
        let mut first = 0;
        while first < self.columns {
            let left = (self.columns - first).div_ceil(V::LANES);
            // SAFETY: a strip begins within the columns; the rest is guaranteed by the caller.
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

    /// Computes all rows of a strip of up to `VECTORS` vectors; returns its number of columns.
    ///
    /// # Safety
    ///
    /// Same as [`run`](Self::run); there are columns from `first` on.
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

    /// Computes a tile: up to `ROWS` rows of a strip, whose last vector is whole or has `last` columns.
    ///
    /// # Safety
    ///
    /// Same as [`strip`](Self::strip); `right` and `target` point to the strip, the target to row `row` of it.
    #[inline(always)]
    unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize, const WHOLE: bool>(
        &self,
        row: usize,
        rows: usize,
        right: *const f32,
        target: *mut f32,
        last: usize,
    ) {
        // SAFETY: all addresses are of existing rows and columns; of the last vector only the lanes of the mask are touched.
        unsafe {
            let mask = V::first(last);
            // The last tile repeats its last row, so that the inner loop has no branch.
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
                    // Prefetch one cache line of each row of the next tile per cache line of k: an even stream from memory.
                    next.iter()
                        .for_each(|next| prefetch(next.wrapping_add(k), LINE));
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

/// Loads adjacent vectors, with the last one masked unless it is whole.
///
/// # Safety
///
/// The lanes can be read.
#[inline(always)]
unsafe fn load<V: Vector, const VECTORS: usize, const WHOLE: bool>(
    from: *const f32,
    mask: V::Mask,
) -> [V; VECTORS] {
    // SAFETY: guaranteed by the caller.
    std::array::from_fn(|j| unsafe {
        if WHOLE || j + 1 < VECTORS {
            V::load(from.add(j * V::LANES))
        } else {
            V::load_part(from.add(j * V::LANES), mask)
        }
    })
}

/// Eight values, which the compiler maps to the vectors of the target.
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
        // SAFETY: guaranteed by the caller.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        // SAFETY: guaranteed by the caller.
        std::array::from_fn(|i| match i < count {
            true => unsafe { *from.add(i) },
            false => 0.0,
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { to.cast::<Self>().write_unaligned(self) };
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe { to.copy_from_nonoverlapping(self.as_ptr(), count) };
    }

    #[inline(always)]
    unsafe fn add_product(self, x: Self, y: Self) -> Self {
        std::array::from_fn(|i| self[i] + x[i] * y[i])
    }
}

/// The vectors of WebAssembly, four values wide. Runtimes map them to the 16 registers that every x86-64 processor has, so tiles
/// are those of AVX2. There is no fused multiply-add with a defined rounding: results are those of the portable loops.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm {
    use std::arch::wasm32::*;

    use super::Vector;

    impl Vector for v128 {
        const LANES: usize = 4;
        const WIDEST: usize = 2;
        type Mask = usize;

        #[inline(always)]
        unsafe fn zero() -> Self {
            f32x4_splat(0.0)
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            f32x4_splat(value)
        }

        #[inline(always)]
        unsafe fn first(count: usize) -> usize {
            count
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: guaranteed by the caller.
            unsafe { v128_load(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            let mut values = [0.0; 4];
            // SAFETY: guaranteed by the caller; the count is at most four.
            unsafe {
                values
                    .as_mut_ptr()
                    .copy_from_nonoverlapping(from, count.min(4));
                Self::load(values.as_ptr())
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: guaranteed by the caller.
            unsafe { v128_store(to.cast(), self) };
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            let mut values = [0.0; 4];
            // SAFETY: guaranteed by the caller; the count is at most four.
            unsafe {
                self.store(values.as_mut_ptr());
                to.copy_from_nonoverlapping(values.as_ptr(), count.min(4));
            }
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            f32x4_add(self, f32x4_mul(x, y))
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Product, Vector};

    /// # Safety
    ///
    /// Same as [`super::multiply`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn with_avx512(product: Product) {
        // SAFETY: guaranteed by the caller.
        unsafe { product.run::<__m512, 16, 12, 8, 6>() };
    }

    /// # Safety
    ///
    /// Same as [`super::multiply`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn with_avx2(product: Product) {
        // SAFETY: guaranteed by the caller.
        unsafe { product.run::<__m256, 8, 6, 4, 2>() };
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        const WIDEST: usize = 4;
        type Mask = __mmask16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: here and below the processor has AVX-512, which `with_avx512` requires.
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
            // SAFETY: as above; the address is guaranteed by the caller.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, mask: __mmask16) -> Self {
            // SAFETY: as above; only the lanes of the mask are read.
            unsafe { _mm512_maskz_loadu_ps(mask, from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above; the address is guaranteed by the caller.
            unsafe { _mm512_storeu_ps(to, self) };
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, mask: __mmask16) {
            // SAFETY: as above; only the lanes of the mask are written.
            unsafe { _mm512_mask_storeu_ps(to, mask, self) };
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(x, y, self) }
        }
    }

    /// Eight lanes that are on, then eight that are off; a window of eight is a mask.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    impl Vector for __m256 {
        const LANES: usize = 8;
        const WIDEST: usize = 2;
        type Mask = __m256i;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: here and below the processor has AVX2 and FMA, which `with_avx2` requires.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn first(count: usize) -> __m256i {
            // SAFETY: as above; the window lies within the masks, because the count is at most eight.
            unsafe { _mm256_loadu_si256(MASKS[8 - count..].as_ptr().cast()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above; the address is guaranteed by the caller.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, mask: __m256i) -> Self {
            // SAFETY: as above; only the lanes of the mask are read.
            unsafe { _mm256_maskload_ps(from, mask) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above; the address is guaranteed by the caller.
            unsafe { _mm256_storeu_ps(to, self) };
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, mask: __m256i) {
            // SAFETY: as above; only the lanes of the mask are written.
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
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn all_vectors_give_the_product() {
        let mut kinds: Vec<unsafe fn(Product)> = vec![|product| unsafe { product.portable() }];
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        kinds.push(|product| unsafe { product.with_simd128() });
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kinds.push(|product| unsafe { x86::with_avx2(product) });
            }
            if is_x86_feature_detected!("avx512f") {
                kinds.push(|product| unsafe { x86::with_avx512(product) });
            }
        }
        // Strips of every width, with whole and masked last vectors, and with rows that do and do not fill the last tile.
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
