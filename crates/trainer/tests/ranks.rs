//! Runs on several ranks, here threads of one process; `.ci/mpi` runs the same on processes.

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{distiller, efficient, networks, prompts, recipe, train, with};
use swiftbrush_testing::device;
use swiftbrush_trainer::{
    Distiller, Error, Event, LocalCommunicator, MemoryPlan, MomentStorage, Networks, Recipe, Run,
    Snapshot, snapshot_path, snapshot_steps,
};

fn bytes(folder: &Path) -> Vec<u8> {
    let steps = snapshot_steps(folder).unwrap();
    std::fs::read(snapshot_path(folder, *steps.last().unwrap())).unwrap()
}

/// Losses and norms of each step.
fn log(folder: &Path) -> Vec<[serde_json::Value; 3]> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["losses", "student_norm", "fake_norm"].map(|field| line[field].clone())
    });
    lines.collect()
}

/// Runs `each` on a thread for each rank.
fn on_ranks<T: Send>(size: usize, each: impl Fn(LocalCommunicator) -> T + Sync) -> Vec<T> {
    let each = &each;
    std::thread::scope(|scope| {
        let threads = LocalCommunicator::group(size).map(|rank| scope.spawn(move || each(rank)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

/// Trains on several ranks until a step, or to the end with 0.
fn train_on(size: usize, recipe: &Recipe, networks: &Networks, folder: &Path, stop_after: u64) {
    // Written once, not by each rank.
    drop(prompts(folder));
    on_ranks(size, |rank| {
        let prompts = swiftbrush_trainer::Prompts::open(folder.join("prompts.txt"), 0).unwrap();
        let distiller = distiller(recipe.clone(), networks);
        let distiller = distiller.with_communicator(Arc::new(rank)).unwrap();
        let mut run = Run::open(distiller, prompts, folder, &[]).unwrap();
        run.train(|event: &Event| match event {
            Event::Step { report, .. } if report.step + 1 == stop_after => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .unwrap();
    });
}

fn four_parts(recipe: Recipe) -> Recipe {
    with(recipe, |recipe| {
        (recipe.batch, recipe.accumulation) = (1, 4);
    })
}

#[test]
fn the_number_of_ranks_does_not_change_a_bit() {
    let networks = networks(&device());
    let seldom = with(recipe(), |recipe| recipe.student_every = 2);
    for recipe in [recipe(), efficient(), seldom].map(four_parts) {
        let alone = tempfile::tempdir().unwrap();
        train(recipe.clone(), &networks, alone.path(), 0);
        for size in [2, 4] {
            let folder = tempfile::tempdir().unwrap();
            train_on(size, &recipe, &networks, folder.path(), 0);
            assert!(
                bytes(folder.path()) == bytes(alone.path()),
                "{size} ranks: the snapshots differ"
            );
            assert_eq!(log(folder.path()), log(alone.path()));
        }
    }
}

#[test]
fn a_run_resumes_on_another_number_of_ranks() {
    let networks = networks(&device());
    let recipe = four_parts(efficient());
    let whole = tempfile::tempdir().unwrap();
    train(recipe.clone(), &networks, whole.path(), 0);
    let pieces = tempfile::tempdir().unwrap();
    for (size, stop_after) in [(4, 1), (1, 3), (2, 0)] {
        train_on(size, &recipe, &networks, pieces.path(), stop_after);
    }
    assert!(bytes(pieces.path()) == bytes(whole.path()));
}

#[test]
fn each_moment_is_on_one_rank() {
    let networks = networks(&device());
    let recipe = four_parts(recipe());
    let prompts = ["a", "b", "c", "d"].map(str::to_owned);
    let step = |mut distiller: Distiller| {
        distiller.step(&prompts).unwrap();
        let snapshot: Snapshot = distiller.snapshot();
        let names = snapshot.group("student_adamw").into_keys();
        names.collect::<BTreeSet<String>>()
    };
    let all = step(distiller(recipe.clone(), &networks));
    let shares = on_ranks(2, |rank| {
        let distiller = distiller(recipe.clone(), &networks);
        step(distiller.with_communicator(Arc::new(rank)).unwrap())
    });
    assert!(shares[0].is_disjoint(&shares[1]));
    assert_eq!(&shares[0] | &shares[1], all);
}

/// Bytes of a part of the plan.
fn planned(recipe: &Recipe, networks: &Networks, ranks: usize, part: &str) -> u64 {
    let plan = MemoryPlan::new(recipe, networks, ranks);
    let found = plan.parts().iter().find(|found| found.name == part);
    found.unwrap().bytes
}

#[test]
fn the_plan_has_the_moments_of_the_rank_with_most() {
    let networks = networks(&device());
    let little = with(recipe(), |recipe| {
        recipe.adamw.moments = MomentStorage::EightBits;
    });
    let prompts = ["a", "b", "c", "d"].map(str::to_owned);
    let bytes = |mut distiller: Distiller| -> u64 {
        distiller.step(&prompts).unwrap();
        let snapshot = distiller.snapshot();
        let groups = ["student_adamw", "fake_adamw"].map(|group| snapshot.group(group));
        let tensors = groups.iter().flat_map(|group| group.values());
        tensors.map(|data| data.as_bytes().len() as u64).sum()
    };
    for recipe in [recipe(), little, efficient()].map(four_parts) {
        let alone = bytes(distiller(recipe.clone(), &networks));
        assert_eq!(planned(&recipe, &networks, 1, "moments"), alone);
        let single = with(recipe.clone(), |recipe| recipe.accumulation = 1);
        let one = planned(&single, &networks, 1, "gradients");
        // With micro-batches, a layer's gradients are beside the sum.
        let layer = planned(&recipe, &networks, 1, "gradients") - one;
        assert_eq!(
            layer > 0,
            recipe.student_lora.is_none() && recipe.checkpointing
        );
        assert!(layer < one / 2);
        for size in [2, 4] {
            let shares = on_ranks(size, |rank| {
                let distiller = distiller(recipe.clone(), &networks);
                bytes(distiller.with_communicator(Arc::new(rank)).unwrap())
            });
            let most = shares.into_iter().max().unwrap();
            assert_eq!(planned(&recipe, &networks, size, "moments"), most);
            // A micro-batch's own, and the sum of a share.
            let several = planned(&recipe, &networks, size, "gradients");
            assert!((one + one / size as u64..=2 * one).contains(&several));
        }
    }
}

#[test]
fn micro_batches_must_divide_among_the_ranks() {
    let networks = networks(&device());
    let rank = LocalCommunicator::group(3).next().unwrap();
    let distiller = distiller(four_parts(recipe()), &networks);
    let error = distiller.with_communicator(Arc::new(rank)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("accumulation = 4 with 3 ranks; expected a multiple of 3"),
        "{text}"
    );
}

#[test]
fn a_rank_that_ends_ends_the_others_with_an_error() {
    let networks = networks(&device());
    let mut ranks = LocalCommunicator::group(2);
    let first = ranks.next().unwrap();
    drop(ranks);
    let distiller = distiller(four_parts(recipe()), &networks);
    let mut distiller = distiller.with_communicator(Arc::new(first)).unwrap();
    let error = distiller.step(&["a", "b", "c", "d"].map(str::to_owned));
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Communicator(_)), "{error}");
    assert!(error.to_string().contains("rank 1 has ended"), "{error}");
}
