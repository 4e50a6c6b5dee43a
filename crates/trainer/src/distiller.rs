use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use swiftbrush_checkpoint::{named_tensors, read, with_tensors};
use swiftbrush_clamped_clip_loss::linear_decay;
use swiftbrush_clip::{Clip, TextEncoder, Tokenizer};
use swiftbrush_lora::{attach, materialize};
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderTiny;

use crate::gradients::clipping;
use crate::losses::{
    FakeDraw, StudentDraw, clip_loss, distillation_gradient, distillation_loss, fake_loss,
    student_latents,
};
use crate::{AdamW, Ema, Error, NamedGradients, Purpose, Random, Recipe, Snapshot, Threads};

/// What a run begins with; all without autodiff and in f32.
#[derive(Clone, Debug)]
pub struct Networks {
    /// Prompts to numbers.
    pub tokenizer: Tokenizer,
    /// Numbers to what the denoisers attend to.
    pub text_encoder: TextEncoder,
    /// The multi-step model; never changed.
    pub teacher: UNet,
    /// The student as it begins: SD-Turbo in the paper.
    pub student: UNet,
    /// The schedule of both.
    pub schedule: NoiseSchedule,
    /// Channels, height and width of the latents.
    pub latents: [usize; 3],
    /// What the CLIP loss needs, where the recipe has one.
    pub clip: Option<ClipNetworks>,
}

/// What the clamped CLIP loss needs.
#[derive(Clone, Debug)]
pub struct ClipNetworks {
    /// Both towers.
    pub clip: Clip,
    /// The decoder that gradients go through.
    pub decoder: AutoencoderTiny,
}

/// What a step did, for the log.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Report {
    /// The step, from 0.
    pub step: u64,
    /// The student's loss: ½·mean(g²), which says little about progress.
    pub distillation_loss: f64,
    /// The clamped CLIP loss, unweighted; 0 without one.
    pub clip_loss: f64,
    /// The fake teacher's loss.
    pub fake_loss: f64,
    /// Norm of the student's gradient before clipping.
    pub student_norm: f64,
    /// Norm of the fake teacher's gradient before clipping.
    pub fake_norm: f64,
}

/// A run of SwiftBrush v2: the student, the fake teacher that follows it, and their optimisers.
#[derive(Debug)]
pub struct Distiller {
    recipe: Recipe,
    networks: Networks,
    null_context: Tensor<3>,
    /// On the autodiff device.
    student: UNet,
    fake: UNet,
    student_adamw: AdamW,
    fake_adamw: AdamW,
    ema: Ema,
    step: u64,
    device: Device,
    threads: Threads,
}

/// What is drawn for one batch of a step.
struct Part<'a> {
    prompts: &'a [String],
    student: StudentDraw,
    fake: FakeDraw,
    /// Whether the fake teacher learns this batch without its prompts.
    is_unconditional: bool,
}

/// What one batch of a step gives.
struct Outcome {
    /// Of the distillation, of CLIP, and of the fake teacher.
    losses: [Tensor<1>; 3],
    student_grads: NamedGradients,
    fake_grads: NamedGradients,
}

impl Distiller {
    /// A run at its first step.
    ///
    /// # Errors
    ///
    /// If the recipe contradicts itself, or has a CLIP loss and the networks lack what it needs.
    pub fn new(recipe: Recipe, networks: Networks, device: &Device) -> Result<Self, Error> {
        let bad = |reason| Error::Recipe {
            path: "the recipe".into(),
            reason,
        };
        recipe.check().map_err(bad)?;
        let dtype = DType::from(recipe.precision.dtype());
        if !device.supports_dtype(dtype) {
            return Err(bad(format!(
                "{device:?} does not compute in {dtype:?}: set precision to \"f32\""
            )));
        }
        if recipe.clip.is_some() && networks.clip.is_none() {
            return Err(Error::NoClip);
        }
        let student = match &recipe.student_lora {
            Some(lora) => attach(trainable(&networks.student), lora, recipe.seed)?,
            None => trainable(&networks.student),
        };
        let fake = attach(
            trainable(&networks.teacher),
            &recipe.fake_lora,
            recipe.seed ^ 1,
        )?;
        let empty = networks.tokenizer.encode_batch(&[""], device);
        let null_context = networks.text_encoder.forward(empty);
        let null_context = null_context.cast(recipe.precision.dtype());
        Ok(Self {
            null_context,
            ema: Ema::new(&student, recipe.ema_decay),
            student,
            fake,
            student_adamw: AdamW::new(recipe.adamw),
            fake_adamw: AdamW::new(recipe.adamw),
            step: 0,
            device: device.clone(),
            threads: Threads::new(1),
            recipe,
            networks,
        })
    }

