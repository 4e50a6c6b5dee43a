mod check;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use swiftbrush_lora::LoraConfig;
use toml::{Table, Value};

use crate::losses::{GradientWeight, Guidance};
use crate::{
    AdamWConfig, AverageStorage, Error, FrozenStorage, Random, RegressionLoss, RegressionRecipe,
    RewardModel, RewardRecipe, WatchRecipe,
};

pub(crate) use check::{check_adamw, check_lora};

/// All settings of a run.
///
/// The defaults are those of SwiftBrush v2 (arXiv 2408.14176) if the paper states them, and otherwise those
/// of the published code of SwiftBrush v1. The file is TOML and contains only settings that differ;
/// `scheme = "b"` starts from [`efficient`](Self::efficient) instead of [`full`](Self::full).
///
/// ```
/// use swiftbrush_trainer::Recipe;
///
/// let recipe = Recipe::from_toml("scheme = \"b\"\nbatch = 4\nclip.weight = 0.2").unwrap();
/// assert_eq!(recipe.batch, 4);
/// assert_eq!(recipe.clip.unwrap().threshold, 0.35);
/// assert!(Recipe::from_toml("learning_rat = 1e-4").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Recipe {
    /// Total number of steps; each updates the fake teacher, and some also update the student.
    pub steps: u64,
    /// Updates of the fake teacher per update of the student: 1 in the paper, several in DMD2
    /// (arXiv 2405.14867). A student that learns faster than the fake teacher can follow collapses.
    pub student_every: u64,
    /// Steps of the fake teacher before the first update of the student: 0 in the paper. The fake teacher
    /// starts as a copy of the teacher; until it has seen the student's latents, their difference is noise.
    pub student_after: u64,
    /// Number of prompts in a micro-batch.
    pub batch: usize,
    /// Number of micro-batches whose gradients are averaged for one update.
    pub accumulation: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Learning rate of the student.
    pub learning_rate: f64,
    /// Number of student updates over which its learning rate warms up: 0 in the paper. AdamW's first
    /// updates have full length whatever the gradient, and one-step generation amplifies them by 14.6
    /// (1/α_T).
    pub warm_up: u64,
    /// Learning rate of the fake teacher.
    pub fake_learning_rate: f64,
    /// Element type in which networks compute.
    pub precision: Precision,
    /// Keeps only the inputs of the networks' layers for the backward pass, which runs each layer again. At the size of
    /// Stable Diffusion 2.1 this takes a sixth of the activation memory and one more forward pass. Of no use for small
    /// networks.
    pub checkpointing: bool,
    /// Element type in which frozen weights are stored: those of the teacher, the text encoder, CLIP and its decoder, and in
    /// scheme B of the student.
    pub frozen_weights: FrozenStorage,
    /// Memory that holds the student's averaged weights.
    pub averages: AverageStorage,
    /// Settings of both optimisers.
    pub adamw: AdamWConfig,
    /// Norm to which gradients are clipped.
    pub max_grad_norm: f64,
    /// Number of non-finite steps that are skipped in the whole run before it stops with an error.
    pub max_bad_steps: u64,
    /// Decay of the student's averaged weights.
    pub ema_decay: f64,
    /// Guidance scale of the teacher.
    pub guidance: GuidanceScale,
    /// Guidance scale of the fake teacher [default: that of the teacher, as in the code of SwiftBrush v1,
    /// which distils the teacher *without* guidance]. 1 distils the guided teacher, as in DMD2
    /// (arXiv 2405.14867).
    pub fake_guidance: Option<f64>,
    /// Last timestep with guidance; the scale is 1 at later ones. Also applies to the fake teacher unless
    /// `fake_guidance` is set.
    pub max_guided_timestep: Option<usize>,
    /// Weight of the difference between the teachers.
    pub gradient: GradientWeight,
    /// First timestep at which the teachers are compared.
    pub min_timestep: usize,
    /// Last timestep at which the teachers are compared.
    pub max_timestep: usize,
    /// Probability that the fake teacher is trained with the null prompt.
    pub null_probability: f64,
    /// Granularity of the null prompt.
    pub null_prompts: NullPrompts,
    /// Adapters of the fake teacher.
    pub fake_lora: LoraConfig,
    /// Scheme B: adapters of the student, whose other weights are frozen.
    pub student_lora: Option<LoraConfig>,
    /// Scheme B: the clamped CLIP loss.
    pub clip: Option<ClipRecipe>,
    /// Published rewards with clamps of their own, decoded as for the CLIP loss.
    pub rewards: BTreeMap<RewardModel, RewardRecipe>,
    /// Regression to latents that the teacher generates from the same noise.
    pub pairs: Option<RegressionRecipe>,
    /// Regression to latents of real images, from the same latents noised to the last timestep.
    pub denoise: Option<RegressionRecipe>,
    /// Steps between two snapshots.
    pub save_every: u64,
    /// Number of recent snapshots to keep.
    pub keep_last: usize,
    /// Also keep snapshots at multiples of this step; 0 for none.
    pub keep_every: u64,
    /// Steps between two sets of preview images; 0 for none.
    pub preview_every: u64,
    /// Scores on fixed prompts, with alarms.
    pub watch: Option<WatchRecipe>,
}

