use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use swiftbrush_checkpoint::read;
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::attach;
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;

use crate::fingerprint::hash;
use crate::gradients::clipping;
use crate::losses::{
    Losses, Teachers, distillation_gradient, distillation_loss, fake_loss, student_latents,
};
use crate::micro_batch::{MicroBatch, Outcome, Sizes, draw, with_null};
use crate::networks::setting;
use crate::parameters::with_trained;
use crate::{
    AdamW, ClipReward, Ema, Error, Fingerprint, NamedGradients, Networks, Purpose, Random, Recipe,
    Report, Reward, Snapshot, Student, Threads,
};

/// A run of SwiftBrush v2: the student, the fake teacher that tracks it, and their optimisers.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use burn::tensor::Device;
/// use swiftbrush_clip::{TextConfig, Tokenizer};
/// use swiftbrush_lora::LoraConfig;
/// use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
/// use swiftbrush_trainer::{Distiller, Networks, Recipe};
/// use swiftbrush_unet::UNetConfig;
///
/// let device = Device::flex();
/// let tokenizer = Tokenizer::clip("!");
/// let text = TextConfig {
///     vocab_size: tokenizer.vocabulary(),
///     max_position_embeddings: tokenizer.length(),
///     ..TextConfig::tiny()
/// };
/// let networks = Networks::new(
///     tokenizer,
///     text.init(&device),
///     [UNetConfig::tiny().init(&device), UNetConfig::tiny().init(&device)],
///     NoiseSchedule::new(&SchedulerConfig::default()),
///     [4, 8, 8],
/// );
/// let mut recipe = Recipe::full();
/// (recipe.batch, recipe.accumulation) = (1, 1);
/// recipe.fake_lora = LoraConfig::new(2, 4.0, ["to_q", "to_v"]);
///
/// let mut distiller = Distiller::new(recipe, networks, &device)?;
/// let report = distiller.step(&["a red circle".to_owned()])?;
/// assert!(report.losses.fake > 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Distiller {
    recipe: Recipe,
    fingerprint: Fingerprint,
    frozen: Frozen,
    rewards: Vec<Box<dyn Reward>>,
    /// On the autodiff device, like the fake teacher.
    student: UNet,
    fake: UNet,
    student_adamw: AdamW,
    fake_adamw: AdamW,
    ema: Ema,
    step: u64,
    n_skipped: u64,
    threads: Threads,
}

/// Everything that training does not change.
#[derive(Debug)]
struct Frozen {
    tokenizer: Tokenizer,
    text_encoder: TextEncoder,
    teacher: UNet,
    schedule: NoiseSchedule,
    student_schedule: NoiseSchedule,
    null_context: Tensor<3>,
    sizes: Sizes,
}

impl Distiller {
    /// Creates a run at its first step.
    ///
    /// # Errors
    ///
    /// If a setting is out of range or matches nothing in the networks, a network is not in f32 on
    /// `device`, the networks do not match each other, or the recipe has a CLIP loss but there is no CLIP.
    pub fn new(recipe: Recipe, networks: Networks, device: &Device) -> Result<Self, Error> {
        recipe.check().map_err(setting)?;
        let dtype = DType::from(recipe.precision.dtype());
        if !device.supports_dtype(dtype) {
            let reason = format!("{device:?} does not support {dtype:?}; set precision = \"f32\"");
            return Err(setting(reason));
        }
        networks.check(&recipe, device)?;
        let mut fingerprint = Fingerprint::of_recipe(&recipe);
        fingerprint.set("teacher", hash(&networks.teacher));
        fingerprint.set("student", hash(&networks.student));
        fingerprint.set("text_encoder", hash(&networks.text_encoder));
        let schedules = (&networks.schedule, &networks.student_schedule);
        fingerprint.set("schedules", schedules_hash(schedules));

        let reward = clip_reward(&recipe, &networks, device);
        let student = student(&recipe, &networks.student)?;
        let teacher = trainable(&networks.teacher);
        let distiller = Self {
            fake: attach(teacher, &recipe.fake_lora, recipe.seed ^ 1)?,
            ema: Ema::new(&student, recipe.ema_decay),
            student,
            frozen: Frozen::new(&recipe, networks, device),
            fingerprint,
            rewards: Vec::new(),
            student_adamw: AdamW::new(recipe.adamw),
            fake_adamw: AdamW::new(recipe.adamw),
            step: 0,
            n_skipped: 0,
            threads: Threads::new(1),
            recipe,
        };
        match reward {
            Some(reward) => distiller.with_reward(Box::new(reward)),
            None => Ok(distiller),
        }
    }

