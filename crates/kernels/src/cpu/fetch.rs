//! Numbers asked for before they are needed, where the processor would not guess which.
#![allow(unsafe_code, reason = "an instruction of the processor's")]

/// Numbers in a line of the cache.
pub(crate) const LINE: usize = 16;

/// Asks for lines of the cache. Nothing is read, so the addresses may be of nothing; on processors other than x86-64 nothing
/// is done.
#[inline(always)]
pub(crate) fn fetch(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for start in (0..count).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: nothing is read, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(start).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}
