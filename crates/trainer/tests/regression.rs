//! Regression to known latents, and the watcher's measures; the reference is written by `golden/make_regression.py`.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use common::{distiller, efficient, networks, prompts, recipe, with};
use swiftbrush_checkpoint::{LazyTensor, named_tensors, with_tensors, write_tensors};
use swiftbrush_lora::{AdapterFile, insert};
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_testing::{Golden, assert_close, assert_values_close, device, random};
use swiftbrush_trainer::losses::{Regression, Teachers, denoising_input, regression_loss};
use swiftbrush_trainer::watch::{pairwise_distance, teacher_distance};
use swiftbrush_trainer::{
    Distiller, Error, Event, LatentKind, LatentSet, LatentSetWriter, NamedGradients, Recipe,
    RegressionLoss, RegressionRecipe, Run, WithCheckpoints, snapshot_path, snapshot_steps,
};
use swiftbrush_unet::{UNet, UNetConfig};

/// x̂₀ amplifies the rounding of ε̂ 14.6 times.
const TOLERANCE: f64 = 1e-4;

fn unet(step: &Golden, name: &str) -> UNet {
    let tensors = step.tensors_under(&format!("{name}."));
    with_tensors(
        UNetConfig::tiny().init(&device()),
        &tensors,
        Path::new(name),
    )
    .unwrap()
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let [step, golden] =
        ["step", "regression"].map(|name| Golden::open(env!("CARGO_MANIFEST_DIR"), name));
    let (device, schedule) = (device(), NoiseSchedule::new(&SchedulerConfig::default()));
    let student = unet(&step, "student").train().unfreeze();
    let (noise, context) = (
        step.tensor::<4>("noise", &device),
        step.tensor::<3>("context", &device),
    );
    let target: Tensor<4> = golden.tensor("target", &device);
    let from_images = denoising_input(&schedule, target.clone(), noise.clone());
    for (name, input, loss) in [
        ("l2", noise.clone(), Regression::L2),
        ("huber", noise, Regression::Huber(0.5)),
        ("denoise", from_images, Regression::L2),
    ] {
        let of = |denoiser: &dyn swiftbrush_trainer::Denoiser| {
            let (input, target) = (input.clone(), target.clone());
            regression_loss(denoiser, &schedule, input, target, context.clone(), loss)
        };
        let plain = of(&student);
        let checkpointed = WithCheckpoints::new(&student);
        let with_checkpoints = of(&checkpointed);
        let grads = [
            NamedGradients::take(&student, &mut plain.backward()),
            checkpointed.gradients(with_checkpoints.clone(), NamedGradients::default()),
        ];
        for loss in [plain, with_checkpoints] {
            assert_close(loss.inner(), golden.tensor(name, &device), TOLERANCE);
        }
        for (parameter, expected) in golden.tensors_under(&format!("{name}.")) {
            for grads in &grads {
                let found = swiftbrush_testing::values(grads.get(&parameter).unwrap().clone());
                let expected: Vec<f32> = expected.iter().collect();
                assert_values_close(&found, &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn measures_of_the_watcher_are_those_of_pytorch() {
    let [step, golden] =
        ["step", "regression"].map(|name| Golden::open(env!("CARGO_MANIFEST_DIR"), name));
    let (device, schedule) = (device(), NoiseSchedule::new(&SchedulerConfig::default()));
    let latents: Tensor<4> = step.tensor("latents", &device);
    let teachers = Teachers {
        teacher: &unet(&step, "teacher"),
        fake: &fake(&step),
        schedule: &schedule,
    };
    let (renoise, context) = (
        step.tensor("renoise", &device),
        step.tensor("context", &device),
    );
    let distance = teacher_distance(teachers, latents.clone(), renoise, 300, context);
    assert_close(
        distance,
        golden.tensor("teacher_distance", &device),
        TOLERANCE,
    );
    let target: Tensor<4> = golden.tensor("target", &device);
    let three = Tensor::cat(vec![latents, target.narrow(0, 0, 1)], 0);
    assert_close(
        pairwise_distance(three),
        golden.tensor("pairwise_distance", &device),
        TOLERANCE,
    );
}

/// The teacher's weights with the adapters of the golden file, α/r = 2.
fn fake(step: &Golden) -> UNet {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let tensors = step.tensors_under("lora.").into_iter();
    let tensors = tensors
        .map(|(name, data)| LazyTensor::ready(name, data))
        .collect();
    let config = r#"{"unet.r": 2, "unet.lora_alpha": 4}"#.to_owned();
    let metadata = HashMap::from([("lora_adapter_metadata".to_owned(), config)]);
    write_tensors(&path, tensors, metadata).unwrap();
    insert(
        unet(step, "teacher"),
        &AdapterFile::open(&path).unwrap().unet,
    )
    .unwrap()
}

/// A set of five entries of random latents.
fn set(folder: &Path, kind: LatentKind, seed: u64) -> LatentSet {
    let path = folder.join(format!("{kind:?}-{seed}"));
    if path.exists() {
        return LatentSet::open(path).unwrap();
    }
    let mut writer = LatentSetWriter::open(&path, kind, [4, 8, 8], BTreeMap::new()).unwrap();
    let count = if kind == LatentKind::Pairs { 2 } else { 1 };
    for entry in 0..5 {
        let latents = random([count, 4, 8, 8], 10 * seed + entry, &device());
        writer.push(format!("entry {entry}"), latents).unwrap();
    }
    writer.finish().unwrap();
    LatentSet::open(path).unwrap()
}

fn regularized(recipe: Recipe) -> Recipe {
    with(recipe, |recipe| {
        recipe.pairs = Some(RegressionRecipe {
            batch: 3,
            ..RegressionRecipe::default()
        });
        recipe.denoise = Some(RegressionRecipe {
            loss: RegressionLoss::L2,
            every: 2,
            ..RegressionRecipe::default()
        });
    })
}

fn with_sets(distiller: Distiller, folder: &Path) -> Distiller {
    let pairs = distiller
        .with_latents(set(folder, LatentKind::Pairs, 0))
        .unwrap();
    pairs
        .with_latents(set(folder, LatentKind::Images, 1))
        .unwrap()
}

fn train(recipe: Recipe, folder: &Path, stop_after: u64) -> Vec<u8> {
    let distiller = with_sets(distiller(recipe, &networks(&device())), folder);
    let mut run = Run::open(distiller, prompts(folder), folder, &[]).unwrap();
    run.train(|event: &Event| match event {
        Event::Step { report, .. } if report.step + 1 == stop_after => {
            std::ops::ControlFlow::Break(())
        }
        _ => std::ops::ControlFlow::Continue(()),
    })
    .unwrap();
    let step = *snapshot_steps(folder).unwrap().last().unwrap();
    std::fs::read(snapshot_path(folder, step)).unwrap()
}

#[test]
fn a_resumed_run_with_regression_equals_one_that_was_never_stopped() {
    for recipe in [
        recipe(),
        with(efficient(), |recipe| recipe.student_every = 2),
    ] {
        let [whole, pieces] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let expected = train(regularized(recipe.clone()), whole.path(), 0);
        let found =
            [1, 2, 5, 0].map(|stop| train(regularized(recipe.clone()), pieces.path(), stop));
        assert!(found[3] == expected, "the snapshots differ");
        let logs = [&whole, &pieces].map(|folder| {
            let text = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
            let lines = text.lines().map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                (
                    line["losses"]["pairs"].as_f64().unwrap(),
                    line["losses"]["denoise"].as_f64().unwrap(),
                )
            });
            lines.collect::<Vec<_>>()
        });
        assert_eq!(logs[0], logs[1]);
        // Entries in every second update, and no update in every second step of the second recipe.
        let used: Vec<_> = logs[0]
            .iter()
            .map(|(pairs, images)| (*pairs > 0.0, *images > 0.0))
            .collect();
        match recipe.student_every {
            1 => assert_eq!(used, [(true, true), (true, false)].repeat(3)),
            _ => assert_eq!(
                used,
                [
                    (false, false),
                    (true, true),
                    (false, false),
                    (true, false),
                    (false, false),
                    (true, true)
                ]
            ),
        }
    }
}

/// Without distillation, the student comes closer to the latents of the pairs.
#[test]
fn the_student_learns_the_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = with(recipe(), |recipe| {
        recipe.pairs = Some(RegressionRecipe {
            weight: 1e6,
            loss: RegressionLoss::L2,
            batch: 5,
            every: 1,
        });
    });
    let distiller = distiller(recipe, &networks(&device()));
    let mut distiller = distiller
        .with_latents(set(folder.path(), LatentKind::Pairs, 0))
        .unwrap();
    let four = ["a", "b", "c", "d"].map(str::to_owned);
    let losses: Vec<f64> = (0..8)
        .map(|_| distiller.step(&four).unwrap().losses.rewards["pairs"])
        .collect();
    assert!(
        losses.is_sorted_by(|a, b| a > b) && losses[7] < 0.9 * losses[0],
        "{losses:?}"
    );
}

/// A regression loss does not depend on how a step is divided into micro-batches.
#[test]
fn the_loss_is_a_mean_over_its_entries() {
    let losses = [(1, 4), (2, 2), (4, 1)].map(|(batch, accumulation)| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = with(regularized(recipe()), |recipe| {
            (recipe.batch, recipe.accumulation) = (batch, accumulation);
        });
        let mut distiller = with_sets(distiller(recipe, &networks(&device())), folder.path());
        let report = distiller
            .step(&["a", "b", "c", "d"].map(str::to_owned))
            .unwrap();
        let rewards = report.losses.rewards;
        [rewards["pairs"], rewards["denoise"], report.student_norm]
    });
    for found in &losses[1..] {
        for (found, expected) in found.iter().zip(&losses[0]).take(2) {
            assert!((found - expected).abs() < 1e-4 * expected, "{losses:?}");
        }
    }
}

#[test]
fn the_weight_scales_the_gradient() {
    let folder = tempfile::tempdir().unwrap();
    let norm = |weight: f64| {
        let recipe = with(recipe(), |recipe| {
            recipe.pairs = Some(RegressionRecipe {
                weight,
                ..RegressionRecipe::default()
            });
        });
        let distiller = distiller(recipe, &networks(&device()));
        let mut distiller = distiller
            .with_latents(set(folder.path(), LatentKind::Pairs, 0))
            .unwrap();
        distiller
            .step(&["a", "b", "c", "d"].map(str::to_owned))
            .unwrap()
            .student_norm
    };
    // Far beyond the distillation loss, whose gradient is then lost in rounding.
    let (one, two) = (norm(1e5), norm(2e5));
    assert!((two / one - 2.0).abs() < 1e-3, "{one} {two}");
}

#[test]
fn latents_that_do_not_fit_are_rejected_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let pairs = || set(folder.path(), LatentKind::Pairs, 0);
    let error = distiller(recipe(), &networks)
        .with_latents(pairs())
        .unwrap_err();
    assert!(
        error.to_string().contains("the recipe has no [pairs]"),
        "{error}"
    );
    let recipe = regularized(recipe());
    let error = distiller(recipe.clone(), &networks)
        .step(&vec![String::new(); 4])
        .unwrap_err();
    assert!(matches!(error, Error::NoLatents("pairs")), "{error}");
    let twice = distiller(recipe.clone(), &networks)
        .with_latents(pairs())
        .unwrap();
    assert!(twice.with_latents(pairs()).is_err());
    let small = folder.path().join("small");
    let writer = LatentSetWriter::open(&small, LatentKind::Pairs, [4, 4, 4], BTreeMap::new());
    let mut writer = writer.unwrap();
    writer
        .push(String::new(), Tensor::zeros([2, 4, 4, 4], &device()))
        .unwrap();
    writer.finish().unwrap();
    let small = LatentSet::open(small).unwrap();
    let error = distiller(recipe.clone(), &networks)
        .with_latents(small)
        .unwrap_err();
    assert!(
        error.to_string().contains("expected latents of [4, 8, 8]"),
        "{error}"
    );
    // Other pairs are another run.
    let first = with_sets(distiller(recipe.clone(), &networks), folder.path());
    let other = distiller(recipe, &networks)
        .with_latents(set(folder.path(), LatentKind::Pairs, 7))
        .unwrap();
    let other = other
        .with_latents(set(folder.path(), LatentKind::Images, 1))
        .unwrap();
    let error = other
        .restore(&first.snapshot(), Path::new("snapshot"), &[])
        .unwrap_err();
    assert!(error.to_string().contains("pairs.latents: "), "{error}");
    for (text, named) in [
        ("pairs.weight = 0.0", "pairs.weight"),
        ("pairs.batch = 0", "pairs.batch"),
        ("denoise.every = 0", "denoise.every"),
        ("denoise.loss = { huber = -1.0 }", "denoise.loss.huber"),
        ("pairs.loss = \"ssim\"", "ssim"),
    ] {
        let error = Recipe::from_toml(text).unwrap_err();
        assert!(error.contains(named), "{text}: {error}");
    }
    let recipe =
        Recipe::from_toml("pairs.loss = \"l2\"\ndenoise = { loss = { huber = 0.1 } }").unwrap();
    assert_eq!(recipe.pairs.unwrap().loss, RegressionLoss::L2);
    assert_eq!(recipe.denoise.unwrap().loss, RegressionLoss::Huber(0.1));
}

#[test]
fn frozen_networks_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let mut distiller = with_sets(
        distiller(regularized(efficient()), &networks),
        folder.path(),
    );
    let before = named_tensors(&networks.student);
    distiller
        .step(&["a", "b", "c", "d"].map(str::to_owned))
        .unwrap();
    assert_eq!(named_tensors(&networks.student), before);
}
