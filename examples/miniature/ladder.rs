//! The ladder: every student in docs/miniature.md, over three training seeds.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use swiftbrush_checkpoint::{read_json, write_json};
use swiftbrush_trainer::{PromptSource, Prompts, Recipe};

use crate::model::Workshop;
use crate::protocol::{is_measured, measure};
use crate::stages::steps;
use crate::students::{self, PromptSet};

/// Training seeds of each student.
const SEEDS: u64 = 3;
/// Weights of student A in the averages, in percent.
const LAMBDAS: [u32; 5] = [0, 25, 50, 75, 100];

/// A kind of student: its recipe, the weights it starts from, its prompts and its first seed.
#[derive(Clone, Copy, Debug)]
struct Rung {
    name: &'static str,
    recipe: &'static str,
    from: &'static str,
    prompts: PromptSet,
    first_seed: u64,
}

/// In order of what they decide, so that an unfinished ladder answers the most. A and B differ in seed, so that their
/// errors are independent; the variants of B share its seeds, so that their differences are paired.
const RUNGS: [Rung; 10] = [
    Rung::new("b_full_taught", "b_full", "start", PromptSet::Taught, 20),
    Rung::new("b_full", "b_full", "start", PromptSet::Known, 20),
    Rung::new("b_taught", "b", "start", PromptSet::Taught, 20),
    Rung::new("b", "b", "start", PromptSet::Known, 20),
    Rung::new("a", "a", "start", PromptSet::Known, 10),
    Rung::new(
        "b_taught_without_clip",
        "b_without_clip",
        "start",
        PromptSet::Taught,
        20,
    ),
    Rung::new("b_unclamped", "b_unclamped", "start", PromptSet::Known, 20),
    Rung::new(
        "b_without_clip",
        "b_without_clip",
        "start",
        PromptSet::Known,
        20,
    ),
    Rung::new("a_taught", "a", "start", PromptSet::Taught, 10),
    Rung::new("a_from_teacher", "a", "teacher", PromptSet::Known, 10),
];

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
    // All kinds for the first seed come first, so that an unfinished ladder can still compare them.
    for run in 0..SEEDS {
        for rung in &RUNGS {
            train(workshop, rung, run)?;
            measure(workshop, &[rung.student(run).parse()?])?;
            if rung.name == "a" {
                average(workshop, run)?; // B comes before A
            }
        }
    }
    Ok(())
}

fn is_finished(workshop: &Workshop, denoiser: &str) -> bool {
    let weights = workshop
        .path(denoiser)
        .join("diffusion_pytorch_model.safetensors");
    weights.is_file()
}

fn train(workshop: &Workshop, rung: &Rung, run: u64) -> Result<()> {
    let student = rung.student(run);
    if is_finished(workshop, &student) || is_measured(&student.parse()?, workshop) {
        return Ok(());
    }
    let mut recipe = rung.recipe(run)?;
    if recipe.clip.is_some() {
        let weight = clip_weight(workshop)?;
        recipe.clip.iter_mut().for_each(|clip| clip.weight = weight);
    }
    students::distill(workshop, &student, rung.from, recipe, rung.prompts)
}

fn average_name(lambda: u32, run: u64) -> String {
    format!("average-{lambda:03}-{run}")
}

/// Averages λ·A + (1−λ)·B of the students of a run, and measures them.
fn average(workshop: &Workshop, run: u64) -> Result<()> {
    for lambda in LAMBDAS {
        let name = average_name(lambda, run);
        if !is_finished(workshop, &name) && !is_measured(&name.parse()?, workshop) {
            let [a, b] = ["a", "b"].map(|kind| format!("{kind}-{run}"));
            crate::merge(workshop, f64::from(lambda) / 100.0, &a, &b, &name)?;
        }
        measure(workshop, &[name.parse()?])?;
    }
    Ok(())
}

/// The norm of the CLIP gradient over that of the distillation gradient. At 1, the student settles halfway between what CLIP
/// wants and what the teacher does.
const RATIO: f64 = 5.0;

/// Weight that gives the CLIP gradient [`RATIO`] times the norm of the distillation gradient in the first updates of student B;
/// measured once and stored in `clip_weight.json`.
fn clip_weight(workshop: &Workshop) -> Result<f64> {
    let path = workshop.root.join("clip_weight.json");
    if path.is_file() {
        return Ok(read_json(&path)?);
    }
    let of_b = RUNGS
        .iter()
        .find(|rung| rung.name == "b")
        .context("the ladder has no B")?;
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
        let recipe = |name: &str| {
            let rung = RUNGS.iter().find(|rung| rung.name == name).unwrap();
            rung.recipe(1).unwrap()
        };
        let (a, b) = (recipe("a"), recipe("b"));
        assert!(a.student_lora.is_none() && a.clip.is_none());
        assert!(a.fake_guidance.is_none(), "both teachers are guided");
        assert_ne!(a.seed, b.seed, "A and B must not share their noise");
        let mut unclamped = recipe("b_unclamped");
        assert_eq!(unclamped.seed, b.seed);
        assert_eq!(unclamped.clip.as_ref().unwrap().threshold, 1.0);
        unclamped.clip = b.clip.clone();
        assert_eq!(unclamped, b);
        let mut full = recipe("b_full");
        assert!(full.student_lora.is_none() && full.learning_rate < b.learning_rate);
        (full.student_lora, full.learning_rate) = (b.student_lora.clone(), b.learning_rate);
        assert_eq!(full, b);
        let mut without = recipe("b_without_clip");
        assert!(without.clip.is_none());
        without.clip = b.clip.clone();
        assert_eq!(without, b);
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
