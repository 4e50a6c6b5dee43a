//! The threads that compute on a CPU.

/// Makes the calling thread one of rayon's global pool, whose threads compute the kernels on a CPU.
///
/// Otherwise a thread of the pool has to wake up at the start of each operation, and the calling thread at its end: of the
/// time on two cores, that takes 7 % for the text encoder of Stable Diffusion 2.1 and 4 % for its denoiser in int8
/// (`docs/log.md`, 2026-11-28). Call it once at the start of a program, on the thread that generates or trains. The pool then
/// has as many threads as before, including this one, which takes part only in operations that it starts itself.
///
/// Does nothing if the pool has already been started, without the feature `flex`, or if the pool has a single thread: other
/// threads of the program could then compute nothing while this one waits for them.
pub fn use_current_thread() {
    #[cfg(feature = "flex")]
    {
        let n_threads = n_threads();
        if n_threads > 1 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            // An error means that another part of the program has already started the pool.
            pool.use_current_thread().build_global().ok();
        }
    }
}

/// The number of threads that rayon starts by default.
#[cfg(feature = "flex")]
fn n_threads() -> usize {
    let requested = std::env::var("RAYON_NUM_THREADS");
    let requested = requested.ok().and_then(|count| count.parse().ok());
    requested.filter(|count| *count > 0).unwrap_or_else(|| {
        let available = std::thread::available_parallelism();
        available.map_or(1, usize::from)
    })
}
