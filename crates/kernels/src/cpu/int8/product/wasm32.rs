//! The products of WebAssembly.

use std::arch::wasm32::*;

use super::{Product, Sums};

/// # Safety
///
/// Same as [`Product::dispatch`].
pub(super) unsafe fn with_simd128(product: Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { product.run::<v128, 6, 4, 2, 2>() };
}

/// Even and odd bytes are widened and multiplied separately, as with AVX2.
impl Sums for v128 {
    const LANES: usize = 4;
    type Words = [v128; 2];
    type Weight = [v128; 2];
    type Floats = v128;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        i32x4_splat(value)
    }

    #[inline(always)]
    unsafe fn words(from: *const f32) -> [v128; 2] {
        // SAFETY: the address is guaranteed by the caller.
        let words = unsafe { v128_load(from.cast()) };
        [v128_and(words, u16x8_splat(0xff)), u16x8_shr(words, 8)]
    }

    #[inline(always)]
    unsafe fn weight(word: i32) -> [v128; 2] {
        let word = i32x4_splat(word);
        [i16x8_shr(i16x8_shl(word, 8), 8), i16x8_shr(word, 8)]
    }

    #[inline(always)]
    unsafe fn add_products(self, words: [v128; 2], weight: [v128; 2]) -> Self {
        let even = i32x4_dot_i16x8(words[0], weight[0]);
        let odd = i32x4_dot_i16x8(words[1], weight[1]);
        i32x4_add(i32x4_add(self, even), odd)
    }

    #[inline(always)]
    unsafe fn zeros() -> v128 {
        f32x4_splat(0.0)
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> v128 {
        // SAFETY: the address is guaranteed by the caller.
        unsafe { v128_load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add_scaled(self, total: v128, scales: v128) -> v128 {
        f32x4_add(total, f32x4_mul(f32x4_convert_i32x4(self), scales))
    }

    #[inline(always)]
    unsafe fn store(total: v128, scale: f32, to: *mut f32) {
        // SAFETY: the address is guaranteed by the caller.
        unsafe { v128_store(to.cast(), f32x4_mul(total, f32x4_splat(scale))) };
    }
}
