//! Published rewards: their definitions, their gradients, and runs with them.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use common::{distiller, efficient, networks, open, recipe, with};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::Tokenizer;
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_testing::{F32, Golden, assert_close, device, random};
use swiftbrush_trainer::losses::{StudentDraw, student_latents};
use swiftbrush_trainer::{
    AdamW, AdamWConfig, ClipReward, Distiller, Error, Event, NamedGradients, Networks, Recipe,
    Reward, RewardModel, RewardNetworks, RewardRecipe,
};

const MODELS: [RewardModel; 2] = [RewardModel::Hps, RewardModel::PickScore];

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rewards")
}

fn reward_networks(model: RewardModel, device: &Device) -> RewardNetworks {
    let open = |path: PathBuf| Model::open(path).unwrap();
    let folder = open(golden_folder().join(model.name()));
    let decoder = open(golden_folder());
    let mut networks = RewardNetworks::load(&folder, &decoder, &Recipe::full(), device).unwrap();
    // The toys know a part of CLIP's vocabulary.
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clip/tests/golden");
    networks.tokenizer = Tokenizer::from_model(&open(clip), "tokenizer").unwrap();
    networks
}

fn reward(model: RewardModel, threshold: f64) -> ClipReward {
    let recipe = RewardRecipe {
        weight: 0.5,
        threshold,
    };
    let (device, f32) = (device(), FloatDType::F32);
    let networks = reward_networks(model, &device);
    ClipReward::published(model, networks, &recipe, f32, &device)
}

fn prompts() -> Vec<String> {
    ["a", "b", "c d"].map(str::to_owned).into()
}

/// `golden/make_rewards.py`: one of the three images is beyond the threshold.
#[test]
fn losses_and_gradients_are_those_of_the_published_code() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "rewards");
    let device = device();
    for model in MODELS {
        let of = |part: &str| format!("{}.{part}", model.name());
        let threshold = golden.metadata(&of("threshold")).parse().unwrap();
        let plain = reward(model, threshold);
        let checkpointed = reward(model, threshold).with_checkpoints();
        for reward in [plain, checkpointed] {
            let latents = golden.tensor::<4>("latents", &device);
            let latents = latents.autodiff().require_grad();
            let loss = reward.loss(latents.clone(), &prompts());
            assert_close(
                loss.clone().inner(),
                golden.tensor(&of("loss"), &device),
                F32,
            );
            let grad = latents.grad(&loss.backward()).unwrap();
            assert_close(grad, golden.tensor(&of("latents_grad"), &device), F32);
        }
    }
}

#[test]
fn the_weight_decays_and_the_hash_tells_networks_apart() {
    let [hps, pick_score] = MODELS.map(|model| reward(model, 1.0));
    assert_eq!([hps.name(), pick_score.name()], ["hps", "pick_score"]);
    let weights = [0, 5, 10].map(|step| hps.weight(step, 10));
    assert_eq!(weights, [0.5, 0.25, 0.0]);
    assert_ne!(hps.hash(), pick_score.hash());
}

/// Descent of the loss by the student's weights alone raises the score.
#[test]
fn the_gradient_reaches_the_student_and_raises_the_score() {
    let device = device();
    let networks = networks(&device);
    let schedule = NoiseSchedule::new(&SchedulerConfig::default());
    let draw = StudentDraw {
        noise: random([3, 4, 8, 8], 1, &device),
        timesteps: vec![500; 3],
        renoise: random([3, 4, 8, 8], 2, &device),
    };
    for model in MODELS {
        // No score reaches the threshold.
        let reward = reward(model, 1000.0);
        let mut student = networks.student.clone().train().unfreeze();
        let context = random([3, 7, 12], 3, &device);
        let mut optimizer = AdamW::new(AdamWConfig::default());
        let mut scores = Vec::new();
        for _ in 0..6 {
            let latents = student_latents(&student, &schedule, &draw, context.clone());
            let loss = reward.loss(latents, &prompts());
            scores.push(1000.0 - loss.clone().inner().into_scalar::<f64>());
            let grads = NamedGradients::take(&student, &mut loss.backward());
            let has_gradient = grads.names().any(|name| {
                let grad: Tensor<1> = grads.get(name).unwrap().clone();
                grad.abs().max().into_scalar::<f64>() > 0.0
            });
            assert!(has_gradient, "{model:?}: the gradient is zero");
            student = optimizer.step(student, grads, 1e-4);
        }
        let (first, last) = (scores[0], *scores.last().unwrap());
        assert!(last > first + 1e-4 * first.abs(), "{model:?}: {scores:?}");
    }
}

fn with_rewards(recipe: Recipe) -> Recipe {
    with(recipe, |recipe| {
        for (model, weight, threshold) in [
            (RewardModel::Hps, 0.1, 1.1),
            (RewardModel::PickScore, 1e-3, 30.0),
        ] {
            recipe
                .rewards
                .insert(model, RewardRecipe { weight, threshold });
        }
    })
}

fn networks_with_rewards() -> Networks {
    let device = device();
    let add =
        |networks: Networks, model| networks.with_reward(model, reward_networks(model, &device));
    MODELS.into_iter().fold(networks(&device), add)
}

#[test]
fn a_run_logs_each_reward_and_resumes_exactly() {
    let networks = networks_with_rewards();
    for recipe in [recipe(), efficient()].map(with_rewards) {
        let [whole, stopped] = [0, 3].map(|stop_after| {
            let folder = tempfile::tempdir().unwrap();
            for stop_after in [stop_after, 0] {
                common::train(recipe.clone(), &networks, folder.path(), stop_after);
            }
            let mut run = open(recipe.clone(), &networks, folder.path(), &[]).unwrap();
            run.train(|_: &Event| ControlFlow::Continue(())).unwrap();
            let log = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
            for line in log.lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                for name in ["hps", "pick_score"] {
                    assert!(line["losses"][name].as_f64().unwrap() > 0.0, "{line}");
                }
            }
            run.into_distiller().snapshot().group("student")
        });
        assert!(whole == stopped);
        let without = with(recipe, |recipe| recipe.rewards.clear());
        let folder = tempfile::tempdir().unwrap();
        let without = common::train(without, &networks, folder.path(), 0);
        assert!(without.snapshot().group("student") != whole);
    }
}

#[test]
fn a_reward_without_networks_or_with_other_settings_is_rejected() {
    let recipe = with_rewards(recipe());
    let error = Distiller::new(recipe.clone(), networks(&device()), &device()).unwrap_err();
    assert!(matches!(error, Error::NoReward("hps")), "{error}");
    let networks = networks_with_rewards();
    let before = distiller(recipe.clone(), &networks);
    let other = with(recipe, |recipe| {
        recipe.rewards.get_mut(&RewardModel::Hps).unwrap().threshold = 0.3;
    });
    let mut changed = networks.clone();
    let hps = changed.rewards[&RewardModel::PickScore].clone();
    changed.rewards.insert(RewardModel::Hps, hps);
    let after = distiller(other, &changed);
    let changes = after.fingerprint().changes(before.fingerprint(), &[]);
    let names: Vec<_> = changes.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["rewards.hps", "rewards.hps.threshold"]);
}

#[test]
fn a_vocabulary_that_is_too_small_is_rejected() {
    let mut networks = networks_with_rewards();
    let hps = networks.rewards.get_mut(&RewardModel::Hps).unwrap();
    hps.tokenizer = Tokenizer::clip("<|endoftext|>");
    let error = Distiller::new(with_rewards(recipe()), networks, &device()).unwrap_err();
    assert!(
        error.to_string().starts_with("hps: it knows 3514 tokens"),
        "{error}"
    );
}
