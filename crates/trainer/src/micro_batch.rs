//! A micro-batch: its random inputs, its losses and its gradients.

use burn::tensor::{Device, Tensor};

use crate::losses::{FakeDraw, Guidance, Losses, StudentDraw};
use crate::{NamedGradients, NullPrompts, Purpose, Random, Recipe};

/// Prompts and random inputs of a micro-batch.
#[derive(Debug)]
pub(crate) struct MicroBatch<'a> {
    pub(crate) prompts: &'a [String],
    /// The encoded prompts, if they were encoded ahead.
    pub(crate) context: Option<Tensor<3>>,
    pub(crate) student: StudentDraw,
    pub(crate) guidance: Guidance,
    pub(crate) fake: FakeDraw,
    /// Samples for which the fake teacher gets the null prompt.
    pub(crate) is_null: Vec<bool>,
}

/// Sizes that the inputs depend on.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Channels, height and width of the latents.
    pub(crate) latents: [usize; 3],
    /// Timesteps of the teacher's schedule.
    pub(crate) timesteps: usize,
    pub(crate) device: Device,
}

/// Draws the inputs of all micro-batches of a step, which depend only on seed and step.
pub(crate) fn draw<'a>(
    recipe: &Recipe,
    sizes: &Sizes,
    step: u64,
    prompts: &'a [String],
) -> Vec<MicroBatch<'a>> {
    let random = |purpose| Random::new(recipe.seed, purpose, step);
    let (mut student_random, mut fake_random) = (random(Purpose::Student), random(Purpose::Fake));
    let mut guidance_random = random(Purpose::Guidance);
    let micro_batch = |prompts: &'a [String]| {
        let student = draw_student(recipe, sizes, &mut student_random, prompts.len());
        let guidance = recipe.guidance(&student.timesteps, &mut guidance_random);
        MicroBatch {
            prompts,
            context: None,
            student,
            guidance,
            fake: draw_fake(sizes, &mut fake_random, prompts.len()),
            is_null: draw_null(recipe, &mut fake_random, prompts.len()),
        }
    };
    prompts.chunks(recipe.batch).map(micro_batch).collect()
}

fn draw_student(recipe: &Recipe, sizes: &Sizes, random: &mut Random, batch: usize) -> StudentDraw {
    let range = recipe.min_timestep..recipe.max_timestep + 1;
    StudentDraw {
        noise: sizes.noise(random, batch),
        timesteps: random.integers(batch, range),
        renoise: sizes.noise(random, batch),
    }
}

fn draw_fake(sizes: &Sizes, random: &mut Random, batch: usize) -> FakeDraw {
    FakeDraw {
        timesteps: random.integers(batch, 0..sizes.timesteps),
        noise: sizes.noise(random, batch),
    }
}

fn draw_null(recipe: &Recipe, random: &mut Random, batch: usize) -> Vec<bool> {
    match recipe.null_prompts {
        NullPrompts::Batch => vec![random.chance(recipe.null_probability); batch],
        NullPrompts::Sample => (0..batch)
            .map(|_| random.chance(recipe.null_probability))
            .collect(),
    }
}

impl Sizes {
    pub(crate) fn noise(&self, random: &mut Random, batch: usize) -> Tensor<4> {
        let [channels, height, width] = self.latents;
        random.normal([batch, channels, height, width], &self.device)
    }
}

/// The context of each sample, or the null context if `is_null`.
///
/// # Shapes
///
/// - context: `[batch, length, width]`, null_context: `[1, length, width]`
/// - returns: `[batch, length, width]`
pub(crate) fn with_null(
    context: Tensor<3>,
    null_context: &Tensor<3>,
    is_null: &[bool],
) -> Tensor<3> {
    if is_null.iter().all(|&is_null| is_null) {
        return null_context.clone().expand(context.dims());
    }
    if !is_null.contains(&true) {
        return context;
    }
    let samples = is_null.iter().enumerate().map(|(index, &is_null)| {
        if is_null {
            null_context.clone()
        } else {
            context.clone().narrow(0, index, 1)
        }
    });
    Tensor::cat(samples.collect(), 0)
}

/// Losses and gradients of a micro-batch, or their sums over several micro-batches.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) losses: Losses<Tensor<1>>,
    pub(crate) student_grads: NamedGradients,
    pub(crate) fake_grads: NamedGradients,
}

