//! Snapshots, and runs that are stopped, killed and resumed.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use common::{distiller, efficient, networks, open, prompts, recipe, train, with};
use swiftbrush_checkpoint::named_tensors;
use swiftbrush_testing::device;
use swiftbrush_trainer::{
    Error, Event, Networks, PromptSource, Recipe, Reward, Run, Snapshot, Student, snapshot_path,
    snapshot_steps,
};
use swiftbrush_unet::UNetConfig;

fn last_snapshot(folder: &Path) -> PathBuf {
    let steps = snapshot_steps(folder).unwrap();
    snapshot_path(folder, *steps.last().unwrap())
}

fn bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(last_snapshot(folder)).unwrap()
}

/// The log without times and memory.
fn log(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        for measured in ["time", "seconds", "images_per_second", "resident_bytes"] {
            assert!(fields.remove(measured).is_some(), "{measured}");
        }
        line
    });
    lines.collect()
}

/// A run stopped after several steps ends with bit-identical weights.
#[test]
fn a_resumed_run_equals_one_that_was_never_stopped() {
    let seldom = with(recipe(), |recipe| recipe.student_every = 2);
    let plain = with(efficient(), |recipe| recipe.checkpointing = false);
    for recipe in [recipe(), efficient(), seldom, plain] {
        let networks = networks(&device());
        let whole = tempfile::tempdir().unwrap();
        train(recipe.clone(), &networks, whole.path(), 0);
        let pieces = tempfile::tempdir().unwrap();
        for stop_after in [1, 2, 5, 0] {
            train(recipe.clone(), &networks, pieces.path(), stop_after);
        }
        assert!(
            bytes(pieces.path()) == bytes(whole.path()),
            "the snapshots differ"
        );
        assert_eq!(log(pieces.path()), log(whole.path()));
    }
}

#[test]
fn the_log_names_each_loss_and_the_learning_rate() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = with(efficient(), |recipe| recipe.steps = 2);
    train(recipe, &networks(&device()), folder.path(), 0);
    let lines = log(folder.path());
    assert_eq!(lines.len(), 2);
    for (step, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], step);
        for loss in ["distillation", "clip", "fake"] {
            assert!(line["losses"][loss].is_number(), "{loss}: {line}");
        }
        assert_eq!(line["learning_rate"], 1e-3);
        assert_eq!(line["is_skipped"], false);
    }
}

#[test]
fn a_snapshot_keeps_its_values() {
    let networks = networks(&device());
    let mut distiller = distiller(recipe(), &networks);
    let snapshot = distiller.snapshot();
    let before = snapshot.group("fake");
    let prompts = ["a", "b", "c", "d"].map(str::to_owned);
    distiller.step(&prompts).unwrap();
    assert_eq!(snapshot.group("fake"), before);
    assert_ne!(distiller.snapshot().group("fake"), before);
}

#[test]
fn a_snapshot_of_another_recipe_is_rejected_with_the_differences() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let short = with(recipe(), |recipe| recipe.steps = 2);
    train(short.clone(), &networks, folder.path(), 0);
    let other = with(short.clone(), |recipe| {
        (recipe.steps, recipe.learning_rate, recipe.save_every) = (4, 1e-4, 1);
    });
    let error = open(other.clone(), &networks, folder.path(), &[]).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Changed { .. }));
    assert!(
        text.contains("learning_rate: 0.001 in the snapshot, 0.0001 now")
            && text.contains("steps: 2 in the snapshot, 4 now")
            && !text.contains("save_every"),
        "{text}"
    );
    let error = open(other.clone(), &networks, folder.path(), &["steps"]).unwrap_err();
    assert!(!error.to_string().contains("steps: "), "{error}");
    let accepted = ["steps", "learning_rate"];
    assert!(open(other.clone(), &networks, folder.path(), &accepted).is_ok());
    let unknown = ["steps", "learning_rat"];
    let error = open(other, &networks, folder.path(), &unknown).unwrap_err();
    assert!(matches!(error, Error::UnknownChange(..)), "{error}");
}

#[test]
fn a_snapshot_of_other_networks_or_prompts_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let short = with(efficient(), |recipe| recipe.steps = 2);
    train(short.clone(), &networks, folder.path(), 0);
    let other = UNetConfig::tiny().init(&device());
    let mut cases: Vec<(&str, Networks)> = Vec::new();
    for name in ["teacher", "student"] {
        let mut changed = networks.clone();
        match name {
            "teacher" => changed.teacher = other.clone(),
            _ => changed.student = other.clone(),
        }
        cases.push((name, changed));
    }
    for (name, changed) in cases {
        let error = open(short.clone(), &changed, folder.path(), &[]).unwrap_err();
        assert!(error.to_string().contains(&format!("{name}: ")), "{error}");
    }
    let more = folder.path().join("more.txt");
    std::fs::write(&more, "another prompt").unwrap();
    let more = swiftbrush_trainer::Prompts::open(more, 0).unwrap();
    let distiller = distiller(short, &networks);
    let error = Run::open(distiller, more, folder.path(), &[]).unwrap_err();
    assert!(error.to_string().contains("prompts: "), "{error}");
}

