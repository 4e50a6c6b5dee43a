//! The products of x86-64.

use std::arch::x86_64::*;

use super::{Product, Sums};

pub(super) fn has_avx512_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

pub(super) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// # Safety
///
/// Same as [`Product::dispatch`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn with_avx512_vnni(product: Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { product.run::<__m512i, 16, 12, 8, 6>() };
}

/// # Safety
///
/// Same as [`Product::dispatch`].
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn with_avx_vnni(product: Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { product.run::<AvxVnni, 8, 6, 4, 2>() };
}

/// # Safety
///
/// Same as [`Product::dispatch`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn with_avx2(product: Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { product.run::<Avx2, 6, 4, 2, 2>() };
}

impl Sums for __m512i {
    const LANES: usize = 16;
    type Words = __m512i;
    type Weight = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        // SAFETY: here and below the processor has the features that `with_avx512_vnni` requires.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn words(from: *const f32) -> __m512i {
        // SAFETY: as above; the address is guaranteed by the caller.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn weight(word: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(word) }
    }

    #[inline(always)]
    unsafe fn add_products(self, words: __m512i, weight: __m512i) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(self, words, weight) }
    }

    #[inline(always)]
    unsafe fn zeros() -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> __m512 {
        // SAFETY: as above; the address is guaranteed by the caller.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn add_scaled(self, total: __m512, scales: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(total, _mm512_mul_ps(_mm512_cvtepi32_ps(self), scales)) }
    }

    #[inline(always)]
    unsafe fn store(total: __m512, scale: f32, to: *mut f32) {
        // SAFETY: as above; the address is guaranteed by the caller.
        unsafe { _mm512_storeu_ps(to, _mm512_mul_ps(total, _mm512_set1_ps(scale))) };
    }
}

/// Implements [`Sums`] for eight lanes, which differ in how they multiply.
macro_rules! eight_lanes {
    (
        $name:ident, $words:ty, $weight:ty,
        $loaded:ident => $load:expr,
        $splatted:ident => $splat:expr,
        ($sum:ident, $x:ident, $w:ident) => $multiply:expr $(,)?
    ) => {
        #[derive(Clone, Copy)]
        struct $name(__m256i);

        impl Sums for $name {
            const LANES: usize = 8;
            type Words = $words;
            type Weight = $weight;
            type Floats = __m256;

            #[inline(always)]
            unsafe fn splat(value: i32) -> Self {
                // SAFETY: here and below the processor has the features that the caller of these functions requires.
                unsafe { Self(_mm256_set1_epi32(value)) }
            }

            #[inline(always)]
            unsafe fn words(from: *const f32) -> $words {
                // SAFETY: as above; the address is guaranteed by the caller.
                unsafe {
                    let $loaded = _mm256_loadu_si256(from.cast());
                    $load
                }
            }

            #[inline(always)]
            unsafe fn weight(word: i32) -> $weight {
                // SAFETY: as above.
                unsafe {
                    let $splatted = _mm256_set1_epi32(word);
                    $splat
                }
            }

            #[inline(always)]
            unsafe fn add_products(self, $x: $words, $w: $weight) -> Self {
                let $sum = self.0;
                // SAFETY: as above.
                unsafe { Self($multiply) }
            }

            #[inline(always)]
            unsafe fn zeros() -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_setzero_ps() }
            }

            #[inline(always)]
            unsafe fn floats(from: *const f32) -> __m256 {
                // SAFETY: as above; the address is guaranteed by the caller.
                unsafe { _mm256_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn add_scaled(self, total: __m256, scales: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), scales)) }
            }

            #[inline(always)]
            unsafe fn store(total: __m256, scale: f32, to: *mut f32) {
                // SAFETY: as above; the address is guaranteed by the caller.
                unsafe { _mm256_storeu_ps(to, _mm256_mul_ps(total, _mm256_set1_ps(scale))) };
            }
        }
    };
}

eight_lanes!(
    AvxVnni,
    __m256i,
    __m256i,
    words => words,
    word => word,
    (sum, words, weight) => _mm256_dpbusd_avx_epi32(sum, words, weight),
);
eight_lanes!(
    Avx2,
    [__m256i; 2],
    [__m256i; 2],
    words => [
        _mm256_and_si256(words, _mm256_set1_epi16(0xff)),
        _mm256_srli_epi16::<8>(words),
    ],
    word => [
        _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(word)),
        _mm256_srai_epi16::<8>(word),
    ],
    (sum, words, weight) => {
        let even = _mm256_madd_epi16(words[0], weight[0]);
        let odd = _mm256_madd_epi16(words[1], weight[1]);
        _mm256_add_epi32(_mm256_add_epi32(sum, even), odd)
    },
);
