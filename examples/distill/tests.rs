//! The program, run in separate processes.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use burn::tensor::Tensor;
use clap::CommandFactory;
use swiftbrush_checkpoint::named_tensors;
use swiftbrush_trainer::snapshot_steps;

use super::*;

mod full_disk;
mod kills;

/// Variable with the arguments of a child process, one per line.
const ARGUMENTS: &str = "SWIFTBRUSH_DISTILL_ARGUMENTS";

/// Does nothing by itself: other tests run the program through it.
#[test]
fn child_of_the_tests() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments = std::iter::once("distill").chain(arguments.lines());
    if let Err(error) = start(Args::parse_from(arguments)) {
        eprintln!("Error: {error:?}");
        std::process::exit(1);
    }
}

fn spawn(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::child_of_the_tests", "--nocapture"])
        .env(ARGUMENTS, arguments.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run_program(arguments: &[&str]) -> (Output, String) {
    let output = spawn(arguments).wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output, text)
}

/// A folder with prompts and a recipe that trains the miniature.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(recipe: &str) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        let prompts = "\u{feff}a red circle\r\n\r\na green star above a blue ring\r\n";
        std::fs::write(bench.path("prompts.txt"), prompts).unwrap();
        bench.set_recipe(recipe);
        bench
    }

    fn set_recipe(&self, recipe: &str) {
        let small = "batch = 1\naccumulation = 1\nlearning_rate = 1e-4\npreview_every = 0\n\
                     save_every = 1\nfake_lora.rank = 4\nfake_guidance = 1.0\n";
        std::fs::write(self.path("recipe.toml"), format!("{recipe}\n{small}")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Arguments that train in the folder `run`.
    fn train(&self, run: &str) -> Vec<String> {
        let miniature = examples_common::miniature();
        let miniature = miniature.to_str().unwrap().to_owned();
        let pairs = [
            ("--teacher", miniature.clone()),
            ("--student", miniature.clone()),
            ("--clip", miniature),
            ("--prompts", self.text("prompts.txt")),
            ("--recipe", self.text("recipe.toml")),
            ("--run", self.text(run)),
        ];
        let pairs = pairs.into_iter();
        pairs
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn snapshot_bytes(run: &Path) -> Vec<u8> {
    let step = *snapshot_steps(run).unwrap().last().unwrap();
    std::fs::read(swiftbrush_trainer::snapshot_path(run, step)).unwrap()
}

#[test]
fn the_arguments_are_consistent() {
    Args::command().debug_assert();
    let error = Args::try_parse_from(["distill"]).unwrap_err().to_string();
    assert!(error.contains("--teacher"), "{error}");
    let export = ["distill", "export", "runs/a", "--output", "student"];
    assert!(Args::try_parse_from(export).unwrap().train.is_none());
}

#[cfg(unix)]
#[test]
fn a_run_that_is_terminated_saves_resumes_and_ends_like_any_other() {
    let bench = Bench::new("scheme = \"b\"\nsteps = 12\nstudent_lora.rank = 4\n");
    let mut child = spawn(&strs(&bench.train("stopped")));
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("step 1 of 12: ") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    assert!(
        line.contains("clip ") && line.contains("images/s"),
        "{line}"
    );
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(sent.success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("saved at step"), "{rest}");
    let stopped = snapshot_steps(bench.path("stopped")).unwrap();
    assert!(stopped.last().unwrap() < &12);

    for run in ["stopped", "whole"] {
        let (output, text) = run_program(&strs(&bench.train(run)));
        assert!(output.status.success(), "{text}");
        assert!(text.contains("2 prompts, 1 blank lines skipped"), "{text}");
    }
    let [stopped, whole] = ["stopped", "whole"].map(|run| snapshot_bytes(&bench.path(run)));
    assert!(stopped == whole, "the snapshots differ");
}

#[test]
fn prompts_come_from_several_files_and_the_watcher_writes_strips_and_event_files() {
    let bench = Bench::new("steps = 2\nwatch.every = 1\nwatch.images = 2\n");
    let lines = "{\"title\": \"a blue ring\"}\n{\"title\": \"a blue ring\"}\n";
    std::fs::write(bench.path("more.jsonl"), lines).unwrap();
    let more = bench.text("more.jsonl");
    let mut arguments = bench.train("run");
    arguments.extend(["--prompts", &format!("{more}=2"), "--prompts", &more].map(str::to_owned));
    let (output, text) = run_program(&strs(&arguments));
    assert!(!output.status.success());
    assert!(
        text.contains("more.jsonl") && text.contains("name the key"),
        "{text}"
    );
    let mut arguments = bench.train("run");
    let text_file = arguments
        .iter()
        .position(|name| name == "--prompts")
        .unwrap();
    arguments[text_file + 1] = format!("{more}=1.5");
    arguments.extend(["--caption-key", "title"].map(str::to_owned));
    let (output, text) = run_program(&strs(&arguments));
    assert!(output.status.success(), "{text}");
    for expected in [
        "more.jsonl: 1 prompts, 1 repeated prompts skipped",
        "after step 0: diversity ",
        "CLIP score ",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for file in [
        "watch-0000000.png",
        "watch-0000002.png",
        "watch.jsonl",
        "log.jsonl",
    ] {
        assert!(bench.path("run").join(file).is_file(), "{file}");
    }
    let events = std::fs::read_dir(bench.path("run").join("tensorboard")).unwrap();
    assert_eq!(events.count(), 1);
    let odd = bench.text("prompts.txt") + "=often";
    let mut arguments = bench.train("run");
    arguments[text_file + 1] = odd;
    let (_, text) = run_program(&strs(&arguments));
    assert!(text.contains("\"often\" is not a weight"), "{text}");
}

#[test]
fn published_rewards_have_networks_of_their_own() {
    let bench = Bench::new("steps = 1\nrewards.hps = { weight = 0.1, threshold = 1.1 }\n");
    // The miniature's CLIP stands for HPSv2's, and its vocabulary is not CLIP's own.
    let [clip, tokenizer] = ["clip", "tokenizer"].map(|it| examples_common::miniature().join(it));
    let hps = bench.path("hps");
    std::fs::create_dir(&hps).unwrap();
    for folder in [clip, tokenizer] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), hps.join(entry.file_name())).unwrap();
        }
    }
    let run = |options: &[&str]| {
        let mut arguments = bench.train("run");
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        run_program(&strs(&arguments))
    };
    let hps = format!("hps={}", hps.display());
    for (options, expected) in [
        (&[][..], "the recipe has [rewards.hps]: add its networks"),
        (&["--reward", "hps"], "--reward hps: expected NAME=FOLDER"),
        (
            &["--reward", "hpsv3=a"],
            "--reward hpsv3=a: unknown variant",
        ),
        (
            &["--reward", "pick_score=a"],
            "the recipe has no [rewards.pick_score]",
        ),
        (&["--lpips", "a", "b"], "--lpips would not be used"),
    ] {
        let (output, text) = run(options);
        let text = text.replace("\n\nCaused by:\n    ", ": ");
        assert!(
            !output.status.success() && text.contains(expected),
            "{text}"
        );
    }
    let (output, text) = run(&["--reward", &hps]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("rewards and their decoder"), "{text}");
    let log = std::fs::read_to_string(bench.path("run").join("log.jsonl")).unwrap();
    assert!(log.contains("\"hps\":"), "{log}");
}