    /// Adds a loss on the student's latents.
    ///
    /// # Errors
    ///
    /// If its name is taken by another loss.
    pub fn with_reward(mut self, reward: Box<dyn Reward>) -> Result<Self, Error> {
        let name = reward.name();
        let is_taken = self.rewards.iter().any(|other| other.name() == name);
        if is_taken || ["distillation", "fake"].contains(&name) {
            return Err(Error::RewardName(name.to_owned()));
        }
        self.fingerprint
            .set(&format!("rewards.{name}"), reward.hash());
        self.rewards.push(reward);
        Ok(self)
    }

    /// Adds an input to the fingerprint, such as the hash of the prompts.
    pub fn with_input(mut self, name: &str, hash: String) -> Self {
        self.fingerprint.set(name, hash);
        self
    }

    /// Computes the `accumulation` micro-batches of a step on this many threads [default: 1]. This does
    /// not change results, and is faster for small networks on a CPU.
    pub fn with_threads(mut self, count: usize) -> Self {
        self.threads = Threads::new(count);
        self
    }

    /// Resumes from a snapshot of the same run.
    ///
    /// # Errors
    ///
    /// If settings or inputs differ from those of the snapshot and are not listed in `accepted` by their
    /// names in the [`Fingerprint`], or if the tensors belong to other networks. `source` is the file named
    /// in the error.
    pub fn restore(
        mut self,
        snapshot: &Snapshot,
        source: &Path,
        accepted: &[String],
    ) -> Result<Self, Error> {
        let changes = self
            .fingerprint
            .changes(&saved_fingerprint(snapshot, source)?, accepted)?;
        if !changes.is_empty() {
            let path = source.to_owned();
            return Err(Error::Changed { path, changes });
        }
        let device = &self.frozen.sizes.device;
        self.student = with_trained(self.student, snapshot.group("student"), source)?;
        self.fake = with_trained(self.fake, snapshot.group("fake"), source)?;
        self.student_adamw = snapshot.adamw("student_adamw", self.recipe.adamw, device);
        self.fake_adamw = snapshot.adamw("fake_adamw", self.recipe.adamw, device);
        self.ema = snapshot.ema("ema", self.recipe.ema_decay, device);
        self.step = snapshot.step();
        self.n_skipped = snapshot.counter("skipped");
        Ok(self)
    }

