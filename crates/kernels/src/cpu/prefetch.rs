//! Software prefetch where the hardware prefetcher cannot predict the access pattern.
#![allow(unsafe_code, reason = "a processor instruction")]

/// f32 values in a cache line.
pub(crate) const LINE: usize = 16;

/// Prefetches the cache lines of `count` values. Nothing is read, so any address is allowed. Does nothing on processors
/// other than x86-64 or under Miri.
#[inline(always)]
pub(crate) fn prefetch(from: *const f32, count: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for start in (0..count).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: nothing is read, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(start).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (from, count);
}
