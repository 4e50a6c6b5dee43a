//! Memory that a program has freed, kept for its next tensors.
#![allow(unsafe_code, reason = "a setting of the C library")]

/// Tells the C library's allocator to keep what is freed instead of giving it back to the operating system.
///
/// Every operation on a CPU makes a tensor of megabytes and frees another. By default such memory comes fresh from the
/// operating system each time, which has to clear it page by page (`docs/log.md` has what that costs). To be called once,
/// first thing in a program; what a program has had at its peak it then keeps. Does nothing where the C library is not
/// GNU's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        /// `M_TRIM_THRESHOLD`: how much may be free at the end of the heap.
        const TRIM_THRESHOLD: i32 = -1;
        /// `M_MMAP_MAX`: how many pieces may be had from the operating system on their own.
        const MMAP_MAX: i32 = -4;
        // SAFETY: `mallopt` has this type and these parameters (malloc.h), and can be called at any time.
        let were_set = unsafe { mallopt(TRIM_THRESHOLD, i32::MAX) & mallopt(MMAP_MAX, 0) };
        debug_assert_eq!(were_set, 1, "both are known settings");
    }
}