    /// The state of the run: trained weights, their averages and optimisers, counters, recipe and
    /// fingerprint. Frozen weights are not included.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.step);
        snapshot.set_counter("skipped", self.n_skipped);
        let json = |value| serde_json::to_string(value).expect("settings are plain data");
        snapshot.set_text(FINGERPRINT, json(&self.fingerprint));
        let recipe = serde_json::to_string(&self.recipe);
        snapshot.set_text(RECIPE, recipe.expect("settings are plain data"));
        snapshot.insert_trained("student", &self.student);
        snapshot.insert_trained("fake", &self.fake);
        snapshot.insert_adamw("student_adamw", &self.student_adamw);
        snapshot.insert_adamw("fake_adamw", &self.fake_adamw);
        snapshot.insert_ema("ema", &self.ema);
        snapshot
    }

    /// The settings of the run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Settings and inputs that determine the run's weights.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Number of completed steps.
    pub fn n_steps(&self) -> u64 {
        self.step
    }

    /// The student with its current weights, adapters merged, without autodiff.
    pub fn student(&self) -> UNet {
        self.trained_student().merged()
    }

    /// The student with its averaged weights, adapters merged, without autodiff.
    pub fn averaged_student(&self) -> UNet {
        self.trained_student().averaged().merged()
    }

    /// The student with its adapters and averages.
    pub fn trained_student(&self) -> Student {
        let lora = self.recipe.student_lora.clone();
        Student::new(self.student.valid(), lora, self.ema.clone())
    }

    /// Generates latents for some prompts with the averaged student, using the same noise at every step.
    ///
    /// # Shapes
    ///
    /// - returns: `[prompts, channels, height, width]`
    pub fn preview(&self, prompts: &[String]) -> Tensor<4> {
        let mut random = Random::new(self.recipe.seed, Purpose::Preview, 0);
        let noise = self.frozen.sizes.noise(&mut random, prompts.len());
        let (student, schedule) = (self.averaged_student(), &self.frozen.student_schedule);
        // One at a time, because a batch would take more memory than a step.
        let latents = prompts.iter().enumerate().map(|(index, prompt)| {
            let context = self.frozen.encode(&self.recipe, &[prompt]);
            one_step(
                &student,
                schedule,
                noise.clone().narrow(0, index, 1),
                context,
            )
        });
        Tensor::cat(latents.collect(), 0)
    }

    /// Updates the fake teacher, and in every `student_every`-th step after the first `student_after` also
    /// the student.
    ///
    /// A step with a non-finite loss or gradient updates nothing; up to `max_bad_steps` such steps are
    /// skipped.
    ///
    /// # Errors
    ///
    /// If a loss or a gradient is not finite and no more steps may be skipped.
    ///
    /// # Panics
    ///
    /// If there are not `batch · accumulation` prompts.
    pub fn step(&mut self, prompts: &[String]) -> Result<Report, Error> {
        let Recipe {
            batch,
            accumulation,
            max_grad_norm,
            ..
        } = self.recipe;
        assert_eq!(
            prompts.len(),
            batch * accumulation,
            "a step takes batch times accumulation prompts"
        );
        let micro_batches = draw(&self.recipe, &self.frozen.sizes, self.step, prompts);
        let total = self.accumulate(&micro_batches);
        let share = 1.0 / accumulation as f64;
        let mut report = self.report(&total, share);
        if let Some((what, value)) = report.not_finite() {
            self.skip(what, value)?;
            report.is_skipped = true;
            return Ok(report);
        }
        let clipped = |norm| share * clipping(norm, max_grad_norm);
        let student_grads = total.student_grads.scale(clipped(report.student_norm));
        let fake_grads = total.fake_grads.scale(clipped(report.fake_norm));
        if self.is_students_turn() {
            self.student =
                self.student_adamw
                    .step(self.student.clone(), student_grads, report.learning_rate);
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

    /// Sums losses and gradients in micro-batch order, so that results are bit-identical for any number of
    /// threads. At most one outcome per thread exists at a time.
    fn accumulate(&self, micro_batches: &[MicroBatch<'_>]) -> Outcome {
        let waves = micro_batches.chunks(self.threads.count());
        let outcomes = waves.flat_map(|wave| self.threads.map(wave, |batch| self.outcome(batch)));
        let total = outcomes.reduce(Outcome::plus);
        total.expect("a step has at least one micro-batch")
    }

    /// Reads losses and norms, the only time a step waits for the device.
    fn report(&self, total: &Outcome, share: f64) -> Report {
        let student_squares = total.student_grads.squares();
        let n_student = student_squares.len();
        let losses = total.losses.iter().map(|(_, loss)| loss.clone());
        let sums = losses.chain(student_squares);
        let sums = sums.chain(total.fake_grads.squares()).collect();
        let sums: Vec<f64> = read(Tensor::cat(sums, 0)).iter().collect();
        let n_losses = total.losses.iter().count();
        let (losses, squares) = sums.split_at(n_losses);
        let (student_squares, fake_squares) = squares.split_at(n_student);
        let norm = |squares: &[f64]| share * squares.iter().sum::<f64>().sqrt();
        let mut losses = losses.iter();
        let mut next = |_| losses.next().map_or(f64::NAN, |loss| loss * share);
        Report {
            step: self.step,
            losses: total.losses.clone().map(&mut next),
            student_norm: norm(student_squares),
            fake_norm: norm(fake_squares),
            learning_rate: match self.is_students_turn() {
                true => self.learning_rate(),
                false => 0.0,
            },
            is_skipped: false,
        }
    }

    fn skip(&mut self, what: String, value: f64) -> Result<(), Error> {
        let step = self.step;
        if self.n_skipped >= self.recipe.max_bad_steps {
            let allow = self.n_skipped + 1;
            return Err(Error::NotFinite {
                what,
                value,
                step,
                allow,
            });
        }
        tracing::warn!(step, value, "skipped a step: the {what} is not finite");
        self.n_skipped += 1;
        self.step += 1;
        Ok(())
    }

    fn is_students_turn(&self) -> bool {
        let Recipe {
            student_every,
            student_after,
            ..
        } = self.recipe;
        self.step >= student_after && (self.step + 1).is_multiple_of(student_every)
    }

    /// Learning rate of the student's next update.
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

    /// Computes the losses and gradients of a micro-batch.
    fn outcome(&self, batch: &MicroBatch<'_>) -> Outcome {
        let context = self.frozen.encode(&self.recipe, batch.prompts);
        let mut losses = Losses {
            distillation: self.zero(),
            rewards: BTreeMap::new(),
            fake: self.zero(),
        };
        for reward in &self.rewards {
            losses.rewards.insert(reward.name().to_owned(), self.zero());
        }
        let (latents, student_grads) = match self.is_students_turn() {
            true => self.student_step(batch, context.clone(), &mut losses),
            false => {
                let (student, schedule) = (self.student.valid(), &self.frozen.student_schedule);
                let noise = batch.student.noise.clone();
                let latents = one_step(&student, schedule, noise, context.clone());
                (latents, NamedGradients::default())
            }
        };
        let context = with_null(context, &self.frozen.null_context, &batch.is_null);
        let fake = own(&self.fake);
        let loss = fake_loss(&fake, &self.frozen.schedule, latents, &batch.fake, context);
        losses.fake = loss.clone().inner();
        Outcome {
            losses,
            student_grads,
            fake_grads: NamedGradients::take(&fake, &mut loss.backward()),
        }
    }

    fn zero(&self) -> Tensor<1> {
        Tensor::zeros([1], &self.frozen.sizes.device)
    }

    /// Computes the student's detached latents and its gradients, and sets its losses.
    fn student_step(
        &self,
        batch: &MicroBatch<'_>,
        context: Tensor<3>,
        losses: &mut Losses<Tensor<1>>,
    ) -> (Tensor<4>, NamedGradients) {
        let (student, frozen) = (own(&self.student), &self.frozen);
        let schedule = &frozen.student_schedule;
        let latents = student_latents(&student, schedule, &batch.student, context.clone());
        let fixed = latents.clone().inner();
        let teachers = Teachers {
            teacher: &frozen.teacher,
            fake: &self.fake.valid(),
            schedule: &frozen.schedule,
        };
        let gradient = distillation_gradient(
            teachers,
            &batch.guidance,
            self.recipe.gradient,
            fixed.clone(),
            &batch.student,
            context,
            frozen.null_context.clone(),
        );
        let mut total = distillation_loss(latents.clone(), gradient);
        losses.distillation = total.clone().inner();
        for reward in &self.rewards {
            let weight = reward.weight(self.step, self.recipe.steps);
            let loss = reward.loss(latents.clone(), batch.prompts);
            let value = loss.clone().inner();
            losses.rewards.insert(reward.name().to_owned(), value);
            total = total + loss * weight;
        }
        drop(latents);
        let grads = NamedGradients::take(&student, &mut total.backward());
        (fixed, grads)
    }
}

/// Keys of texts in a snapshot.
pub(crate) const FINGERPRINT: &str = "fingerprint";
pub(crate) const RECIPE: &str = "recipe";

/// The fingerprint in a snapshot.
pub(crate) fn saved_fingerprint(snapshot: &Snapshot, source: &Path) -> Result<Fingerprint, Error> {
    let bad = |reason: String| Error::Snapshot {
        path: source.to_owned(),
        reason,
    };
    let text = snapshot.text(FINGERPRINT).ok_or_else(|| {
        bad(
            "it has no fingerprint, as snapshots of earlier versions: finish the run with the \
             version that wrote it, or start again in another folder"
                .to_owned(),
        )
    })?;
    serde_json::from_str(text).map_err(|error| bad(format!("{FINGERPRINT}: {error}")))
}

impl Frozen {
    fn new(recipe: &Recipe, networks: Networks, device: &Device) -> Self {
        let empty = networks.tokenizer.encode_batch(&[""], device);
        let null_context = networks.text_encoder.forward(empty);
        Self {
            null_context: null_context.cast(recipe.precision.dtype()),
            sizes: Sizes {
                latents: networks.latents,
                timesteps: networks.schedule.len(),
                device: device.clone(),
            },
            tokenizer: networks.tokenizer,
            text_encoder: networks.text_encoder,
            teacher: networks.teacher,
            schedule: networks.schedule,
            student_schedule: networks.student_schedule,
        }
    }

    /// Encodes prompts in the element type that denoisers compute in.
    fn encode<S: AsRef<str>>(&self, recipe: &Recipe, prompts: &[S]) -> Tensor<3> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.sizes.device);
        let context = self.text_encoder.forward(tokens);
        context.cast(recipe.precision.dtype())
    }
}

