//! Prompts that are read and encoded while a step is computed.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use burn::tensor::Tensor;
use common::{distiller, efficient, networks, open, prompts, recipe, with};
use swiftbrush_testing::device;
use swiftbrush_trainer::{Distiller, Error, Event, PromptSource, Recipe, Reward, Run};

/// Prompts by number, which reports what is read and fails from a number on.
#[derive(Debug)]
struct Numbers {
    is_read: Sender<u64>,
    fails_at: u64,
}

impl Numbers {
    fn new(fails_at: u64) -> (Self, Receiver<u64>) {
        let (is_read, reads) = channel();
        (Self { is_read, fails_at }, reads)
    }
}

impl PromptSource for Numbers {
    fn get(&mut self, first: u64, count: usize) -> Result<Vec<String>, Error> {
        let numbers = first..first + count as u64;
        if numbers.contains(&self.fails_at) {
            return Err(std::io::Error::other(format!("no prompt {}", self.fails_at)).into());
        }
        // Nobody listens any more after the last step.
        let _ = self.is_read.send(first);
        Ok(numbers.map(|number| format!("{number} circles")).collect())
    }

    fn len(&self) -> usize {
        1
    }

    fn hash(&self) -> String {
        "numbers".to_owned()
    }
}

fn run(recipe: Recipe, source: Numbers, folder: &Path) -> Run {
    let distiller = distiller(recipe, &networks(&device()));
    Run::open(distiller, source, folder, &[]).unwrap()
}

/// Everything that training changes.
#[track_caller]
fn assert_same(found: &Distiller, expected: &Distiller) {
    let (found, expected) = (found.snapshot(), expected.snapshot());
    for group in ["student", "fake", "ema", "student_adamw", "fake_adamw"] {
        assert!(
            found.group(group) == expected.group(group),
            "{group} differs"
        );
    }
}

#[test]
fn a_run_takes_the_steps_of_a_distiller_that_encodes_its_prompts_itself() {
    let networks = networks(&device());
    for recipe in [recipe(), efficient()] {
        let (count, steps) = (recipe.batch * recipe.accumulation, recipe.steps);
        let folder = tempfile::tempdir().unwrap();
        let mut run = open(recipe.clone(), &networks, folder.path(), &[]).unwrap();
        run.train(|_: &Event| ControlFlow::Continue(())).unwrap();
        let (mut expected, mut source) = (distiller(recipe, &networks), prompts(folder.path()));
        for step in 0..steps {
            let prompts = source.get(step * count as u64, count).unwrap();
            expected.step(&prompts).unwrap();
        }
        assert_same(run.distiller(), &expected);
    }
}

#[test]
fn prompts_are_read_during_the_step_before_and_not_beyond_the_last() {
    let (source, reads) = Numbers::new(u64::MAX);
    let folder = tempfile::tempdir().unwrap();
    let recipe = with(recipe(), |recipe| recipe.preview_every = 0);
    let (steps, count) = (recipe.steps, (recipe.batch * recipe.accumulation) as u64);
    let mut run = run(recipe, source, folder.path());
    let next = || reads.recv_timeout(Duration::from_secs(60)).unwrap();
    // The first prompts, for previews.
    assert_eq!(next(), 0);
    run.train(|event: &Event| {
        if let Event::Step { report, .. } = event {
            if report.step == 0 {
                assert_eq!(next(), 0);
            }
            // The run waits here, in this step.
            if report.step + 1 < steps {
                assert_eq!(next(), (report.step + 1) * count);
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(reads.try_recv().is_err());
}

#[test]
fn prompts_that_cannot_be_read_stop_the_run_at_their_step() {
    let recipe = with(recipe(), |recipe| recipe.preview_every = 0);
    let count = (recipe.batch * recipe.accumulation) as u64;
    let (source, _reads) = Numbers::new(3 * count + 1);
    let folder = tempfile::tempdir().unwrap();
    let mut run = run(recipe, source, folder.path());
    for _ in 0..2 {
        let error = run.train(|_: &Event| ControlFlow::Continue(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no prompt 13"), "{error}");
        assert_eq!(run.distiller().n_steps(), 3);
    }
}

/// A reward without weight whose value is a NaN once, in the third step.
#[derive(Debug)]
struct NanOnce(AtomicBool, AtomicU64);

impl Reward for NanOnce {
    fn name(&self) -> &str {
        "nan"
    }
    fn weight(&self, step: u64, _steps: u64) -> f64 {
        self.1.store(step, Ordering::Relaxed);
        0.0
    }
    fn loss(&self, latents: Tensor<4>, _prompts: &[String]) -> Tensor<1> {
        let is_third = self.1.load(Ordering::Relaxed) == 2;
        match is_third && !self.0.swap(true, Ordering::Relaxed) {
            true => latents.mean() * f32::NAN,
            false => latents.mean(),
        }
    }
    fn hash(&self) -> String {
        String::new()
    }
}

#[test]
fn a_step_that_failed_is_repeated_with_its_own_prompts() {
    let [whole, failed] = [true, false].map(|is_past| {
        let folder = tempfile::tempdir().unwrap();
        let reward = NanOnce(AtomicBool::new(is_past), AtomicU64::new(0));
        let distiller = distiller(recipe(), &networks(&device()));
        let distiller = distiller.with_reward(Box::new(reward)).unwrap();
        let (source, _reads) = Numbers::new(u64::MAX);
        let mut run = Run::open(distiller, source, folder.path(), &[]).unwrap();
        let first = run.train(|_: &Event| ControlFlow::Continue(()));
        assert_eq!(first.is_err(), !is_past);
        run.train(|_: &Event| ControlFlow::Continue(())).unwrap();
        run.into_distiller()
    });
    assert_same(&failed, &whole);
}

#[test]
fn a_run_that_is_stopped_in_the_process_continues_with_the_next_prompts() {
    let networks = networks(&device());
    let [whole, stopped] = [0, 2].map(|stop_after| {
        let folder = tempfile::tempdir().unwrap();
        let mut run = open(recipe(), &networks, folder.path(), &[]).unwrap();
        for _ in 0..2 {
            run.train(|event: &Event| match event {
                Event::Step { report, .. } if report.step + 1 == stop_after => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            })
            .unwrap();
        }
        run.into_distiller()
    });
    assert_same(&stopped, &whole);
}