#[test]
fn another_recipe_is_rejected_unless_its_changes_are_accepted() {
    let bench = Bench::new("steps = 1");
    let arguments = bench.train("run");
    assert!(run_program(&strs(&arguments)).0.status.success());
    bench.set_recipe("steps = 2\nseed = 1");
    let (output, text) = run_program(&strs(&arguments));
    assert!(!output.status.success());
    assert!(
        text.contains("steps: 1 in the snapshot, 2 now") && text.contains("seed: 0 in the"),
        "{text}"
    );
    let mut accepted = arguments;
    accepted.extend(["--accept-changes", "steps,seed"].map(str::to_owned));
    let (output, text) = run_program(&strs(&accepted));
    assert!(output.status.success(), "{text}");
    assert_eq!(snapshot_steps(bench.path("run")).unwrap(), [1, 2]);
}

#[test]
fn a_student_is_exported_at_any_step_as_a_whole_model() {
    let bench = Bench::new("scheme = \"b\"\nsteps = 2\nstudent_lora.rank = 4\n");
    let (output, text) = run_program(&strs(&bench.train("run")));
    assert!(output.status.success(), "{text}");
    let (run, student) = (bench.text("run"), bench.text("student"));
    let export = ["export", &run, "--output", &student];
    let (output, text) = run_program(&[&export[..], &["--step", "7"]].concat());
    assert!(
        !output.status.success() && text.contains("[1, 2]"),
        "{text}"
    );
    let file = bench.text("student.safetensors");
    let options = ["--step", "1", "--single-file", &file];
    let (output, text) = run_program(&[&export[..], &options].concat());
    assert!(output.status.success(), "{text}");

    let folder = bench.path("student");
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "adapters/peft/adapter_config.json",
        "adapters/kohya.safetensors",
    ] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let device = examples_common::device(examples_common::DEVICES[0]).unwrap();
    let whole = Loader::new(Model::open(&folder).unwrap(), &device)
        .load()
        .unwrap();
    let file = Model::open(file).unwrap().with_configs(&folder);
    let file = Loader::new(file, &device).load().unwrap();
    let same = |a, b| assert!(a == b, "the file holds other weights");
    same(named_tensors(&file.unet), named_tensors(&whole.unet));
    same(
        named_tensors(&file.text_encoder),
        named_tensors(&whole.text_encoder),
    );
    let latents = Tensor::<4>::ones([1, 4, 4, 4], &device);
    let [file, whole] = [file, whole].map(|model| model.decoder.decode(latents.clone()));
    assert_eq!(file.into_data(), whole.into_data());
}
