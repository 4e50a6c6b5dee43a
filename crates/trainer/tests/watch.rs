//! Looks at fixed prompts, and alarms.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use common::{distiller, efficient, networks, open, recipe, train, with};
use swiftbrush_testing::device;
use swiftbrush_trainer::{
    Error, Event, Observer, Recipe, Reward, Run, Snapshot, WatchRecipe, WatchReport, snapshot_path,
    snapshot_steps,
};

fn watched(recipe: Recipe) -> Recipe {
    with(recipe, |recipe| {
        recipe.watch = Some(WatchRecipe {
            every: 2,
            images: 2,
            bands: 2,
            ..WatchRecipe::default()
        });
    })
}

fn looks(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("watch.jsonl")).unwrap()
}

fn reports(folder: &Path) -> Vec<WatchReport> {
    let text = looks(folder);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_watcher_changes_no_weight_and_may_be_changed_in_a_resumed_run() {
    let networks = networks(&device());
    let [plain, seen] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train(efficient(), &networks, plain.path(), 0);
    train(efficient(), &networks, seen.path(), 2);
    train(watched(efficient()), &networks, seen.path(), 0);
    let [plain, after] = [plain, seen].map(|folder| {
        let step = *snapshot_steps(folder.path()).unwrap().last().unwrap();
        let snapshot = Snapshot::open(snapshot_path(folder.path(), step)).unwrap();
        ["student", "fake", "student_adamw", "fake_adamw", "ema"].map(|group| snapshot.group(group))
    });
    assert!(plain == after, "the weights differ");
}

#[test]
fn a_resumed_run_takes_the_same_looks_as_one_that_was_never_stopped() {
    let networks = networks(&device());
    let [whole, pieces] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train(watched(efficient()), &networks, whole.path(), 0);
    for stop_after in [1, 2, 3, 0] {
        train(watched(efficient()), &networks, pieces.path(), stop_after);
    }
    assert_eq!(looks(pieces.path()), looks(whole.path()));
    let reports = reports(whole.path());
    let steps: Vec<_> = reports.iter().map(|report| report.step).collect();
    assert_eq!(steps, [0, 2, 4, 6]);
    assert!(reports.iter().all(|report| report.clip_score.is_some()));
    // The fake teacher starts as the teacher.
    let distances = |report: &WatchReport| -> Vec<f64> {
        report
            .teacher_distance
            .iter()
            .map(|band| band.distance)
            .collect()
    };
    assert_eq!(distances(&reports[0]), [0.0, 0.0]);
    assert!(
        distances(&reports[3])
            .iter()
            .all(|&distance| distance > 0.0)
    );
    assert_eq!(reports[0].teacher_distance[0].timesteps, [20, 499]);
}

/// An observer that fails at the first report, like one that was killed while it drew it.
#[test]
fn a_first_report_that_was_not_observed_is_made_again() {
    struct Fails<'a>(bool, &'a mut Vec<u64>);
    impl Observer for Fails<'_> {
        fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
            if let Event::Watched { report, .. } = event {
                self.1.push(report.step);
                if std::mem::take(&mut self.0) {
                    return Err(std::io::Error::other("killed").into());
                }
            }
            Ok(ControlFlow::Continue(()))
        }
    }
    let networks = networks(&device());
    let folder = tempfile::tempdir().unwrap();
    let seen = [true, false].map(|fails| {
        let mut run = open(watched(recipe()), &networks, folder.path(), &[]).unwrap();
        let mut steps = Vec::new();
        assert_eq!(run.train(Fails(fails, &mut steps)).is_err(), fails);
        steps
    });
    assert_eq!(seen, [vec![0], vec![0, 2, 4, 6]]);
    let steps = reports(folder.path()).into_iter().map(|report| report.step);
    assert_eq!(steps.collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn a_strip_shows_student_and_teachers_for_the_watched_prompts() {
    let networks = networks(&device());
    let recipe = watched(with(recipe(), |recipe| recipe.fake_learning_rate = 0.1));
    let mut distiller = distiller(recipe.clone(), &networks);
    let prompts = ["a red circle", "a green star"].map(str::to_owned);
    let watch = recipe.watch.unwrap();
    let (report, strip) = distiller.watch(&watch, &prompts);
    assert_eq!(strip.timestep, 500);
    for latents in [&strip.student, &strip.teacher, &strip.fake] {
        assert_eq!(latents.dims(), [2, 4, 8, 8]);
    }
    // The fake teacher starts as the teacher, and soon differs from it.
    let distance =
        |a: &Tensor<4>, b: &Tensor<4>| (a.clone() - b.clone()).abs().max().into_scalar::<f32>();
    assert_eq!(distance(&strip.teacher, &strip.fake), 0.0);
    assert!(distance(&strip.student, &strip.teacher) > 0.0);
    assert!(report.diversity > 0.1, "{}", report.diversity);
    for _ in 0..2 {
        distiller
            .step(&[prompts.clone(), prompts.clone()].concat())
            .unwrap();
    }
    let (later, strip) = distiller.watch(&watch, &prompts);
    assert!(distance(&strip.teacher, &strip.fake) > 0.0);
    assert_ne!(later.diversity, report.diversity);
    assert_eq!(later.step, 2);
}

/// Pulls all latents to zero.
#[derive(Debug)]
struct Collapse;

impl Reward for Collapse {
    fn name(&self) -> &str {
        "collapse"
    }
    fn weight(&self, _step: u64, _steps: u64) -> f64 {
        1e4
    }
    fn loss(&self, latents: Tensor<4>, _prompts: &[String]) -> Tensor<1> {
        latents.powi_scalar(2).mean()
    }
    fn hash(&self) -> String {
        String::new()
    }
}

#[test]
fn a_collapse_is_an_alarm_and_stops_the_run_if_the_recipe_says_so() {
    for stop in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = watched(recipe());
        (recipe.steps, recipe.learning_rate, recipe.save_every) = (12, 1e-2, 1);
        let watch = recipe.watch.as_mut().unwrap();
        (watch.stop, watch.min_diversity) = (stop, 0.9);
        let mut networks = networks(&device());
        networks.clip = None;
        let distiller = distiller(recipe, &networks);
        let distiller = distiller.with_reward(Box::new(Collapse)).unwrap();
        let prompts = common::prompts(folder.path());
        let mut run = Run::open(distiller, prompts, folder.path(), &[]).unwrap();
        let mut alarms = Vec::new();
        let result = run.train(|event: &Event| {
            if let Event::Watched { report, .. } = event {
                alarms.extend(
                    report
                        .alarms
                        .iter()
                        .map(|alarm| (report.step, alarm.name.clone())),
                );
            }
            ControlFlow::Continue(())
        });
        let (step, name) = alarms[0].clone();
        assert_eq!(name, "diversity");
        match stop {
            false => result.unwrap(),
            true => {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::Collapsed { .. }), "{error}");
                assert!(error.to_string().contains("the diversity is"), "{error}");
                // The collapsed student replaces no snapshot.
                assert_eq!(
                    snapshot_steps(folder.path()).unwrap().last(),
                    Some(&(step - 1))
                );
            }
        }
    }
}

#[test]
fn settings_out_of_range_are_rejected_by_name() {
    for (setting, named) in [
        ("every = 0", "watch.every"),
        ("images = 1", "watch.images"),
        ("bands = 0", "watch.bands"),
        ("bands = 962", "expected at most 961"),
        ("min_diversity = 1.5", "watch.min_diversity"),
        ("min_score = nan", "watch.min_score"),
        ("evry = 3", "evry"),
    ] {
        let error = Recipe::from_toml(&format!("[watch]\n{setting}")).unwrap_err();
        assert!(error.contains(named), "{setting}: {error}");
    }
    let recipe = Recipe::from_toml("[watch]\nevery = 9\nprompts = [\"a cat\"]").unwrap();
    let expected = WatchRecipe {
        every: 9,
        prompts: vec!["a cat".to_owned()],
        ..WatchRecipe::default()
    };
    assert_eq!(recipe.watch, Some(expected));
    assert_eq!(Recipe::from_toml("").unwrap().watch, None);
}
