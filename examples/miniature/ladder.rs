//! The ladder: every student in docs/miniature.md, over three training seeds.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;
use swiftbrush_checkpoint::{read_json, write_json};
use swiftbrush_trainer::{PromptSource, Prompts, Recipe};

use crate::model::{Workshop, keep_settings};
use crate::protocol::{SEEN, SETS, is_measured, measure};
use crate::stages::steps;
use crate::students::{self, PromptSet};

/// Training seeds of each student.
const SEEDS: u64 = 3;
/// Weights of student A in the averages, in percent.
const LAMBDAS: [u32; 3] = [25, 50, 75];

/// A kind of student: its recipe, the weights it starts from (another kind's, of the same run, if there is one of that name), its
/// prompts and its first seed.
#[derive(Clone, Copy, Debug)]
struct Rung {
    name: &'static str,
    recipe: &'static str,
    from: &'static str,
    prompts: PromptSet,
    first_seed: u64,
}

/// A and B differ in seed, so that their errors are independent; the variants of B share its seeds, so that their differences
/// are paired.
const RUNGS: [Rung; 7] = [
    Rung::new("b_taught", "b", "start", PromptSet::Taught, 20),
    Rung::new("a_taught", "a", "start", PromptSet::Taught, 10),
    Rung::new(
        "b_taught_unclamped",
        "b_unclamped",
        "start",
        PromptSet::Taught,
        20,
    ),
    Rung::new("b_full_taught", "b_full", "b_taught", PromptSet::Taught, 30),
    Rung::new("b", "b", "start", PromptSet::Known, 20),
    Rung::new(
        "b_taught_without_clip",
        "b_without_clip",
        "start",
        PromptSet::Taught,
        20,
    ),
    Rung::new(
        "a_taught_from_teacher",
        "a",
        "teacher",
        PromptSet::Taught,
        10,
    ),
];

/// Number of kinds at the beginning that are trained with every seed before the others.
const MAIN: usize = 2;

/// Students whose averages λ·A + (1−λ)·B are measured: A, then B.
const AVERAGED: [&str; 2] = ["a_taught", "b_taught"];

impl Rung {
    const fn new(
        name: &'static str,
        recipe: &'static str,
        from: &'static str,
        prompts: PromptSet,
        first_seed: u64,
    ) -> Self {
        Self {
            name,
            recipe,
            from,
            prompts,
            first_seed,
        }
    }

    /// Name of the student of a run.
    fn student(&self, run: u64) -> String {
        format!("{}-{run}", self.name)
    }

    fn recipe(&self, run: u64) -> Result<Recipe> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature/recipes");
        let mut recipe = Recipe::open(folder.join(self.recipe).with_extension("toml"))?;
        recipe.seed = self.first_seed + run;
        Ok(recipe)
    }
}

/// Trains and measures every student and every average; finished ones are skipped, unfinished ones resumed. A student whose
/// measures exist is not trained again.
///
/// The model folder must contain the autoencoders, CLIP, the text encoder and the teacher.
pub(crate) fn climb(workshop: &Workshop) -> Result<()> {
    ensure!(
        is_finished(workshop, "teacher"),
        "{}: expected a teacher; `teacher` trains it, or `teacher --from` a denoiser",
        workshop.path("teacher").display()
    );
    if !is_finished(workshop, "start") {
        students::train_start(workshop, steps::START, "teacher")?;
    }
    // All seeds of A and B come first, then all variants for the first seed.
    let (main, variants) = RUNGS.split_at(MAIN);
    reach_all(workshop, main)?;
    average_means(workshop)?;
    reach_all(workshop, variants)
}

fn reach_all(workshop: &Workshop, rungs: &[Rung]) -> Result<()> {
    for run in 0..SEEDS {
        for rung in rungs {
            reach(workshop, rung, run)?;
        }
    }
    Ok(())
}

/// Trains and measures a student, and its averages if it is A, which comes after B.
fn reach(workshop: &Workshop, rung: &Rung, run: u64) -> Result<()> {
    let student = rung.student(run);
    let system = [student.parse()?];
    if !is_measured(&system[0], &SETS, workshop) {
        train(workshop, rung, run)?;
    }
    measure(workshop, &system, &SETS)?;
    match rung.name == AVERAGED[0] {
        true => average(workshop, run),
        false => Ok(()),
    }
}

