//! The pool of threads belongs to the process, so each test has a process of its own.
#![cfg(feature = "flex")]

use std::process::Command;

use swiftbrush_kernels::use_current_thread;

/// Set in the processes of the tests.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Runs a test again in a process with this number of threads; returns whether this is that process.
fn is_process_of(test: &str, threads: &str) -> bool {
    if std::env::var(THREADS).is_ok_and(|found| found == threads) {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", test]).env(THREADS, threads);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    false
}

#[test]
fn the_calling_thread_computes() {
    if is_process_of("the_calling_thread_computes", "3") {
        use_current_thread();
        assert_eq!(rayon::current_thread_index(), Some(0));
        assert_eq!(rayon::current_num_threads(), 3);
        // The pool has been started, so a second call changes nothing.
        use_current_thread();
        assert_eq!(rayon::current_num_threads(), 3);
    }
}

#[test]
fn a_single_thread_is_not_the_calling_one() {
    if is_process_of("a_single_thread_is_not_the_calling_one", "1") {
        use_current_thread();
        assert_eq!(rayon::current_thread_index(), None);
        assert_eq!(rayon::current_num_threads(), 1);
    }
}