/// Settings that do not change the weights of a run, which a resumed run may change freely.
pub(crate) const BOOKKEEPING: [&str; 6] = [
    "save_every",
    "keep_last",
    "keep_every",
    "preview_every",
    "max_bad_steps",
    "watch",
];

/// Element type in which networks compute, forward and backward.
///
/// Weights, gradients, optimisers, x̂₀, the difference of the teachers and all losses are always f32. f16
/// is not supported, because its gradients would need scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16, on devices that support it.
    Bf16,
}

impl Precision {
    /// The corresponding element type of burn.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// Scale of classifier-free guidance: `guidance = 4.5` or `guidance = { uniform = [0.5, 4.0] }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum GuidanceScale {
    /// One scale.
    Constant(f64),
    /// A scale for each sample, uniform between two bounds (SNOOPI, arXiv 2412.02687).
    Uniform {
        /// Lower and upper bound.
        uniform: [f64; 2],
    },
}

/// Granularity of the null prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NullPrompts {
    /// One draw per micro-batch, as in the code of SwiftBrush v1.
    Batch,
    /// One draw per sample.
    Sample,
}

/// Settings of the clamped CLIP loss (arXiv 2408.14176, §4.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipRecipe {
    /// Weight at the first step, which decays linearly to 0 at the last step.
    pub weight: f64,
    /// τ, the cosine above which an image gets no gradient.
    pub threshold: f64,
}

impl Default for ClipRecipe {
    fn default() -> Self {
        Self {
            weight: 0.1,
            threshold: swiftbrush_clamped_clip_loss::DEFAULT_THRESHOLD,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            steps: 40_000,
            student_every: 1,
            student_after: 0,
            batch: 16,
            accumulation: 4,
            seed: 0,
            learning_rate: 1e-6,
            warm_up: 0,
            fake_learning_rate: 1e-3,
            precision: Precision::F32,
            checkpointing: true,
            frozen_weights: FrozenStorage::F32,
            averages: AverageStorage::Device,
            adamw: AdamWConfig::default(),
            max_grad_norm: 1.0,
            max_bad_steps: 0,
            ema_decay: 0.9999,
            guidance: GuidanceScale::Constant(4.5),
            fake_guidance: None,
            max_guided_timestep: None,
            gradient: GradientWeight::Variance,
            min_timestep: 20,
            max_timestep: 980,
            null_probability: 0.1,
            null_prompts: NullPrompts::Batch,
            fake_lora: LoraConfig::new(64, 128.0, ["to_q", "to_v"]),
            student_lora: None,
            clip: None,
            rewards: BTreeMap::new(),
            pairs: None,
            denoise: None,
            save_every: 500,
            keep_last: 2,
            keep_every: 0,
            preview_every: 500,
            watch: None,
        }
    }
}