#[test]
fn a_snapshot_without_a_fingerprint_is_rejected() {
    let networks = networks(&device());
    let snapshot = Snapshot::new(3);
    let error = distiller(recipe(), &networks)
        .restore(&snapshot, Path::new("old.safetensors"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("old.safetensors") && error.contains("earlier version"),
        "{error}"
    );
}

#[test]
fn the_last_snapshots_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = with(recipe(), |recipe| {
        (recipe.save_every, recipe.keep_last, recipe.keep_every) = (1, 2, 3);
    });
    train(recipe, &networks(&device()), folder.path(), 0);
    assert_eq!(snapshot_steps(folder.path()).unwrap(), [3, 5, 6]);
}

#[test]
fn a_folder_belongs_to_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let run = open(recipe(), &networks, folder.path(), &[]).unwrap();
    let error = open(recipe(), &networks, folder.path(), &[]).unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    drop(run);
    assert!(open(recipe(), &networks, folder.path(), &[]).is_ok());
}

#[test]
fn the_student_of_a_snapshot_is_that_of_the_run() {
    for recipe in [recipe(), efficient()] {
        let folder = tempfile::tempdir().unwrap();
        let networks = networks(&device());
        let has_adapters = recipe.student_lora.is_some();
        let trained = train(recipe, &networks, folder.path(), 0);
        let path = last_snapshot(folder.path());
        let snapshot = Snapshot::open(&path).unwrap();
        let student = Student::from_snapshot(&snapshot, &path, &networks.student).unwrap();
        let same = |a, b| assert!(named_tensors(&a) == named_tensors(&b));
        same(student.merged(), trained.student());
        let averaged = student.clone().averaged();
        same(averaged.merged(), trained.averaged_student());
        assert_eq!(averaged.adapters().is_some(), has_adapters);
        if let Some(adapters) = averaged.adapters() {
            let merged = swiftbrush_lora::fuse(networks.student.clone(), &adapters, 1.0);
            for (name, data) in named_tensors(&merged.unwrap()) {
                let expected = &named_tensors(&averaged.merged())[&name];
                swiftbrush_testing::assert_values_close(
                    &data.iter::<f32>().collect::<Vec<_>>(),
                    &expected.iter::<f32>().collect::<Vec<_>>(),
                    1e-6,
                );
            }
        }
        let error = Student::from_snapshot(&snapshot, &path, &networks.teacher).unwrap_err();
        assert!(error.to_string().contains("another student"), "{error}");
    }
}

/// Makes every weight a NaN.
struct Poison;

impl ModuleMapper for Poison {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor * f32::NAN)
    }
}

fn poisoned(networks: &Networks) -> Networks {
    let mut poisoned = networks.clone();
    poisoned.teacher = poisoned.teacher.map(&mut Poison);
    poisoned
}

#[test]
fn a_non_finite_step_stops_the_run_and_keeps_the_last_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    train(recipe(), &networks, folder.path(), 2);
    let saved = bytes(folder.path());
    let run = open(recipe(), &poisoned(&networks), folder.path(), &["teacher"]);
    let mut run = run.unwrap();
    let before = run.distiller().snapshot().group("student");
    let error = run
        .train(|_: &Event| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 2, .. }), "{error}");
    assert_eq!(run.distiller().snapshot().group("student"), before);
    drop(run);
    assert_eq!(bytes(folder.path()), saved);
}