fn clip_reward(recipe: &Recipe, networks: &Networks, device: &Device) -> Option<ClipReward> {
    let (clip, networks_of_clip) = (recipe.clip.clone()?, networks.clip.clone()?);
    let (tokenizer, dtype) = (networks.tokenizer.clone(), recipe.precision.dtype());
    Some(ClipReward::new(
        networks_of_clip,
        tokenizer,
        clip,
        dtype,
        device,
    ))
}

/// The initial student of a recipe on the autodiff device.
pub(crate) fn student(recipe: &Recipe, base: &UNet) -> Result<UNet, Error> {
    Ok(match &recipe.student_lora {
        Some(lora) => attach(trainable(base), lora, recipe.seed)?,
        None => trainable(base),
    })
}

fn schedules_hash((teacher, student): (&NoiseSchedule, &NoiseSchedule)) -> String {
    use sha2::{Digest, Sha256};
    let text = format!("{teacher:?} {student:?}");
    crate::fingerprint::hex(&Sha256::digest(text))
}

/// Moves the network to the autodiff device with all its weights trained.
fn trainable(unet: &UNet) -> UNet {
    unet.clone().train().unfreeze()
}

/// Gives the network its own leaves, because burn processes graphs that share leaves sequentially.
fn own(unet: &UNet) -> UNet {
    unet.valid().train()
}
