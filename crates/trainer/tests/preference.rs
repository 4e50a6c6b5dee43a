//! Preference tuning: its loss against PyTorch (`golden/make_drift.py`), and whole steps on tiny networks.

mod common;

use burn::tensor::Tensor;
use swiftbrush_lora::LoraConfig;
use swiftbrush_pipeline::one_step;
use swiftbrush_testing::{F32, Golden, assert_close, device, random, values};
use swiftbrush_trainer::{
    AdamWConfig, DriftTargets, Error, FeatureMap, Judge, Networks, PreferenceRecipe,
    PreferenceTuner, drift_loss,
};
use swiftbrush_unet::UNet;

use common::networks;

#[test]
fn the_loss_and_its_gradient_are_those_of_pytorch() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "drift");
    let (plain, device) = (device(), device().autodiff());
    for (name, weight) in [("preferred", 3000.0), ("anchor", 1.0)] {
        let features: Tensor<2> = golden.tensor::<2>("features", &device).require_grad();
        let tensor = |part: &str| golden.tensor::<2>(&format!("{name}.{part}"), &plain);
        let targets = DriftTargets {
            positives: tensor("positives"),
            negatives: (name == "preferred").then(|| tensor("negatives")),
            weight,
        };
        let loss = drift_loss(features.clone(), &targets);
        let grads = loss.backward();
        let expected = golden.tensor::<1>(&format!("{name}.loss"), &plain);
        assert_close(loss.inner(), expected, F32);
        assert_close(features.grad(&grads).unwrap(), tensor("grad"), 5.0 * F32);
    }
}

/// The sign times the mean of the latents.
#[derive(Debug)]
struct Mean(f64);

impl Judge for Mean {
    fn scores(&self, latents: Tensor<4>, _prompt: &str) -> Vec<f64> {
        let [images, ..] = latents.dims();
        let rows = latents.reshape([images as i32, -1]).mean_dim(1);
        let means = values(rows).into_iter();
        means.map(|mean| self.0 * f64::from(mean)).collect()
    }
}

/// Raw latents, which suffice here.
#[derive(Debug)]
struct Raw;

impl FeatureMap for Raw {
    fn features(&self, latents: Tensor<4>, _: Tensor<3>, _: Tensor<4>) -> Vec<Tensor<2>> {
        let [images, ..] = latents.dims();
        vec![latents.reshape([images as i32, -1])]
    }
}

fn recipe() -> PreferenceRecipe {
    PreferenceRecipe {
        prompts: 2,
        samples: 8,
        preferred: 3,
        rejected: 3,
        learning_rate: 1e-3,
        lora: None,
        ..PreferenceRecipe::default()
    }
}

fn tuner(
    recipe: PreferenceRecipe,
    networks: &Networks,
    judge: impl Judge + 'static,
) -> PreferenceTuner {
    let (judge, raw) = (Box::new(judge), Box::new(Raw));
    PreferenceTuner::new(recipe, networks.clone(), judge, raw, &device()).unwrap()
}

fn prompts() -> [String; 2] {
    ["a red circle", "a green star"].map(str::to_owned)
}

#[test]
fn adapters_and_moments_are_checked() {
    let networks = networks(&device());
    for (recipe, expected) in [
        (
            PreferenceRecipe {
                lora: Some(LoraConfig::new(0, 4.0, ["to_q"])),
                ..recipe()
            },
            "lora.rank = 0",
        ),
        (
            PreferenceRecipe {
                adamw: AdamWConfig {
                    beta1: 1.0,
                    ..AdamWConfig::default()
                },
                ..recipe()
            },
            "adamw.beta1 = 1",
        ),
    ] {
        let (judge, raw) = (Box::new(Mean(1.0)), Box::new(Raw));
        let tuner = PreferenceTuner::new(recipe, networks.clone(), judge, raw, &device());
        let error = tuner.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Mean of the latents of a student for the same noise every time.
fn mean(unet: &UNet, networks: &Networks) -> f32 {
    let device = &device();
    let (noise, context) = (random([16, 4, 8, 8], 9, device), {
        let tokens = networks.tokenizer.encode_batch(&["a red circle"], device);
        networks.text_encoder.forward(tokens).repeat_dim(0, 16)
    });
    let latents = one_step(unet, &networks.student_schedule, noise, context);
    values(latents.mean())[0]
}

#[test]
fn students_move_to_what_the_judge_prefers() {
    let networks = networks(&device());
    let before = mean(&networks.student, &networks);
    let moved = [1.0, -1.0].map(|sign| {
        let mut tuner = tuner(recipe(), &networks, Mean(sign));
        for _ in 0..8 {
            let report = tuner.step(&prompts()).unwrap();
            assert_eq!(report.ranked, 2);
            assert!(report.norm > 0.0);
        }
        mean(&tuner.trained_student().merged(), &networks) - before
    });
    assert!(moved[0] > 0.0 && moved[1] < 0.0, "{moved:?}");
}

#[test]
fn equal_scores_leave_the_anchor_alone_which_holds_the_student() {
    let mut tuner = tuner(recipe(), &networks(&device()), Mean(0.0));
    let report = tuner.step(&prompts()).unwrap();
    // The samples are those of the base: they coincide with their anchors and repel nothing.
    assert_eq!(report.ranked, 0);
}

#[test]
fn threads_and_snapshots_change_no_bit() {
    let (networks, folder) = (networks(&device()), tempfile::tempdir().unwrap());
    let path = folder.path().join("snapshot.safetensors");
    let run = |tuner: &mut PreferenceTuner, steps: usize| {
        for _ in 0..steps {
            tuner.step(&prompts()).unwrap();
        }
    };
    let weights = |tuner: &PreferenceTuner| {
        let tensors = swiftbrush_checkpoint::named_tensors(&tuner.averaged_student());
        let bits = tensors.into_values();
        bits.flat_map(|data| data.iter::<f32>().map(f32::to_bits).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let with_lora = || PreferenceRecipe {
        lora: Some(LoraConfig::new(2, 4.0, ["to_q", "to_v"])),
        ..recipe()
    };
    let mut whole = tuner(with_lora(), &networks, Mean(1.0));
    run(&mut whole, 4);
    let mut first = tuner(with_lora(), &networks, Mean(1.0)).with_threads(2);
    run(&mut first, 2);
    first.snapshot().save(&path).unwrap();
    let snapshot = swiftbrush_trainer::Snapshot::open(&path).unwrap();
    let resumed = tuner(with_lora(), &networks, Mean(1.0)).restore(&snapshot, &path);
    let mut resumed = resumed.unwrap();
    run(&mut resumed, 2);
    assert_eq!(resumed.n_steps(), 4);
    assert!(weights(&resumed) == weights(&whole));

    let error = tuner(recipe(), &networks, Mean(1.0)).restore(&snapshot, &path);
    let error = error.expect_err("the settings differ");
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn a_score_that_is_no_number_stops_the_run() {
    let mut tuner = tuner(recipe(), &networks(&device()), Mean(f64::NAN));
    let error = tuner.step(&prompts()).unwrap_err().to_string();
    assert!(
        error.contains("score") && error.contains("step 0"),
        "{error}"
    );
    assert_eq!(tuner.n_steps(), 0);
}