impl Recipe {
    /// Scheme A of the paper: trains all weights of the student, with variational score distillation only.
    pub fn full() -> Self {
        Self::default()
    }

    /// Scheme B: a low-rank student and the clamped CLIP loss through a tiny decoder.
    pub fn efficient() -> Self {
        Self {
            student_lora: Some(LoraConfig::new(256, 512.0, ["to_q", "to_k", "to_v"])),
            clip: Some(ClipRecipe::default()),
            ..Self::default()
        }
    }

    /// Storage of the initial student's weights, which scheme A trains.
    pub(crate) fn student_storage(&self) -> FrozenStorage {
        match self.student_lora {
            Some(_) => self.frozen_weights,
            None => FrozenStorage::F32,
        }
    }

    /// Returns whether the networks of CLIP are used if there are any: for the loss or the watcher's score.
    pub(crate) fn uses_clip(&self) -> bool {
        self.clip.is_some() || self.watch.is_some()
    }

    /// Returns whether a regression loss is LPIPS.
    pub(crate) fn uses_lpips(&self) -> bool {
        let regressions = self.pairs.iter().chain(&self.denoise);
        regressions
            .into_iter()
            .any(|it| it.loss == RegressionLoss::Lpips)
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, names an unknown setting, or has a value out of range.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let bad = |reason: String| Error::Recipe {
            path: path.as_ref().to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
        Self::from_toml(&text).map_err(bad)
    }

    /// Parses TOML.
    ///
    /// # Errors
    ///
    /// If the text names an unknown setting or has a value out of range; the error names it.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let mut settings: Table = text.parse().map_err(|error| format!("{error}"))?;
        let base = match settings.remove("scheme") {
            None => Self::full(),
            Some(Value::String(scheme)) if scheme == "a" => Self::full(),
            Some(Value::String(scheme)) if scheme == "b" => Self::efficient(),
            Some(other) => return Err(format!("scheme = {other}: expected \"a\" or \"b\"")),
        };
        let mut merged = Table::try_from(base).map_err(|error| error.to_string())?;
        merge(&mut merged, settings);
        let recipe: Self = merged.try_into().map_err(|error| format!("{error}"))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Guidance at some timesteps, drawn from `random` if the recipe says so.
    pub(crate) fn guidance(&self, timesteps: &[usize], random: &mut Random) -> Guidance {
        let scale = |&timestep: &usize| {
            let scale = match self.guidance {
                GuidanceScale::Constant(scale) => scale,
                GuidanceScale::Uniform {
                    uniform: [low, high],
                } => low + (high - low) * random.uniform(),
            };
            let is_guided = self.max_guided_timestep.is_none_or(|last| timestep <= last);
            if is_guided { scale } else { 1.0 }
        };
        let teacher: Vec<f64> = timesteps.iter().map(scale).collect();
        let fake = match self.fake_guidance {
            Some(scale) => vec![scale; timesteps.len()],
            None => teacher.clone(),
        };
        Guidance { teacher, fake }
    }
}

/// Overwrites the values of `base`, table by table.
fn merge(base: &mut Table, changes: Table) {
    for (name, value) in changes {
        match (base.get_mut(&name), value) {
            (Some(Value::Table(base)), Value::Table(changes)) => merge(base, changes),
            (_, value) => drop(base.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_survives_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        let mut recipe = Recipe::efficient();
        recipe.guidance = GuidanceScale::Uniform {
            uniform: [0.5, 4.0],
        };
        recipe.max_guided_timestep = Some(900);
        let reward = RewardRecipe {
            weight: 1e-3,
            threshold: 25.0,
        };
        recipe.rewards.insert(RewardModel::PickScore, reward);
        std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(Recipe::open(&path).unwrap(), recipe);
    }

    #[test]
    fn unknown_settings_and_values_out_of_range_are_rejected_by_name() {
        for (text, named) in [
            ("learning_rat = 1e-4", "learning_rat"),
            ("learning_rate = nan", "learning_rate"),
            ("learning_rate = inf", "learning_rate"),
            ("batch = 0", "batch"),
            ("student_every = 0", "student_every"),
            ("keep_last = 0", "keep_last"),
            ("null_probability = 2.0", "null_probability"),
            ("min_timestep = 990", "min_timestep"),
            ("guidance = nan", "guidance"),
            ("guidance = { uniform = [4.0, 0.5] }", "guidance"),
            ("guidance = { normal = [4.0, 0.5] }", "guidance"),
            ("fake_guidance = inf", "fake_guidance"),
            ("scheme = \"c\"", "scheme"),
            ("scheme = \"b\"\nclip.weight = nan", "clip.weight"),
            ("scheme = \"b\"\nclip.threshold = nan", "clip.threshold"),
            ("rewards.hps.weight = 0.1", "threshold"),
            (
                "rewards.hps = { weight = nan, threshold = 0.3 }",
                "rewards.hps.weight",
            ),
            (
                "rewards.pick_score = { weight = 1e-3, threshold = inf }",
                "rewards.pick_score.threshold",
            ),
            ("rewards.hpsv3 = { weight = 0.1, threshold = 9.0 }", "hpsv3"),
            ("fake_lora.rank = 0", "fake_lora.rank"),
            ("fake_lora.alpha = 0.0", "fake_lora.alpha"),
            ("scheme = \"b\"\nstudent_lora.rank = 0", "student_lora.rank"),
            ("fake_lora.target_modules = []", "fake_lora.target_modules"),
            ("adamw.beta2 = 1.0", "adamw.beta2"),
            ("adamw.moments = \"4bit\"", "moments"),
            ("frozen_weights = \"f8\"", "frozen_weights"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("recipe.toml");
            std::fs::write(&path, text).unwrap();
            let error = Recipe::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("recipe.toml"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_scheme_is_the_start_that_settings_change() {
        let open = |text| Recipe::from_toml(text).unwrap();
        assert_eq!(open(""), Recipe::full());
        assert_eq!(open("scheme = \"a\""), Recipe::full());
        assert_eq!(open("scheme = \"b\""), Recipe::efficient());
        let recipe = open("scheme = \"b\"\n[student_lora]\nrank = 8");
        let lora = recipe.student_lora.unwrap();
        assert_eq!((lora.rank, lora.alpha), (8, 512.0));
        assert_eq!(lora.target_modules, ["to_q", "to_k", "to_v"]);
    }

    #[test]
    fn guidance_is_constant_or_drawn_for_each_sample_and_off_above_a_timestep() {
        use crate::Purpose;
        let mut random = Random::new(0, Purpose::Guidance, 0);
        let mut recipe = Recipe::full();
        let constant = recipe.guidance(&[20, 980], &mut random);
        assert_eq!(constant, Guidance::constant(4.5, 4.5, 2));
        recipe.max_guided_timestep = Some(900);
        let cut = recipe.guidance(&[900, 901], &mut random);
        assert_eq!([&cut.teacher, &cut.fake], [&[4.5, 1.0]; 2]);
        recipe.fake_guidance = Some(1.0);
        recipe.guidance = GuidanceScale::Uniform {
            uniform: [0.5, 4.0],
        };
        let drawn = recipe.guidance(&[500; 1000], &mut random);
        assert_eq!(drawn.fake, [1.0; 1000]);
        assert!(drawn.teacher.iter().all(|scale| (0.5..4.0).contains(scale)));
        let mean = drawn.teacher.iter().sum::<f64>() / 1000.0;
        // The standard error is 3.5 / √12 / √1000 = 0.032.
        assert!((mean - 2.25).abs() < 0.13, "{mean}");
    }
}
