//! Whole runs with tiny networks.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use burn::module::Module;
use burn::tensor::{DType, Device};
use swiftbrush_checkpoint::{Model, named_tensors};
use swiftbrush_clip::{ClipConfig, TextConfig, Tokenizer};
use swiftbrush_lora::LoraConfig;
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_testing::device;
use swiftbrush_trainer::{
    ClipNetworks, ClipRecipe, Distiller, Error, Event, Networks, Precision, Prompts, Recipe,
    Snapshot, resume, run, snapshot_path,
};
use swiftbrush_unet::UNetConfig;
use swiftbrush_vae::AutoencoderTinyConfig;

fn networks(device: &Device) -> Networks {
    // Tests share the device and its generator.
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock();
    device.seed(1);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clip/tests/golden");
    let text = TextConfig {
        vocab_size: 3514,
        max_position_embeddings: 77,
        eos_token_id: 3513,
        ..TextConfig::tiny()
    };
    let clip = ClipConfig {
        text_config: text.clone(),
        ..ClipConfig::tiny()
    };
    let teacher = UNetConfig::tiny().init(device);
    Networks {
        tokenizer: Tokenizer::from_model(&Model::open(here).unwrap(), "tokenizer").unwrap(),
        text_encoder: text.init(device).no_grad(),
        student: UNetConfig::tiny().init(device),
        teacher,
        schedule: NoiseSchedule::new(&SchedulerConfig::default()),
        latents: [4, 8, 8],
        clip: Some(ClipNetworks {
            clip: clip.init(device),
            decoder: AutoencoderTinyConfig::tiny().init(device),
        }),
    }
}

fn recipe() -> Recipe {
    Recipe {
        steps: 6,
        batch: 2,
        accumulation: 2,
        learning_rate: 1e-3,
        fake_lora: LoraConfig::new(2, 4.0, ["to_q", "to_v"]),
        save_every: 2,
        preview_every: 3,
        ..Recipe::default()
    }
}

fn efficient() -> Recipe {
    Recipe {
        student_lora: Some(LoraConfig::new(2, 4.0, ["to_q", "to_k", "to_v"])),
        clip: Some(ClipRecipe {
            weight: 0.1,
            threshold: 1.1,
        }),
        ..recipe()
    }
}

fn prompts(folder: &Path) -> Prompts {
    let path = folder.join("prompts.txt");
    std::fs::write(
        &path,
        "a red circle\na green star\nblue\n\nan orange heart above a ring\nwhite",
    )
    .unwrap();
    Prompts::open(path, 0).unwrap()
}

fn train(recipe: Recipe, networks: &Networks, folder: &Path, stop_after: u64) -> Distiller {
    let distiller = Distiller::new(recipe, networks.clone(), &device()).unwrap();
    let mut distiller = resume(distiller, folder).unwrap();
    run(
        &mut distiller,
        &prompts(folder),
        folder,
        |event| match event {
            Event::Step(report) if report.step + 1 == stop_after => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    )
    .unwrap();
    distiller
}

#[test]
fn scheme_a_moves_student_and_fake_and_leaves_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let before = Distiller::new(recipe(), networks.clone(), &device())
        .unwrap()
        .snapshot();
    let after = train(recipe(), &networks, folder.path(), 0).snapshot();
    assert_ne!(before.group("student"), after.group("student"));
    let (fake_before, fake_after) = (before.group("fake"), after.group("fake"));
    for (name, data) in &fake_after {
        let adapter = name.contains(".lora.");
        assert_eq!(*data != fake_before[name], adapter, "{name}");
    }
    let teacher = named_tensors(&networks.teacher);
    for (name, data) in &teacher {
        assert_eq!(
            data, &fake_after[name],
            "the fake teacher's frozen {name} is the teacher's"
        );
    }
    let log = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
}

#[test]
fn in_bf16_weights_and_their_updates_stay_in_f32() {
    if !device().supports_dtype(DType::BF16) {
        return;
    }
    let networks = networks(&device());
    let begun = Distiller::new(efficient(), networks.clone(), &device()).unwrap();
    let begun = begun.snapshot();
    let trained = |precision| {
        let folder = tempfile::tempdir().unwrap();
        // With prompts alone, so that nothing else can be what makes the difference.
        let recipe = Recipe {
            precision,
            clip: None,
            guidance: 1.0,
            null_probability: 0.0,
            ..efficient()
        };
        train(recipe, &networks, folder.path(), 0).snapshot()
    };
    let (half, exact) = (trained(Precision::Bf16), trained(Precision::F32));
    for group in ["student", "fake"] {
        let [begun, half, exact] = [&begun, &half, &exact].map(|run| run.group(group));
        for (name, data) in &half {
            assert_eq!(data.dtype(), DType::F32, "{name}");
            let is_adapter = name.contains(".lora.");
            assert_eq!(*data != begun[name], is_adapter, "{name}");
            assert_eq!(*data != exact[name], is_adapter, "{name}");
        }
    }
}

