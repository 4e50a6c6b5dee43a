//! Runs and exports whose writes fail.

use std::collections::BTreeSet;

use super::kills::{Files, Life, Phase, assert_same};
use super::*;

/// The unit of `ulimit -f` in a POSIX shell, in bytes.
const BLOCK: usize = 512;

/// Runs the program with a limit on the size of files, beyond which writes fail as on a full disk.
fn run_limited(arguments: &[&str], blocks: usize) -> (Output, String) {
    // Without the signal, the write fails instead of killing the process.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "tests::child_of_the_tests", "--nocapture"])
        .env(ARGUMENTS, arguments.join("\n"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output, text)
}

/// Limits in ascending order, each just below the size of another file.
fn limits(files: &Files, prefix: &str) -> BTreeSet<usize> {
    let files = files
        .iter()
        .filter(|(path, bytes)| path.to_string_lossy().starts_with(prefix) && !bytes.is_empty());
    files.map(|(_, bytes)| (bytes.len() - 1) / BLOCK).collect()
}

fn without_pictures(mut files: Files) -> Files {
    files.retain(|path, _| path.extension().is_none_or(|end| end != "png"));
    files
}

/// Checks that an error names a file and its cause.
#[track_caller]
fn assert_clear(text: &str, folder: &Path) {
    let error = text.lines().find(|line| line.starts_with("Error: "));
    let error = error.unwrap_or_else(|| panic!("no error: {text}"));
    let folder = folder.to_str().unwrap();
    assert!(
        error.contains("cannot write") && error.contains(folder),
        "{text}"
    );
    assert!(text.contains("os error 27"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_write_that_fails_is_a_clear_error_and_earlier_files_stay_whole() {
    let mut whole = Life::new();
    while whole.phase() != Phase::Done {
        whole.finish_phase();
    }
    // A picture that cannot be written is a warning, and stops nothing.
    let expected = without_pictures(whole.files());
    let mut life = Life::new();
    for folder in ["run", "student"] {
        let mut n_failed = 0;
        for blocks in limits(&expected, folder) {
            let (output, text) = run_limited(&strs(&life.arguments()), blocks);
            if output.status.success() {
                continue;
            }
            n_failed += 1;
            assert_clear(&text, life.root());
            // What is there under its own name is whole.
            for (path, bytes) in without_pictures(life.files()) {
                let is_log = path.extension().is_some_and(|end| end == "jsonl");
                assert!(
                    is_log || bytes == expected[&path],
                    "{} differs",
                    path.display()
                );
            }
        }
        assert!(n_failed > 3, "{n_failed} failures in {folder}");
        life.finish_phase();
    }
    assert_same(&without_pictures(life.files()), &expected);
}
