mod outcome;
mod ranks;
mod regularize;
mod step;
mod watch;

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;

use self::ranks::{Group, OPTIMIZERS};
use crate::fingerprint::{FINGERPRINT, RECIPE, hash, saved_fingerprint};
use crate::frozen::Frozen;
use crate::networks::setting;
use crate::regression::Regularizer;
use crate::trained::{Trained, trainable};
use crate::{
    AdamW, AverageStorage, ClipReward, Ema, Error, Fingerprint, Networks, Purpose, Random, Recipe,
    Reward, Snapshot, Student, Threads,
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
    regularizers: Vec<Regularizer>,
    student: Trained,
    fake: Trained,
    ema: Ema,
    step: u64,
    n_skipped: u64,
    threads: Threads,
    group: Option<Group>,
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
        let networks = networks.stored(&recipe)?;
        networks.check(&recipe, device)?;
        let mut fingerprint = Fingerprint::of_recipe(&recipe);
        fingerprint.set("teacher", hash(&networks.teacher));
        fingerprint.set("student", hash(&networks.student));
        fingerprint.set("text_encoder", hash(&networks.text_encoder));
        let schedules = (&networks.schedule, &networks.student_schedule);
        fingerprint.set("schedules", schedules_hash(schedules));
        if let Some(lpips) = networks.lpips.as_ref().filter(|_| recipe.uses_lpips()) {
            fingerprint.set("lpips", lpips.hash());
        }

        let rewards = rewards(&recipe, &networks, device);
        let student_lora = recipe.student_lora.as_ref();
        let student = trainable(&networks.student, student_lora, recipe.seed)?;
        let ema = Ema::new(&student, recipe.ema_decay);
        let fake_lora = Some(&recipe.fake_lora);
        let fake = trainable(&networks.teacher, fake_lora, recipe.seed ^ 1)?;
        let distiller = Self {
            ema: match recipe.averages {
                AverageStorage::Device => ema,
                // Without a folder the host is the next best place.
                AverageStorage::Host | AverageStorage::File => ema.on_host(),
            },
            student: Trained::new(student, AdamW::new(recipe.adamw)),
            fake: Trained::new(fake, AdamW::new(recipe.adamw)),
            frozen: Frozen::new(&recipe, networks, device),
            fingerprint,
            rewards: Vec::new(),
            regularizers: Vec::new(),
            step: 0,
            n_skipped: 0,
            threads: Threads::new(1),
            group: None,
            recipe,
        };
        rewards
            .into_iter()
            .try_fold(distiller, |distiller, reward| {
                distiller.with_reward(Box::new(reward))
            })
    }

    /// Adds a loss on the student's latents.
    ///
    /// # Errors
    ///
    /// If its name is taken by another loss.
    pub fn with_reward(mut self, reward: Box<dyn Reward>) -> Result<Self, Error> {
        let name = reward.name();
        let is_taken = self.rewards.iter().any(|other| other.name() == name);
        if is_taken || ["distillation", "fake", "pairs", "denoise"].contains(&name) {
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

    /// Keeps averaged weights in a file in this folder if the recipe has `averages = "file"`; without a folder they stay on
    /// the host.
    pub fn with_folder(mut self, folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        if self.recipe.averages == AverageStorage::File {
            self.ema = self.ema.in_folder(folder);
        }
        self
    }

    /// Computes the `accumulation` micro-batches of a step on this many threads, which changes no
    /// result; on a CPU it is faster for small networks. The default is 1.
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
        source: impl AsRef<Path>,
        accepted: &[String],
    ) -> Result<Self, Error> {
        let source = source.as_ref();
        let changes = self
            .fingerprint
            .changes(&saved_fingerprint(snapshot, source)?, accepted)?;
        if !changes.is_empty() {
            let path = source.to_owned();
            return Err(Error::Changed { path, changes });
        }
        let device = &self.frozen.sizes.device;
        // Averages first: the initial ones share the weights that the others replace.
        let ema = snapshot.ema("ema", self.recipe.ema_decay, device);
        self.ema = ema.placed_as(&self.ema)?;
        let adamw = |group| snapshot.adamw(group, self.recipe.adamw, device);
        let [of_student, of_fake] = OPTIMIZERS;
        let student = snapshot.group("student");
        self.student = self
            .student
            .restore(student, || adamw(of_student), source)?;
        let fake = snapshot.group("fake");
        self.fake = self.fake.restore(fake, || adamw(of_fake), source)?;
        self.step = snapshot.step();
        self.n_skipped = snapshot.counter("skipped");
        self.keep_own_moments();
        Ok(self)
    }

    /// The state of the run: trained weights, their averages and optimisers, counters, recipe and
    /// fingerprint. Frozen weights are not included. With several ranks, it has the moments of this one only;
    /// [`save`](Self::save) collects all.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.step);
        snapshot.set_counter("skipped", self.n_skipped);
        let json = |value| serde_json::to_string(value).expect("settings are plain data");
        snapshot.set_text(FINGERPRINT, json(&self.fingerprint));
        let recipe = serde_json::to_string(&self.recipe);
        snapshot.set_text(RECIPE, recipe.expect("settings are plain data"));
        let trained = [("student", &self.student), ("fake", &self.fake)];
        for ((name, trained), optimizer) in trained.into_iter().zip(OPTIMIZERS) {
            snapshot.insert_trained(name, trained.unet());
            snapshot.insert_adamw(optimizer, trained.adamw());
        }
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
        Student::new(self.student.plain(), lora, self.ema.clone())
    }

    /// Generates latents for some prompts with the averaged student, using the same noise at every step.
    ///
    /// # Shapes
    ///
    /// - returns: `[prompts, channels, height, width]`
    pub fn preview(&self, prompts: &[String]) -> Tensor<4> {
        let mut random = Random::new(self.recipe.seed, Purpose::Preview, 0);
        let noise = self.frozen.sizes.noise(&mut random, prompts.len());
        // Unmerged adapters share the frozen weights.
        let student = self.trained_student().averaged();
        let schedule = &self.frozen.student_schedule;
        // One by one: a batch would take more memory than a step.
        let latents = prompts.iter().enumerate().map(|(index, prompt)| {
            let context = self.frozen.encoder.encode(&[prompt]);
            one_step(
                student.unet(),
                schedule,
                noise.clone().narrow(0, index, 1),
                context,
            )
        });
        Tensor::cat(latents.collect(), 0)
    }
}

/// The CLIP loss and the published rewards of a recipe.
fn rewards(recipe: &Recipe, networks: &Networks, device: &Device) -> Vec<ClipReward> {
    let dtype = recipe.precision.dtype();
    let clip = recipe.clip.iter().zip(&networks.clip).map(|(clip, found)| {
        let (found, tokenizer) = (found.clone(), networks.tokenizer.clone());
        ClipReward::new(found, tokenizer, clip.clone(), dtype, device)
    });
    let published = recipe.rewards.iter().filter_map(|(&model, reward)| {
        let found = networks.rewards.get(&model)?.clone();
        Some(ClipReward::published(model, found, reward, dtype, device))
    });
    let rewards = clip.chain(published);
    rewards
        .map(|reward| match recipe.checkpointing {
            true => reward.with_checkpoints(),
            false => reward,
        })
        .collect()
}

fn schedules_hash((teacher, student): (&NoiseSchedule, &NoiseSchedule)) -> String {
    use sha2::{Digest, Sha256};
    let text = format!("{teacher:?} {student:?}");
    crate::fingerprint::hex(&Sha256::digest(text))
}