/// Trains A and B with the first seed, and averages them as the shipped student.
pub(crate) fn train_shipped(workshop: &Workshop) -> Result<()> {
    /// The weight of A; chosen on the captions of `judge`, among 0, 0.1, 0.25 and 0.4.
    const LAMBDA: f64 = 0.25;
    const STUDENTS: [&str; 2] = ["a_taught", "b_full_taught"];
    for name in STUDENTS {
        train(workshop, rung(name), 0)?;
    }
    let [a, b] = STUDENTS.map(|name| rung(name).student(0));
    crate::merge(workshop, LAMBDA, &a, &b, "merged")
}

fn is_finished(workshop: &Workshop, denoiser: &str) -> bool {
    let weights = workshop
        .path(denoiser)
        .join("diffusion_pytorch_model.safetensors");
    weights.is_file()
}

fn train(workshop: &Workshop, rung: &Rung, run: u64) -> Result<()> {
    let student = rung.student(run);
    if is_finished(workshop, &student) {
        return Ok(());
    }
    let mut from = rung.from.to_owned();
    if let Some(first) = RUNGS.iter().find(|other| other.name == rung.from) {
        train(workshop, first, run)?;
        from = first.student(run);
    }
    let mut recipe = rung.recipe(run)?;
    if recipe.clip.is_some() {
        let weight = clip_weight(workshop)?;
        recipe.clip.iter_mut().for_each(|clip| clip.weight = weight);
    }
    students::distill(workshop, &student, &from, recipe, rung.prompts)
}

fn average_name(lambda: u32, run: u64) -> String {
    format!("average-{lambda:03}-{run}")
}

/// Averages the students of a run, and measures the averages.
fn average(workshop: &Workshop, run: u64) -> Result<()> {
    for lambda in LAMBDAS {
        let name = average_name(lambda, run);
        let system = [name.parse()?];
        if !is_finished(workshop, &name) && !is_measured(&system[0], &SEEN, workshop) {
            let [a, b] = AVERAGED.map(|name| rung(name).student(run));
            for name in AVERAGED {
                train(workshop, rung(name), run)?; // measured, but without weights
            }
            crate::merge(workshop, f64::from(lambda) / 100.0, &a, &b, &name)?;
        }
        measure(workshop, &system, &SEEN)?;
    }
    Ok(())
}

/// Averages A and B over all runs, and measures these means and their averages.
fn average_means(workshop: &Workshop) -> Result<()> {
    let [a, b] = AVERAGED.map(|kind| format!("{kind}-mean"));
    let averages = LAMBDAS.map(|lambda| format!("average-{lambda:03}-mean"));
    let mut systems = Vec::new();
    for name in [&a, &b].into_iter().chain(&averages) {
        systems.push(name.parse()?);
    }
    if systems
        .iter()
        .all(|system| is_measured(system, &SETS, workshop))
    {
        return Ok(());
    }
    for (kind, mean) in AVERAGED.iter().zip([&a, &b]) {
        if !is_finished(workshop, mean) {
            average_runs(workshop, rung(kind), mean)?;
        }
    }
    for (lambda, name) in LAMBDAS.into_iter().zip(&averages) {
        if !is_finished(workshop, name) {
            crate::merge(workshop, f64::from(lambda) / 100.0, &a, &b, name)?;
        }
    }
    measure(workshop, &systems, &SETS)
}

/// Averages the weights of a student over all runs.
fn average_runs(workshop: &Workshop, rung: &Rung, mean: &str) -> Result<()> {
    let students: Vec<_> = (0..SEEDS).map(|run| rung.student(run)).collect();
    for run in 0..SEEDS {
        train(workshop, rung, run)?; // measured, but without weights
    }
    let mut sum = students[0].clone();
    for (count, student) in students.iter().enumerate().skip(1) {
        let output = match count + 1 == students.len() {
            true => mean.to_owned(),
            false => format!("{mean}-of-{}", count + 1),
        };
        let share = count as f64 / (count + 1) as f64;
        crate::merge(workshop, share, &sum, student, &output)?;
        sum = output;
    }
    Ok(())
}

/// A kind of student.
///
/// # Panics
///
/// If the ladder has none of this name.
fn rung(name: &str) -> &'static Rung {
    let found = RUNGS.iter().find(|rung| rung.name == name);
    found.expect("the ladder has this kind of student")
}

/// The norm of the CLIP gradient over that of the distillation gradient. At 1, the student settles halfway between what CLIP
/// wants and what the teacher does.
const RATIO: f64 = 5.0;