#[test]
fn in_bf16_the_clip_loss_is_nearly_that_of_f32() {
    if !device().supports_dtype(DType::BF16) {
        return;
    }
    let networks = networks(&device());
    let prompts = ["a red circle", "a green star", "blue", "white"].map(str::to_owned);
    let loss = |precision| {
        let recipe = Recipe {
            precision,
            ..efficient()
        };
        let mut distiller = Distiller::new(recipe, networks.clone(), &device()).unwrap();
        distiller.step(&prompts).unwrap().clip_loss
    };
    let (half, exact) = (loss(Precision::Bf16), loss(Precision::F32));
    assert!(
        half != exact && (half - exact).abs() < 0.05,
        "{half}, {exact}"
    );
}

/// Adam's moments hold what the gradient was: after the first that is not zero, a tenth of it.
#[test]
fn gradients_are_means_over_the_batches_of_a_step_and_no_longer_than_allowed() {
    let networks = networks(&device());
    let prompts = ["a red circle", "a green star", "blue", "white"].map(str::to_owned);
    for allowed in [1e9, 1e-3] {
        let recipe = Recipe {
            max_grad_norm: allowed,
            ..recipe()
        };
        let mut distiller = Distiller::new(recipe, networks.clone(), &device()).unwrap();
        // In its first step the student has no gradient: the fake teacher is the teacher.
        for group in ["fake_adamw", "student_adamw"] {
            let report = distiller.step(&prompts).unwrap();
            let norm = match group {
                "fake_adamw" => report.fake_norm,
                _ => report.student_norm,
            };
            let moments = distiller.snapshot().group(group).into_iter();
            let first = moments.filter(|(name, _)| name.ends_with(".exp_avg"));
            let squares = first.map(|(_, data)| data.iter::<f64>().map(|x| x * x).sum::<f64>());
            let found = squares.sum::<f64>().sqrt() / 0.1;
            let expected = norm.min(allowed);
            assert!(
                (found / expected - 1.0).abs() < 1e-2,
                "{group}: {found}, not {expected}"
            );
        }
    }
}

#[test]
fn between_its_turns_the_student_stands_still_while_the_fake_teacher_learns() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let recipe = Recipe {
        student_every: 2,
        student_after: 3,
        ..recipe()
    };
    let mut before = Distiller::new(recipe.clone(), networks.clone(), &device())
        .unwrap()
        .snapshot();
    for step in 1..=6 {
        let after = train(recipe.clone(), &networks, folder.path(), step).snapshot();
        for (group, moves) in [
            ("student", step == 4 || step == 6),
            ("ema", step == 4 || step == 6),
            ("fake", true),
        ] {
            assert_eq!(
                before.group(group) != after.group(group),
                moves,
                "{group} in step {step}"
            );
        }
        before = after;
    }
}

#[test]
fn the_students_learning_rate_rises_over_its_first_updates() {
    let networks = networks(&device());
    let first_update = |warm_up| {
        let folder = tempfile::tempdir().unwrap();
        // With the guidance of the teacher, an untrained fake teacher says what the teacher says.
        let recipe = Recipe {
            warm_up,
            fake_guidance: Some(1.0),
            ..recipe()
        };
        let begin = named_tensors(&networks.student);
        let end = train(recipe, &networks, folder.path(), 1).snapshot();
        let moves = end.group("student").into_iter().flat_map(|(name, data)| {
            let (begin, end): (Vec<f32>, Vec<f32>) =
                (begin[&name].iter().collect(), data.iter().collect());
            begin
                .into_iter()
                .zip(end)
                .map(|(a, b)| (b - a).abs())
                .collect::<Vec<_>>()
        });
        f64::from(moves.fold(0.0, f32::max))
    };
    // AdamW's first update has the length of the learning rate.
    let full = recipe().learning_rate;
    for (warm_up, expected) in [(0, full), (1, full), (4, full / 4.0)] {
        let found = first_update(warm_up);
        assert!((found / expected - 1.0).abs() < 0.01, "{warm_up}: {found}");
    }
}

#[test]
fn scheme_b_moves_only_the_students_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let after = train(efficient(), &networks, folder.path(), 0);
    let student = named_tensors(&networks.student);
    let group = after.snapshot().group("student");
    for (name, data) in &student {
        assert_eq!(data, &group[name], "{name} is frozen");
    }
    assert!(
        group
            .keys()
            .any(|name| name.ends_with("to_k.weight.lora.a"))
    );
    let merged = named_tensors(&after.student());
    assert_eq!(merged.len(), student.len(), "the adapters are folded in");
    assert_ne!(merged, student);
}

#[test]
fn the_clip_loss_reaches_the_student() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let with = train(efficient(), &networks, folder.path(), 1)
        .snapshot()
        .group("student");
    let folder = tempfile::tempdir().unwrap();
    let without = Recipe {
        clip: None,
        ..efficient()
    };
    let without = train(without, &networks, folder.path(), 1)
        .snapshot()
        .group("student");
    assert_ne!(with, without);
}

