//! The threads that compute on a CPU.

/// Makes the calling thread one of rayon's global pool, whose threads compute the kernels on a CPU.
///
/// Otherwise a thread of the pool has to wake up at the start of each operation, and the calling thread at its end: of the
/// time on two cores, that takes 7 % for the text encoder of Stable Diffusion 2.1 and 4 % for its denoiser in int8
/// (`docs/log.md`, 2026-11-28). Call it once at the start of a program, on the thread that generates or trains. The pool then
/// has as many threads as before, including this one, which only computes operations while it runs one itself. Does nothing if
/// the pool has already been started, or without the feature `flex`.
pub fn use_current_thread() {
    #[cfg(feature = "flex")]
    {
        let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
        // An error means that another part of the program has already started the pool.
        pool.build_global().ok();
    }
}