#[test]
fn non_finite_steps_are_skipped_as_often_as_the_recipe_allows() {
    let networks = networks(&device());
    let recipe = with(recipe(), |recipe| recipe.max_bad_steps = 2);
    let mut distiller = distiller(recipe.clone(), &poisoned(&networks));
    let before = distiller.snapshot().group("fake");
    let prompts = ["a", "b", "c", "d"].map(str::to_owned);
    let report = distiller.step(&prompts).unwrap();
    assert!(report.is_skipped && distiller.n_steps() == 1);
    assert_eq!(distiller.snapshot().group("fake"), before);
    // The count survives a resume.
    let (snapshot, path) = (distiller.snapshot(), Path::new("snapshot"));
    let resumed = common::distiller(recipe, &poisoned(&networks));
    let mut distiller = resumed.restore(&snapshot, path, &[]).unwrap();
    assert!(distiller.step(&prompts).unwrap().is_skipped);
    let error = distiller.step(&prompts).unwrap_err();
    let Error::NotFinite { step, allow, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((step, allow), (2, 3));
}

#[test]
fn a_damaged_snapshot_is_rejected_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    train(recipe(), &networks, folder.path(), 2);
    let path = last_snapshot(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = open(recipe(), &networks, folder.path(), &[]).unwrap_err();
    assert!(
        error.to_string().contains("step-00000002.safetensors"),
        "{error}"
    );
}

/// Variable with the folder that a child process of the kill test trains in.
const KILL_TEST_FOLDER: &str = "SWIFTBRUSH_KILL_TEST_FOLDER";
/// Variable with the step in the middle of which the child waits to be killed.
const KILL_TEST_STEP: &str = "SWIFTBRUSH_KILL_TEST_STEP";

fn kill_recipe() -> Recipe {
    with(efficient(), |recipe| {
        (recipe.steps, recipe.save_every, recipe.preview_every) = (8, 1, 0);
    })
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\nkill test: {text}").unwrap();
    out.flush().unwrap();
}

/// A reward that changes nothing, but never returns in the step to be killed in.
#[derive(Debug)]
struct Trap(AtomicU64, u64);

impl Reward for Trap {
    fn name(&self) -> &str {
        "trap"
    }
    fn weight(&self, step: u64, _steps: u64) -> f64 {
        self.0.store(step, Ordering::Relaxed);
        0.0
    }
    fn loss(&self, latents: Tensor<4>, _prompts: &[String]) -> Tensor<1> {
        if self.0.load(Ordering::Relaxed) == self.1 {
            say("in a step");
            loop {
                std::thread::park();
            }
        }
        latents.mean()
    }
    fn hash(&self) -> String {
        String::new()
    }
}

/// Does nothing by itself: the kill test runs it in a separate process and kills it.
#[test]
fn child_of_the_kill_test() {
    let Some(folder) = std::env::var_os(KILL_TEST_FOLDER) else {
        return;
    };
    let step = std::env::var(KILL_TEST_STEP).map_or(u64::MAX, |step| step.parse().unwrap());
    let trap = Trap(AtomicU64::new(0), step);
    let networks = networks(&device());
    let distiller = distiller(kill_recipe(), &networks);
    let distiller = distiller.with_reward(Box::new(trap)).unwrap();
    let prompts = prompts(Path::new(&folder));
    let mut run = Run::open(distiller, prompts, &folder, &[]).unwrap();
    run.train(|_: &Event| ControlFlow::Continue(())).unwrap();
}

/// Starts a child that trains, and waits in `step` if it is given.
fn spawn_child(folder: &Path, step: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_of_the_kill_test", "--nocapture"])
        .env(KILL_TEST_FOLDER, folder)
        .stdout(Stdio::piped());
    if let Some(step) = step {
        command.env(KILL_TEST_STEP, step.to_string());
    }
    command.spawn().unwrap()
}

fn finish(folder: &Path) {
    let output = spawn_child(folder, None).wait_with_output().unwrap();
    assert!(output.status.success());
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills a child in the middle of a step.
fn kill_in_a_step(folder: &Path, step: u64) {
    let mut child = spawn_child(folder, Some(step));
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut lines = lines.map(|line| line.unwrap());
    assert!(lines.any(|line| line == "kill test: in a step"));
    kill(child);
}

/// A file left by a process that was killed while writing a snapshot.
fn unfinished(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder.join("snapshots")).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.extension().is_some_and(|end| end == "tmp"))
}

/// Kills children until one leaves an unfinished snapshot.
fn kill_in_a_write(folder: &Path) {
    for _ in 0..50 {
        let mut child = spawn_child(folder, None);
        while unfinished(folder).is_none() && child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        kill(child);
        if unfinished(folder).is_some() {
            return;
        }
        // The write finished before the signal arrived. Start over, before the run ends.
        std::fs::remove_dir_all(folder.join("snapshots")).unwrap();
    }
    panic!("no kill fell into a write");
}

#[test]
fn a_run_killed_before_in_and_between_snapshots_ends_with_the_same_bytes() {
    let [whole, killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    finish(whole.path());
    let folder = killed.path();
    kill_in_a_step(folder, 0);
    assert!(snapshot_steps(folder).unwrap().is_empty());
    kill_in_a_write(folder);
    kill_in_a_step(folder, 7);
    assert!(unfinished(folder).is_none(), "the leftover was removed");
    assert_eq!(snapshot_steps(folder).unwrap(), [6, 7]);
    finish(folder);
    assert!(bytes(folder) == bytes(whole.path()), "the snapshots differ");
    assert_eq!(log(folder), log(whole.path()));
}

#[test]
fn prompts_are_the_same_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let [mut once, mut again] = [(); 2].map(|()| prompts(folder.path()));
    let all = once.get(0, 20).unwrap();
    assert_eq!(all[13..], again.get(13, 7).unwrap());
}
