//! Event files for TensorBoard; the reference is written by `golden/make_events.py`.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{efficient, networks, open, recipe, with};
use swiftbrush_testing::device;
use swiftbrush_trainer::{Event, EventWriter, Observers, TensorBoard, WatchRecipe};

#[test]
fn records_are_those_of_tensorboard() {
    let (time, mut writer) = (1.7e9, EventWriter::new(Vec::new(), 1.7e9).unwrap());
    writer.start(time + 0.25, 1).unwrap();
    let long = format!("a/long tag {}", "x".repeat(200));
    for (step, values) in [(1, [0.5, -1.5]), (40_000, [0.0, 3e38])] {
        let scalars = [("loss/fake", values[0]), (&long, values[1])];
        writer.scalars(time + step as f64, step, &scalars).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.tfevents");
    let expected = std::fs::read(path).unwrap();
    assert!(writer.into_inner() == expected, "the records differ");
}

/// Tags in an event file, which are plain text in it.
fn has(bytes: &[u8], tag: &str) -> bool {
    bytes
        .windows(tag.len())
        .any(|window| window == tag.as_bytes())
}

#[test]
fn an_observer_writes_losses_rates_and_looks_and_others_see_the_same_events() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = with(efficient(), |recipe| {
        (recipe.steps, recipe.preview_every) = (2, 0);
        recipe.watch = Some(WatchRecipe {
            every: 2,
            images: 2,
            ..WatchRecipe::default()
        });
    });
    let mut run = open(recipe, &networks(&device()), folder.path(), &[]).unwrap();
    let tensor_board = TensorBoard::create(folder.path().join("tensorboard"), 0).unwrap();
    let path = tensor_board.path().to_owned();
    let mut seen = Vec::new();
    let observers = Observers::default()
        .with(tensor_board)
        .with(|event: &Event| {
            seen.push(match event {
                Event::Step { .. } => "step",
                Event::Watched { .. } => "look",
                Event::Saved { .. } => "snapshot",
                _ => "other",
            });
            ControlFlow::Continue(())
        });
    run.train(observers).unwrap();
    assert_eq!(seen, ["look", "step", "step", "look", "snapshot"]);
    let bytes = std::fs::read(&path).unwrap();
    for tag in [
        "brain.Event:2",
        "loss/clip",
        "loss/distillation",
        "gradient_norm/student",
        "learning_rate",
        "seconds_per_step",
        "watch/diversity",
        "watch/clip_score",
        "watch/teacher_distance/020-259",
    ] {
        assert!(has(&bytes, tag), "{tag}");
    }
}

#[test]
fn every_observer_sees_every_event_and_one_can_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = open(recipe(), &networks(&device()), folder.path(), &[]).unwrap();
    let mut seen = 0;
    let observers = Observers::default()
        .with(|event: &Event| match event {
            Event::Step { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .with(|_: &Event| {
            seen += 1;
            ControlFlow::Continue(())
        });
    run.train(observers).unwrap();
    // A step and its snapshot.
    assert_eq!((seen, run.distiller().n_steps()), (2, 1));
}