/// On flex; a GPU has no threads to divide.
#[test]
fn threads_change_no_result() {
    let networks = networks(&device());
    let snapshots = [1, 2, 3].map(|count| {
        let distiller = Distiller::new(efficient(), networks.clone(), &device()).unwrap();
        let mut distiller = distiller.with_threads(count);
        for step in 0..2 {
            distiller
                .step(&["a", "b", "c", "d"].map(|word| format!("{word} {step}")))
                .unwrap();
        }
        distiller.snapshot()
    });
    for group in ["student", "fake", "ema"] {
        let [one, two, three] = [0, 1, 2].map(|i: usize| snapshots[i].group(group));
        assert!(one == two && two == three, "{group} depends on the threads");
    }
}

/// Stopped after every step count there is, the run ends with the same bits.
#[test]
fn a_resumed_run_equals_one_that_was_never_stopped() {
    let seldom = Recipe {
        student_every: 2,
        ..recipe()
    };
    for recipe in [recipe(), efficient(), seldom] {
        let networks = networks(&device());
        let whole = tempfile::tempdir().unwrap();
        train(recipe.clone(), &networks, whole.path(), 0);
        let expected = std::fs::read(snapshot_path(whole.path())).unwrap();
        let pieces = tempfile::tempdir().unwrap();
        for stop_after in [1, 2, 5, 0] {
            train(recipe.clone(), &networks, pieces.path(), stop_after);
        }
        let found = std::fs::read(snapshot_path(pieces.path())).unwrap();
        assert!(found == expected, "the snapshots differ");
        let log = |folder: &Path| std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
        assert_eq!(log(pieces.path()), log(whole.path()));
    }
}

#[test]
fn a_step_that_is_not_finite_stops_the_run_and_keeps_the_last_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    train(
        Recipe {
            steps: 2,
            ..recipe()
        },
        &networks,
        folder.path(),
        0,
    );
    let saved = std::fs::read(snapshot_path(folder.path())).unwrap();

    let mut broken = networks.clone();
    struct Poison;
    impl burn::module::ModuleMapper for Poison {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<burn::tensor::Tensor<D>>,
        ) -> burn::module::Param<burn::tensor::Tensor<D>> {
            param.map(|tensor| tensor * f32::NAN)
        }
    }
    broken.teacher = broken.teacher.map(&mut Poison);
    let distiller = Distiller::new(recipe(), broken, &device()).unwrap();
    // The fake teacher comes from the snapshot; the poisoned one is only asked.
    let mut distiller = resume(distiller, folder.path()).unwrap();
    let before = distiller.snapshot().group("student");
    let error = run(
        &mut distiller,
        &prompts(folder.path()),
        folder.path(),
        |_| ControlFlow::Continue(()),
    );
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 2, .. }), "{error}");
    assert_eq!(distiller.snapshot().group("student"), before);
    assert_eq!(std::fs::read(snapshot_path(folder.path())).unwrap(), saved);
}

#[test]
fn a_damaged_snapshot_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    train(
        Recipe {
            steps: 2,
            ..recipe()
        },
        &networks,
        folder.path(),
        0,
    );
    let path = snapshot_path(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Snapshot::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("snapshot.safetensors") && error.contains("not a whole"),
        "{error}"
    );
}

#[test]
fn a_clip_loss_without_clip_is_refused() {
    let networks = Networks {
        clip: None,
        ..networks(&device())
    };
    let error = Distiller::new(efficient(), networks, &device()).unwrap_err();
    assert!(matches!(error, Error::NoClip));
}

/// The folder that a child process of the kill test trains in.
const KILL_TEST_FOLDER: &str = "SWIFTBRUSH_KILL_TEST_FOLDER";

/// Does nothing by itself: the kill test below runs it in a process of its own, to be killed.
#[test]
fn child_of_the_kill_test() {
    if let Some(folder) = std::env::var_os(KILL_TEST_FOLDER) {
        let recipe = Recipe {
            steps: 12,
            save_every: 1,
            ..efficient()
        };
        train(recipe, &networks(&device()), Path::new(&folder), 0);
    }
}

fn spawn_child(folder: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_of_the_kill_test"])
        .env(KILL_TEST_FOLDER, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Every step writes a snapshot, so that many of these kills (SIGKILL on Unix) fall into a write.
#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    assert!(spawn_child(whole.path()).wait().unwrap().success());

    let killed = tempfile::tempdir().unwrap();
    for milliseconds in [30, 170, 90, 260, 210, 330, 150, 280] {
        let mut child = spawn_child(killed.path());
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let path = snapshot_path(killed.path());
        assert!(
            !path.is_file() || Snapshot::open(&path).is_ok(),
            "the snapshot is not whole"
        );
    }
    assert!(spawn_child(killed.path()).wait().unwrap().success());
    let read = |folder: &Path| std::fs::read(snapshot_path(folder)).unwrap();
    assert!(
        read(killed.path()) == read(whole.path()),
        "the snapshots differ"
    );
    let log = |folder: &Path| std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    assert_eq!(log(killed.path()), log(whole.path()));
}