    /// Goes on from a snapshot that a run of the same recipe and networks saved.
    ///
    /// # Errors
    ///
    /// If the snapshot is of other networks; `source` is the file named in the error.
    pub fn restore(mut self, snapshot: &Snapshot, source: &Path) -> Result<Self, Error> {
        self.student = with_tensors(self.student, &snapshot.group("student"), source)?;
        self.fake = with_tensors(self.fake, &snapshot.group("fake"), source)?;
        self.student_adamw = snapshot.adamw("student_adamw", self.recipe.adamw, &self.device);
        self.fake_adamw = snapshot.adamw("fake_adamw", self.recipe.adamw, &self.device);
        self.ema = snapshot.ema("ema", self.recipe.ema_decay, &self.device);
        self.step = snapshot.step();
        Ok(self)
    }

    /// Takes the `accumulation` batches of a step on so many threads, which changes no result: on a CPU
    /// faster, if the networks are small. At first there is one.
    pub fn with_threads(mut self, count: usize) -> Self {
        self.threads = Threads::new(count);
        self
    }

    /// All that is needed to go on.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.step);
        snapshot.insert("student", named_tensors(&self.student));
        snapshot.insert("fake", named_tensors(&self.fake));
        snapshot.insert_adamw("student_adamw", &self.student_adamw);
        snapshot.insert_adamw("fake_adamw", &self.fake_adamw);
        snapshot.insert_ema("ema", &self.ema);
        snapshot
    }

    /// Settings of the run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps done.
    pub fn n_steps(&self) -> u64 {
        self.step
    }

    /// The student with its present weights, adapters folded in, without autodiff.
    pub fn student(&self) -> UNet {
        materialize(self.student.valid())
    }

    /// The student with its averaged weights, adapters folded in, without autodiff.
    pub fn averaged_student(&self) -> UNet {
        materialize(self.ema.apply(self.student.valid()))
    }

    /// Latents that the averaged student makes for some prompts, the same at every step.
    ///
    /// # Shapes
    ///
    /// - returns: `[prompts, channels, height, width]`
    pub fn preview(&self, prompts: &[String]) -> Tensor<4> {
        let noise = self.noise(
            &mut Random::new(self.recipe.seed, Purpose::Preview, 0),
            prompts.len(),
        );
        let context = self.encode(prompts);
        one_step(
            &self.averaged_student(),
            &self.networks.schedule,
            noise,
            context,
        )
    }

    /// One update of the fake teacher, and one of the student if it is its turn: the last of every
    /// `student_every` steps after the first `student_after`. At all others the report has zeros for the
    /// student.
    ///
    /// # Errors
    ///
    /// If a loss or a gradient is not finite; nothing has then changed.
    ///
    /// # Panics
    ///
    /// If there are not `batch · accumulation` prompts.
    pub fn step(&mut self, prompts: &[String]) -> Result<Report, Error> {
        let Recipe {
            batch,
            accumulation,
            max_grad_norm,
            seed,
            ..
        } = self.recipe;
        assert_eq!(
            prompts.len(),
            batch * accumulation,
            "a step takes batch times accumulation prompts"
        );
        let mut student_random = Random::new(seed, Purpose::Student, self.step);
        let mut fake_random = Random::new(seed, Purpose::Fake, self.step);

        let parts = prompts.chunks(batch).map(|prompts| Part {
            prompts,
            student: self.draw_student(&mut student_random, batch),
            fake: self.draw_fake(&mut fake_random, batch),
            is_unconditional: fake_random.chance(self.recipe.null_probability),
        });
        let parts: Vec<_> = parts.collect();
        let outcomes = self.threads.map(&parts, |part| self.outcome(part));
        let total = outcomes.into_iter().reduce(Outcome::plus);
        let total = total.expect("a step has batches");

        // The device is waited for once in a step, here.
        let share = 1.0 / accumulation as f64;
        let student_squares = total.student_grads.squares();
        let n_student = student_squares.len();
        let sums = total.losses.into_iter().chain(student_squares);
        let sums = sums.chain(total.fake_grads.squares()).collect();
        let sums: Vec<f64> = read(Tensor::cat(sums, 0)).iter().collect();
        let (losses, squares) = sums.split_at(3);
        let (student_squares, fake_squares) = squares.split_at(n_student);
        let norm = |squares: &[f64]| share * squares.iter().sum::<f64>().sqrt();
        let (student_norm, fake_norm) = (norm(student_squares), norm(fake_squares));
        let clipped = |norm| share * clipping(norm, max_grad_norm);
        let student_grads = total.student_grads.scale(clipped(student_norm));
        let fake_grads = total.fake_grads.scale(clipped(fake_norm));
        let [distillation_loss, clip_loss, fake_loss] = [0, 1, 2].map(|at| losses[at] * share);
        let report = Report {
            step: self.step,
            distillation_loss,
            clip_loss,
            fake_loss,
            student_norm,
            fake_norm,
        };
        report.check()?;

        if self.is_students_turn() {
            let rate = self.learning_rate();
            self.student = self
                .student_adamw
                .step(self.student.clone(), student_grads, rate);
            self.ema.update(&self.student);
        }
        self.fake = self.fake_adamw.step(
            self.fake.clone(),
            fake_grads,
            self.recipe.fake_learning_rate,
        );
        self.step += 1;
        Ok(report)
    }

    fn is_students_turn(&self) -> bool {
        let Recipe {
            student_every,
            student_after,
            ..
        } = self.recipe;
        self.step >= student_after && (self.step + 1).is_multiple_of(student_every)
    }

    /// The student's, at its next update.
    fn learning_rate(&self) -> f64 {
        let Recipe {
            learning_rate,
            warm_up,
            ..
        } = self.recipe;
        let next = self.student_adamw.n_steps() + 1;
        if next < warm_up {
            learning_rate * next as f64 / warm_up as f64
        } else {
            learning_rate
        }
    }

    /// Losses and gradients of one batch.
    fn outcome(&self, part: &Part<'_>) -> Outcome {
        // Leaves of their own: graphs that share one are walked one after the other.
        let (student, fake) = (own(&self.student), own(&self.fake));
        let schedule = &self.networks.schedule;
        let context = self.encode(part.prompts);
        let mut outcome = Outcome {
            losses: [(); 3].map(|()| Tensor::zeros([1], &self.device)),
            student_grads: NamedGradients::default(),
            fake_grads: NamedGradients::default(),
        };
        let fixed = if self.is_students_turn() {
            let latents = student_latents(&student, schedule, &part.student, context.clone());
            let fixed = latents.clone().inner();
            let gradient = self.gradient(fixed.clone(), &part.student, context.clone());
            let vsd = distillation_loss(latents.clone(), gradient);
            outcome.losses[0] = vsd.clone().inner();
            let loss = match self.clip_loss(latents, part.prompts) {
                Some((weight, clip)) => {
                    outcome.losses[1] = clip.clone().inner();
                    vsd + clip * weight
                }
                None => vsd,
            };
            outcome.student_grads = NamedGradients::take(&student, &mut loss.backward());
            fixed
        } else {
            let noise = part.student.noise.clone();
            one_step(&student.valid(), schedule, noise, context.clone())
        };

        let context = if part.is_unconditional {
            self.null_context.clone().expand(context.dims())
        } else {
            context
        };
        let loss = fake_loss(&fake, schedule, fixed, &part.fake, context);
        outcome.losses[2] = loss.clone().inner();
        outcome.fake_grads = NamedGradients::take(&fake, &mut loss.backward());
        outcome
    }

    fn encode(&self, prompts: &[String]) -> Tensor<3> {
        let tokens = self.networks.tokenizer.encode_batch(prompts, &self.device);
        let context = self.networks.text_encoder.forward(tokens);
        context.cast(self.recipe.precision.dtype())
    }

    fn noise(&self, random: &mut Random, batch: usize) -> Tensor<4> {
        let [channels, height, width] = self.networks.latents;
        random.normal([batch, channels, height, width], &self.device)
    }

    fn draw_student(&self, random: &mut Random, batch: usize) -> StudentDraw {
        let range = self.recipe.min_timestep..self.recipe.max_timestep + 1;
        StudentDraw {
            noise: self.noise(random, batch),
            timesteps: random.integers(batch, range),
            renoise: self.noise(random, batch),
        }
    }

    fn draw_fake(&self, random: &mut Random, batch: usize) -> FakeDraw {
        FakeDraw {
            timesteps: random.integers(batch, 0..self.networks.schedule.len()),
            noise: self.noise(random, batch),
        }
    }

    fn gradient(&self, latents: Tensor<4>, draw: &StudentDraw, context: Tensor<3>) -> Tensor<4> {
        distillation_gradient(
            &self.networks.teacher,
            &self.fake.valid(),
            &self.networks.schedule,
            self.recipe.guidance(),
            latents,
            draw,
            context,
            self.null_context.clone(),
        )
    }

    fn clip_loss(&self, latents: Tensor<4>, prompts: &[String]) -> Option<(f64, Tensor<1>)> {
        let (recipe, networks) = (self.recipe.clip.as_ref()?, self.networks.clip.as_ref()?);
        let weight = linear_decay(recipe.weight, self.step, self.recipe.steps);
        let tokens = self.networks.tokenizer.encode_batch(prompts, &self.device);
        let texts = networks.clip.embed_texts(tokens);
        let frozen = (
            networks.clip.clone().freeze().train(),
            networks.decoder.clone().freeze().train(),
        );
        Some((
            weight,
            clip_loss(
                &frozen.0,
                &frozen.1,
                latents.cast(self.recipe.precision.dtype()),
                texts,
                recipe.threshold,
            ),
        ))
    }
}

/// The network on the autodiff device, all its weights trained.
fn trainable(unet: &UNet) -> UNet {
    unet.clone().train().unfreeze()
}

/// The same network with parameters of its own on the autodiff graph.
fn own(unet: &UNet) -> UNet {
    unet.valid().train()
}

impl Outcome {
    fn plus(self, other: Self) -> Self {
        let ([a, b, c], [d, e, f]) = (self.losses, other.losses);
        Self {
            losses: [a + d, b + e, c + f],
            student_grads: self.student_grads.plus(other.student_grads),
            fake_grads: self.fake_grads.plus(other.fake_grads),
        }
    }
}

impl Report {
    fn check(&self) -> Result<(), Error> {
        let values = [
            ("distillation loss", self.distillation_loss),
            ("CLIP loss", self.clip_loss),
            ("fake teacher's loss", self.fake_loss),
            ("student's gradient", self.student_norm),
            ("fake teacher's gradient", self.fake_norm),
        ];
        match values.into_iter().find(|(_, value)| !value.is_finite()) {
            Some((what, value)) => Err(Error::NotFinite {
                what,
                value,
                step: self.step,
            }),
            None => Ok(()),
        }
    }
}
