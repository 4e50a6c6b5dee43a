//! The allocator's policy for freed memory.
#![allow(unsafe_code, reason = "a setting of the C library")]

/// Tells the C library's allocator to keep freed memory instead of returning it to the operating system.
///
/// Every operation on a CPU allocates a tensor of megabytes and frees another. By default, such memory comes from the
/// operating system each time, which clears it page by page: this takes 19 % of the time of an image, and 3 % with this
/// setting (`docs/log.md`, 2026-11-25). Call it once at the start of a program. The process then keeps its peak memory. Does
/// nothing unless the C library is GNU's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        /// `M_TRIM_THRESHOLD`: free bytes at the end of the heap above which they are returned.
        const TRIM_THRESHOLD: i32 = -1;
        /// `M_MMAP_MAX`: number of allocations that may be mapped individually.
        const MMAP_MAX: i32 = -4;
        // SAFETY: `mallopt` has this signature and these parameters (malloc.h), and may be called at any time.
        let were_set = unsafe { mallopt(TRIM_THRESHOLD, i32::MAX) & mallopt(MMAP_MAX, 0) };
        debug_assert_eq!(were_set, 1, "both are known settings");
    }
}