impl Outcome {
    /// Losses without gradients.
    pub(crate) fn new(losses: Losses<Tensor<1>>) -> Self {
        Self {
            losses,
            student_grads: NamedGradients::default(),
            fake_grads: NamedGradients::default(),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            losses: self.losses.zip(other.losses, |a, b| a + b),
            student_grads: self.student_grads.plus(other.student_grads),
            fake_grads: self.fake_grads.plus(other.fake_grads),
        }
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, values};

    use super::*;

    fn draws(recipe: &Recipe, step: u64) -> Vec<MicroBatch<'static>> {
        let sizes = Sizes {
            latents: [1, 1, 1],
            timesteps: 1000,
            device: device(),
        };
        let prompts = vec![String::new(); recipe.batch * recipe.accumulation].leak();
        draw(recipe, &sizes, step, prompts)
    }

    fn recipe(batch: usize, accumulation: usize) -> Recipe {
        let mut recipe = Recipe::full();
        (recipe.batch, recipe.accumulation) = (batch, accumulation);
        recipe
    }

    /// 4000 draws miss the outermost twentieth of a range with a probability of 1e-89.
    #[test]
    fn timesteps_span_the_range_of_the_recipe_and_for_the_fake_teacher_the_whole_schedule() {
        let mut recipe = recipe(1000, 4);
        (recipe.min_timestep, recipe.max_timestep) = (200, 700);
        let batches = draws(&recipe, 0);
        let range = |timesteps: Vec<usize>| {
            let ends = (timesteps.iter().min(), timesteps.iter().max());
            (*ends.0.unwrap(), *ends.1.unwrap())
        };
        let of = |timesteps: for<'a> fn(&'a MicroBatch<'static>) -> &'a Vec<usize>| {
            range(batches.iter().flat_map(timesteps).copied().collect())
        };
        let (first, last) = of(|batch| &batch.student.timesteps);
        assert!((200..225).contains(&first) && (675..=700).contains(&last));
        let (first, last) = of(|batch| &batch.fake.timesteps);
        assert!((0..50).contains(&first) && (950..1000).contains(&last));
    }

    #[test]
    fn the_null_prompt_is_drawn_for_a_micro_batch_or_a_sample() {
        let mut recipe = recipe(4, 500);
        recipe.null_probability = 0.3;
        let share = |batches: &[MicroBatch<'_>]| {
            let null = batches.iter().flat_map(|batch| &batch.is_null);
            null.filter(|&&is_null| is_null).count() as f64 / 2000.0
        };
        let is_mixed = |batch: &MicroBatch<'_>| {
            batch.is_null.contains(&true) && batch.is_null.contains(&false)
        };
        let batches = draws(&recipe, 0);
        // Five standard errors of 500 draws.
        assert!((share(&batches) - 0.3).abs() < 0.103);
        assert!(!batches.iter().any(is_mixed));
        recipe.null_prompts = NullPrompts::Sample;
        let samples = draws(&recipe, 0);
        assert!((share(&samples) - 0.3).abs() < 0.052);
        assert!(samples.iter().any(is_mixed));
    }

    #[test]
    fn each_step_and_micro_batch_has_its_own_inputs() {
        let recipe = recipe(3, 2);
        let noise = |step| -> Vec<Vec<f32>> {
            let batches = draws(&recipe, step).into_iter();
            batches.map(|batch| values(batch.student.noise)).collect()
        };
        assert_eq!(noise(5), noise(5));
        assert_ne!(noise(5), noise(6));
        assert_ne!(noise(5)[0], noise(5)[1]);
    }

    #[test]
    fn null_contexts_take_the_place_of_their_samples() {
        let device = device();
        let context = Tensor::<3>::from_data([[[1.0]], [[2.0]], [[3.0]]], &device);
        let null = Tensor::<3>::from_data([[[9.0]]], &device);
        let of = |is_null: [bool; 3]| values(with_null(context.clone(), &null, &is_null));
        assert_eq!(of([false, true, false]), [1.0, 9.0, 3.0]);
        assert_eq!(of([true; 3]), [9.0; 3]);
        assert_eq!(of([false; 3]), [1.0, 2.0, 3.0]);
    }
}
