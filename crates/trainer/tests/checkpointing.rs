//! Block checkpointing beside the plain way, in whole steps.

mod common;

use std::collections::BTreeMap;

use common::{distiller, efficient, networks, recipe, with};
use swiftbrush_testing::device;
use swiftbrush_trainer::{Networks, Recipe, Report};

/// The report of a step and the gradients of both networks, a tenth of which are AdamW's first moments.
fn step(recipe: Recipe, networks: &Networks) -> (Report, BTreeMap<String, Vec<f32>>) {
    let mut distiller = distiller(recipe, networks);
    let count = distiller.recipe().batch * distiller.recipe().accumulation;
    let report = distiller.step(&vec!["a red circle".to_owned(); count]);
    let snapshot = distiller.snapshot();
    let grads = ["student_adamw", "fake_adamw"].map(|group| {
        let tensors = snapshot.group(group).into_iter();
        let firsts = tensors.filter(|(name, _)| name.ends_with(".exp_avg"));
        firsts.map(move |(name, data)| (format!("{group} {name}"), data.iter::<f32>().collect()))
    });
    (report.unwrap(), grads.into_iter().flatten().collect())
}

/// Rounding of f32, relative to a tensor's largest element: the difference of the two teachers cancels three digits of the
/// student's gradient (measured: 1.1e-4). `unet/tests/checkpointed.rs` shows in f64 that there is nothing else.
const TOLERANCE: f64 = 5e-4;
/// Gradients that nearly vanish, such as those of a bias before a normalisation, are sums of terms this share of the
/// network's largest gradient, or more.
const FLOOR: f64 = 1e-2;

fn largest(grads: &[f32]) -> f64 {
    f64::from(grads.iter().fold(0.0f32, |max, x| max.max(x.abs())))
}

#[test]
fn a_step_is_the_plain_one_to_rounding() {
    let networks = networks(&device());
    for recipe in [recipe(), efficient()] {
        assert!(recipe.checkpointing, "it is the default");
        // Guided alike, both teachers agree in the first step.
        let recipe = with(recipe, |recipe| recipe.fake_guidance = Some(1.0));
        let plain = with(recipe.clone(), |recipe| recipe.checkpointing = false);
        let (expected, expected_grads) = step(plain, &networks);
        let (found, grads) = step(recipe, &networks);
        let close = |name: &str, found: f64, expected: f64| {
            let error = (found - expected).abs() / expected.abs();
            assert!(error <= 1e-5, "{name} is off by {error:.1e}");
        };
        for ((name, found), (_, expected)) in found.losses.iter().zip(expected.losses.iter()) {
            close(name, *found, *expected);
        }
        close("student's norm", found.student_norm, expected.student_norm);
        close("fake's norm", found.fake_norm, expected.fake_norm);
        assert!(grads.keys().eq(expected_grads.keys()) && !grads.is_empty());
        for group in ["student_adamw", "fake_adamw"] {
            let of_group = || {
                expected_grads
                    .iter()
                    .filter(|(name, _)| name.starts_with(group))
            };
            let floor = FLOOR
                * of_group()
                    .map(|(_, grads)| largest(grads))
                    .fold(0.0, f64::max);
            assert!(floor > 0.0, "{group} has gradients");
            for (name, expected) in of_group() {
                let scale = largest(expected).max(floor);
                for (found, expected) in grads[name].iter().zip(expected) {
                    let error = f64::from((found - expected).abs());
                    assert!(
                        error <= TOLERANCE * scale,
                        "{name}: {found}, expected {expected}, largest {scale:.1e}"
                    );
                }
            }
        }
    }
}
