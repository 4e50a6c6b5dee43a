//! Training runs with tiny networks.

mod common;

use burn::tensor::{DType, Tensor};
use common::{distiller, efficient, networks, recipe, train, with};
use swiftbrush_checkpoint::named_tensors;
use swiftbrush_scheduler::{NoiseSchedule, PredictionType, SchedulerConfig};
use swiftbrush_testing::{device, values};
use swiftbrush_trainer::{
    Distiller, Error, GuidanceScale, Networks, Precision, Recipe, Report, Reward,
};

#[test]
fn scheme_a_moves_student_and_fake_and_leaves_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let teacher = named_tensors(&networks.teacher);
    let before = distiller(recipe(), &networks).snapshot();
    let after = train(recipe(), &networks, folder.path(), 0).snapshot();
    assert_ne!(before.group("student"), after.group("student"));
    let (fake_before, fake_after) = (before.group("fake"), after.group("fake"));
    assert!(!fake_after.is_empty());
    for (name, data) in &fake_after {
        assert!(name.contains(".lora."), "{name} is frozen and was saved");
        assert_ne!(*data, fake_before[name], "{name}");
    }
    assert_eq!(named_tensors(&networks.teacher), teacher);
    let log = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
}

#[test]
fn in_bf16_weights_and_their_updates_stay_in_f32() {
    if !device().supports_dtype(DType::BF16) {
        return;
    }
    let networks = networks(&device());
    let begun = distiller(efficient(), &networks).snapshot();
    let trained = |precision| {
        let folder = tempfile::tempdir().unwrap();
        // Only the prompts change, so that nothing else can make the difference.
        let recipe = with(efficient(), |recipe| {
            recipe.precision = precision;
            recipe.clip = None;
            recipe.guidance = GuidanceScale::Constant(1.0);
            recipe.null_probability = 0.0;
        });
        train(recipe, &networks, folder.path(), 0).snapshot()
    };
    let (half, exact) = (trained(Precision::Bf16), trained(Precision::F32));
    for group in ["student", "fake"] {
        let [begun, half, exact] = [&begun, &half, &exact].map(|run| run.group(group));
        for (name, data) in &half {
            assert_eq!(data.dtype(), DType::F32, "{name}");
            assert_ne!(*data, begun[name], "{name}");
            assert_ne!(*data, exact[name], "{name}");
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
        let recipe = with(efficient(), |recipe| recipe.precision = precision);
        let report = distiller(recipe, &networks).step(&prompts).unwrap();
        report.losses.rewards["clip"]
    };
    let (half, exact) = (loss(Precision::Bf16), loss(Precision::F32));
    assert!(
        half != exact && (half - exact).abs() < 0.05,
        "{half}, {exact}"
    );
}

/// Adam's first moment reveals the gradient: after the first non-zero gradient it is a tenth of it.
#[test]
fn gradients_are_means_over_the_micro_batches_of_a_step_and_are_clipped() {
    let networks = networks(&device());
    let prompts = ["a red circle", "a green star", "blue", "white"].map(str::to_owned);
    for allowed in [1e9, 1e-3] {
        let recipe = with(recipe(), |recipe| recipe.max_grad_norm = allowed);
        let mut distiller = distiller(recipe, &networks);
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
fn between_updates_the_student_does_not_change_while_the_fake_teacher_learns() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let recipe = with(recipe(), |recipe| {
        (recipe.student_every, recipe.student_after) = (2, 3);
    });
    let mut before = distiller(recipe.clone(), &networks).snapshot();
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
        // With the teacher's guidance, an untrained fake teacher predicts the same as the teacher.
        let recipe = with(recipe(), |recipe| {
            recipe.warm_up = warm_up;
            recipe.fake_guidance = Some(1.0);
        });
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
    // AdamW's first update is as long as the learning rate.
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
    let snapshot = after.snapshot();
    for group in ["student", "ema"] {
        let group = snapshot.group(group);
        assert!(group.keys().all(|name| name.contains(".lora.")));
        let is_key = |name: &String| name.ends_with("to_k.weight.lora.a");
        assert!(group.keys().any(is_key));
    }
    let merged = named_tensors(&after.student());
    assert!(merged.keys().eq(student.keys()), "adapters are merged");
    for (name, data) in &merged {
        let is_adapted = ["to_q", "to_k", "to_v"]
            .iter()
            .any(|layer| name.ends_with(&format!("{layer}.weight")));
        assert_eq!(*data != student[name], is_adapted, "{name}");
    }
}

#[test]
fn the_clip_loss_reaches_the_student() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks(&device());
    let rewarded = train(efficient(), &networks, folder.path(), 1)
        .snapshot()
        .group("student");
    let folder = tempfile::tempdir().unwrap();
    let without = with(efficient(), |recipe| recipe.clip = None);
    let without = train(without, &networks, folder.path(), 1)
        .snapshot()
        .group("student");
    assert_ne!(rewarded, without);
}

/// Only on flex, because a GPU has no threads to divide work among.
#[test]
fn threads_change_no_result() {
    let networks = networks(&device());
    let snapshots = [1, 2, 3].map(|count| {
        let mut distiller = distiller(efficient(), &networks).with_threads(count);
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

/// Prompts of a step.
fn four(prompt: &str) -> Vec<String> {
    (0..4).map(|index| format!("{prompt} {index}")).collect()
}

fn first_step(recipe: Recipe, networks: &Networks, prompt: &str) -> Report {
    distiller(recipe, networks).step(&four(prompt)).unwrap()
}

/// At step 0 the student's latents do not depend on the null prompt, but the fake teacher's loss does.
#[test]
fn the_fake_teacher_is_trained_with_the_null_prompt_where_it_is_drawn() {
    let networks = networks(&device());
    let loss = |probability| {
        let recipe = with(recipe(), |recipe| recipe.null_probability = probability);
        first_step(recipe, &networks, "a red circle").losses.fake
    };
    assert_ne!(loss(0.0), loss(1.0));
    // At least one of 1000 samples is drawn; the loss equals neither of the others.
    let mut recipe = recipe();
    (recipe.batch, recipe.accumulation) = (4, 1);
    recipe.null_prompts = swiftbrush_trainer::NullPrompts::Sample;
    let losses = [0.0, 0.5, 1.0].map(|probability| {
        let recipe = with(recipe.clone(), |recipe| {
            recipe.null_probability = probability;
            recipe.seed = 3;
        });
        first_step(recipe, &networks, "a red circle").losses.fake
    });
    assert!(
        losses[1] != losses[0] && losses[1] != losses[2],
        "{losses:?}"
    );
}

/// A fake teacher that learns nothing equals the teacher, so the gradient is that of the CLIP loss alone.
fn clip_alone() -> Recipe {
    with(efficient(), |recipe| {
        recipe.learning_rate = 1e-30;
        recipe.fake_learning_rate = 1e-30;
    })
}

#[test]
fn the_weight_of_the_clip_loss_decays_over_the_run() {
    let networks = networks(&device());
    let norm = |steps| {
        let recipe = with(clip_alone(), |recipe| recipe.steps = steps);
        let mut distiller = distiller(recipe, &networks);
        distiller.step(&four("a")).unwrap();
        distiller.step(&four("a")).unwrap().student_norm
    };
    // Weights at step 1: 0.1·(1 − 1/2) and 0.1·(1 − 1/4).
    let (half, most) = (norm(2), norm(4));
    assert!(
        most > 0.0 && (half / most * 1.5 - 1.0).abs() < 1e-3,
        "{half}, {most}"
    );
}

#[test]
fn images_beyond_the_threshold_of_the_clip_loss_have_no_gradient() {
    let networks = networks(&device());
    let norm = |threshold| {
        let recipe = with(clip_alone(), |recipe| {
            recipe.clip.as_mut().unwrap().threshold = threshold;
        });
        let report = first_step(recipe, &networks, "a");
        (report.losses.rewards["clip"], report.student_norm)
    };
    assert_eq!(norm(-1.0), (0.0, 0.0));
    let (loss, norm) = norm(1.1);
    assert!(loss > 0.0 && norm > 0.0);
}

#[test]
fn a_student_that_predicts_velocity_generates_by_its_own_schedule() {
    let config = SchedulerConfig::default().with_prediction_type(PredictionType::VPrediction);
    let velocity = NoiseSchedule::new(&config);
    let same = networks(&device());
    let other = same.clone().with_student_schedule(velocity.clone());
    let preview = |networks: &Networks| {
        let latents = distiller(recipe(), networks).preview(&["a".to_owned()]);
        values(latents)
    };
    assert_ne!(preview(&same), preview(&other));
    let latents = distiller(recipe(), &other).preview(&["a".to_owned()]);
    let noise = swiftbrush_trainer::Random::new(0, swiftbrush_trainer::Purpose::Preview, 0)
        .normal([1, 4, 8, 8], &device());
    let tokens = other.tokenizer.encode_batch(&["a"], &device());
    let context = other.text_encoder.forward(tokens);
    let expected = swiftbrush_pipeline::one_step(&other.student, &velocity, noise, context);
    assert_eq!(values(latents), values(expected));
}

/// The mean square of the latents.
#[derive(Debug)]
struct Small(&'static str);

impl Reward for Small {
    fn name(&self) -> &str {
        self.0
    }
    fn weight(&self, _step: u64, _steps: u64) -> f64 {
        0.5
    }
    fn loss(&self, latents: Tensor<4>, _prompts: &[String]) -> Tensor<1> {
        latents.powi_scalar(2).mean()
    }
    fn hash(&self) -> String {
        "0.5".to_owned()
    }
}

#[test]
fn a_reward_of_the_caller_reaches_the_student_and_the_report() {
    let networks = networks(&device());
    let plain = first_step(recipe(), &networks, "a");
    let distiller = distiller(recipe(), &networks);
    let mut distiller = distiller.with_reward(Box::new(Small("small"))).unwrap();
    let report = distiller.step(&four("a")).unwrap();
    assert!(report.losses.rewards["small"] > 0.0);
    assert_ne!(report.student_norm, plain.student_norm);
    assert_eq!(distiller.fingerprint().get("rewards.small"), Some("0.5"));
    for name in ["small", "fake", "distillation"] {
        let distiller = common::distiller(recipe(), &networks);
        let distiller = distiller.with_reward(Box::new(Small("small"))).unwrap();
        let error = distiller.with_reward(Box::new(Small(name))).unwrap_err();
        assert!(matches!(error, Error::RewardName(_)), "{error}");
    }
}

#[test]
fn a_distiller_can_be_sent_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Distiller>();
}
