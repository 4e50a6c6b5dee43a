//! Runs and exports that are killed at random moments.
//!
//! Eight kills unless the variable `SWIFTBRUSH_KILLS` has another number; from a hundred on, some of them must fall before the
//! first snapshot, into a write of a snapshot, between snapshots, and into an export:
//!
//! ```sh
//! SWIFTBRUSH_KILLS=200 cargo test --release --workspace --example distill random_moments -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const KILLS: &str = "SWIFTBRUSH_KILLS";

/// Files by their paths below a folder.
pub(super) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A run of twelve steps, then an export.
pub(super) struct Life {
    bench: Bench,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Training,
    Export,
    Done,
}

/// The moment of a kill, as the files tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    BeforeTheFirstSnapshot,
    InASnapshot,
    BetweenSnapshots,
    InAnExport,
}

impl Life {
    pub(super) fn new() -> Self {
        let recipe = "scheme = \"b\"\nsteps = 12\nstudent_lora.rank = 4\naverages = \"file\"\n\
                      watch.every = 4\nwatch.images = 2\nkeep_every = 1\n";
        Self {
            bench: Bench::new(recipe),
            phase: Phase::Training,
        }
    }

    /// The folder of everything.
    pub(super) fn root(&self) -> &Path {
        self.bench.0.path()
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Arguments of the phase.
    pub(super) fn arguments(&self) -> Vec<String> {
        match self.phase {
            Phase::Training => self.bench.train("run"),
            Phase::Export | Phase::Done => {
                let [run, student, file] =
                    ["run", "student", "student.safetensors"].map(|name| self.bench.text(name));
                ["export", &run, "--output", &student, "--single-file", &file]
                    .map(str::to_owned)
                    .into()
            }
        }
    }

    /// Moves to the next phase.
    pub(super) fn advance(&mut self) {
        self.phase = match self.phase {
            Phase::Training => Phase::Export,
            Phase::Export | Phase::Done => Phase::Done,
        };
    }

    /// Runs the phase to its end.
    pub(super) fn finish_phase(&mut self) {
        let (output, text) = run_program(&strs(&self.arguments()));
        assert!(output.status.success(), "{text}");
        self.advance();
    }

    /// All files of the run and of the export, without those that contain times and paths.
    pub(super) fn files(&self) -> Files {
        let mut files = Files::new();
        collect(self.root(), Path::new(""), &mut files);
        files.remove(Path::new("run/sources.json"));
        files.retain(|path, _| !path.starts_with("run/tensorboard"));
        if let Some(log) = files.get_mut(Path::new("run/log.jsonl")) {
            *log = without_times(log);
        }
        files
    }

    fn moment(&self) -> Moment {
        let run = self.bench.path("run");
        let snapshots = run.join("snapshots");
        let names = std::fs::read_dir(snapshots).into_iter().flatten();
        let mut names = names.map(|entry| entry.unwrap().path());
        match self.phase {
            Phase::Export | Phase::Done => Moment::InAnExport,
            Phase::Training if names.any(|path| path.extension().is_some_and(|it| it == "tmp")) => {
                Moment::InASnapshot
            }
            Phase::Training if snapshot_steps(&run).unwrap().is_empty() => {
                Moment::BeforeTheFirstSnapshot
            }
            Phase::Training => Moment::BetweenSnapshots,
        }
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => collect(root, &path, files),
            false => drop(files.insert(path, std::fs::read(entry.path()).unwrap())),
        }
    }
}

/// The log of a run without its measurements.
fn without_times(log: &[u8]) -> Vec<u8> {
    let lines = std::str::from_utf8(log).unwrap().lines();
    let lines = lines.map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        for measured in ["time", "seconds", "images_per_second", "resident_bytes"] {
            line.as_object_mut().unwrap().remove(measured);
        }
        format!("{line}\n")
    });
    lines.collect::<String>().into_bytes()
}

/// Checks that two sets of files are equal byte for byte.
#[track_caller]
pub(super) fn assert_same(found: &Files, expected: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (path, bytes) in expected {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
}

/// The files of an uninterrupted life, and the durations of its phases.
fn uninterrupted() -> (Files, BTreeMap<Phase, Duration>) {
    let (mut life, mut durations) = (Life::new(), BTreeMap::new());
    while life.phase != Phase::Done {
        let (phase, begun) = (life.phase, Instant::now());
        life.finish_phase();
        durations.insert(phase, begun.elapsed());
    }
    (life.files(), durations)
}

/// Waits for a child for a while, and returns whether it ended by itself.
fn ends_within(child: &mut Child, delay: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn lives_killed_at_random_moments_end_with_the_same_files() {
    let kills: usize = std::env::var(KILLS).map_or(8, |kills| kills.parse().unwrap());
    let (expected, durations) = uninterrupted();
    let mut random = ChaCha8Rng::seed_from_u64(kills as u64);
    let (mut life, mut moments, mut lives) = (Life::new(), BTreeMap::<_, usize>::new(), 0);
    while moments.values().sum::<usize>() < kills {
        let delay = durations[&life.phase].mul_f64(random.random_range(0.0..1.2));
        let mut child = spawn(&strs(&life.arguments()));
        let is_killed = !ends_within(&mut child, delay);
        if is_killed {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if is_killed && !output.status.success() {
            *moments.entry(life.moment()).or_default() += 1;
            continue;
        }
        assert!(output.status.success(), "{text}");
        life.advance();
        if life.phase == Phase::Done {
            assert_same(&life.files(), &expected);
            (life, lives) = (Life::new(), lives + 1);
        }
    }
    while life.phase != Phase::Done {
        life.finish_phase();
    }
    assert_same(&life.files(), &expected);
    eprintln!("{kills} kills in {} lives: {moments:?}", lives + 1);
    assert!(kills < 100 || moments.len() == 4, "{moments:?}");
}
