//! Mutation-based fuzzing on stable Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The variable with the seconds per target [default: [`SECONDS_IN_TESTS`]].
const SECONDS: &str = "SWIFTBRUSH_FUZZ_SECONDS";
const SECONDS_IN_TESTS: u64 = 1;
/// Longest input in bytes.
const MAX_LEN: usize = 1 << 16;

/// Runs `target` on every file in `corpus`, on the seeds, and on mutated seeds for `SWIFTBRUSH_FUZZ_SECONDS`
/// [default: 1].
///
/// Mutations are the usual ones: flipped bits, random bytes, integers at their limits, slices repeated, removed
/// or spliced in from other seeds, and words from the dictionary `words`. Errors returned by the target are fine; only
/// panics are failures.
///
/// # Panics
///
/// If the target panics. The input is first written to `corpus`, as a regression test.
pub fn fuzz(corpus: &Path, seeds: &[Vec<u8>], words: &[&str], target: impl Fn(&[u8])) {
    let name = corpus
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let try_one = |input: &[u8]| {
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        if outcome.is_err() {
            let hash = input.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let path = corpus.join(format!("{hash:016x}"));
            let _ = std::fs::create_dir_all(corpus).and_then(|()| std::fs::write(&path, input));
            panic!("{name}: an input panicked, kept as {}", path.display());
        }
    };
    for entry in std::fs::read_dir(corpus).into_iter().flatten().flatten() {
        try_one(&std::fs::read(entry.path()).expect("the corpus can be read"));
    }
    seeds.iter().for_each(|seed| try_one(seed));

    let seconds = std::env::var(SECONDS)
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS_IN_TESTS));
    // Inputs are reproducible in tests, and different in each long run.
    let first = seconds.map_or(0, |_| std::process::id().into());
    let mut rng = ChaCha8Rng::seed_from_u64(first);
    while Instant::now() < end {
        let mut input = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..rng.random_range(1..8) {
            change(&mut input, seeds, words, &mut rng);
        }
        input.truncate(MAX_LEN);
        try_one(&input);
    }
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=input.len());
    let len = rng.random_range(0..=(input.len() - at).min(64));
    let piece = input[at..at + len].to_vec();
    match rng.random_range(0..8) {
        0 if len > 0 => input[at] ^= 1 << rng.random_range(0..8),
        1 if len > 0 => input[at] = rng.random(),
        2 => drop(input.drain(at..at + len)),
        3 => drop(input.splice(at..at, piece)),
        4 => {
            let other = &seeds[rng.random_range(0..seeds.len())];
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len().min(from + 256));
            input.splice(at..at + len, other[from..to].iter().copied());
        }
        5 if !words.is_empty() => {
            let word = words[rng.random_range(0..words.len())];
            input.splice(at..at + len, word.bytes());
        }
        6 => {
            const NUMBERS: [u64; 8] = [
                0,
                1,
                0x7f,
                0xff,
                0xffff,
                0x7fff_ffff,
                u32::MAX as u64,
                u64::MAX,
            ];
            let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
            let len = len.min(8);
            input.splice(at..at + len, number[..len].iter().copied());
        }
        _ => {
            const NUMBERS: [&str; 8] = [
                "0",
                "-1",
                "1e308",
                "18446744073709551615",
                "99999999999999999999",
                "null",
                "[]",
                "\"\"",
            ];
            let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
            input.splice(at..at + len, number.bytes());
        }
    }
}