/// Weight that gives the CLIP gradient [`RATIO`] times the norm of the distillation gradient in the first updates of student B;
/// measured once and stored in `clip_weight.json`.
fn clip_weight(workshop: &Workshop) -> Result<f64> {
    let of_b = rung("b");
    let settings = json!({
        "seed": workshop.seed,
        "networks": workshop.hashes(&["clip", "vae", "text_encoder", "teacher", of_b.from])?,
    });
    keep_settings(&workshop.root.join("clip_weight.settings.json"), &settings)?;
    let path = workshop.root.join("clip_weight.json");
    if path.is_file() {
        return Ok(read_json(&path)?);
    }
    let mut recipe = of_b.recipe(0)?;
    recipe.student_every = 1;
    let clip = recipe.clip.take();
    let distillation = first_norm(workshop, of_b.from, recipe.clone())?;
    /// So large that the gradient of the sum is that of the CLIP loss.
    const LARGE: f64 = 1e6;
    recipe.student_after = 0;
    recipe.clip = clip;
    recipe.clip.iter_mut().for_each(|clip| clip.weight = LARGE);
    let clip = first_norm(workshop, of_b.from, recipe)? / LARGE;
    ensure!(
        clip > 0.0,
        "no image is below the threshold: the CLIP loss has no gradient"
    );
    ensure!(
        distillation > 0.0,
        "the distillation loss has no gradient: the fake teacher equals the teacher"
    );
    let weight = RATIO * distillation / clip;
    eprintln!(
        "gradient norms: distillation {distillation:.3e}, CLIP {clip:.3e}; weight {weight:.3}"
    );
    write_json(&path, &weight)?;
    Ok(weight)
}

/// Mean norm of the student's gradient in its first eight updates, after the steps that a recipe gives to the fake teacher
/// alone.
fn first_norm(workshop: &Workshop, from: &str, recipe: Recipe) -> Result<f64> {
    const UPDATES: u64 = 8;
    let (alone, count) = (recipe.student_after, recipe.batch * recipe.accumulation);
    let prompts = students::prompts(workshop, PromptSet::Known)?;
    let mut prompts = Prompts::open(prompts, recipe.seed)?;
    let mut distiller = students::distiller(workshop, from, recipe)?;
    let mut sum = 0.0;
    for step in 0..alone + UPDATES {
        let report = distiller.step(&prompts.get(step * count as u64, count)?)?;
        if step >= alone {
            sum += report.student_norm;
        }
    }
    Ok(sum / UPDATES as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn recipes_open_and_differ_in_what_their_names_say() {
        let recipe = |name: &str| rung(name).recipe(1).unwrap();
        let (a, b) = (recipe("a_taught"), recipe("b_taught"));
        assert!(a.student_lora.is_none() && a.clip.is_none());
        assert_eq!(a.fake_guidance, Some(1.0), "it follows the guided teacher");
        assert!(b.fake_guidance.is_none(), "both teachers are guided");
        assert_ne!(a.seed, b.seed, "A and B must not share their noise");
        assert_eq!(recipe("b"), b);
        assert_eq!(recipe("a_taught_from_teacher"), a);
        let mut unclamped = recipe("b_taught_unclamped");
        assert_eq!(unclamped.seed, b.seed);
        assert_eq!(unclamped.clip.as_ref().unwrap().threshold, 1.0);
        unclamped.clip = b.clip.clone();
        assert_eq!(unclamped, b);
        let mut without = recipe("b_taught_without_clip");
        assert!(without.clip.is_none());
        without.clip = b.clip.clone();
        assert_eq!(without, b);
        let mut full = recipe("b_full_taught");
        assert!(full.student_lora.is_none() && full.learning_rate < b.learning_rate);
        full.clip = None;
        (full.seed, full.fake_guidance) = (a.seed, a.fake_guidance);
        assert_eq!(full, a);
    }

    #[test]
    fn a_student_starts_from_an_earlier_kind_or_from_no_student() {
        for (place, rung) in RUNGS.iter().enumerate() {
            let first = RUNGS.iter().position(|other| other.name == rung.from);
            assert!(first.is_none_or(|first| first < place), "{rung:?}");
        }
        assert_eq!(rung("b_full_taught").from, "b_taught");
    }

    #[test]
    fn students_of_a_ladder_have_distinct_names() {
        let names = RUNGS
            .iter()
            .flat_map(|rung| (0..SEEDS).map(|run| rung.student(run)));
        let names: Vec<_> = names.collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
