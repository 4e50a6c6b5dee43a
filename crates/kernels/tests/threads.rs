//! The pool of threads belongs to the process, so this test has one of its own.
#![cfg(feature = "flex")]

use swiftbrush_kernels::use_current_thread;

#[test]
fn the_calling_thread_computes() {
    use_current_thread();
    assert_eq!(rayon::current_thread_index(), Some(0));
    // The pool has been started, so a second call changes nothing.
    let n_threads = rayon::current_num_threads();
    use_current_thread();
    assert_eq!(rayon::current_num_threads(), n_threads);
}
