use std::path::Path;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use swiftbrush_lora::LoraConfig;

use crate::losses::Guidance;
use crate::{AdamWConfig, Error};

/// All settings of a run; the file is TOML and may leave out what it does not change.
///
/// The defaults are the recipe of SwiftBrush v2 (arXiv 2408.14176) where it gives one, and of the
/// published code of SwiftBrush v1 where it does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Steps in all; each is an update of the fake teacher, and of the student where it is its turn.
    pub steps: u64,
    /// Steps of the fake teacher for one of the student: 1 in the paper; DMD2 has several (arXiv 2405.14867).
    /// A student that learns faster than the fake teacher follows it collapses.
    pub student_every: u64,
    /// Steps that the fake teacher has alone first: 0 in the paper. It begins as the teacher itself, so until it
    /// has seen what the student makes, their difference is noise.
    pub student_after: u64,
    /// Prompts in a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged for one update.
    pub accumulation: usize,
    /// Everything random follows from this number.
    pub seed: u64,
    /// Learning rate of the student.
    pub learning_rate: f64,
    /// Updates of the student over which its learning rate rises: 0 in the paper. AdamW's first updates are of
    /// full length whatever the gradient, and one step divides by α_T: each is felt 14.6 times.
    pub warm_up: u64,
    /// Learning rate of the fake teacher.
    pub fake_learning_rate: f64,
    /// What networks compute in.
    pub precision: Precision,
    /// Both optimisers.
    pub adamw: AdamWConfig,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: f64,
    /// Decay of the student's averaged weights.
    pub ema_decay: f64,
    /// Scale of classifier-free guidance of the teacher.
    pub guidance: f64,
    /// The fake teacher's; without it the teacher's, as in the code of SwiftBrush v1, which leads the student to
    /// what the teacher paints *without* guidance. 1 leads it to what the guided teacher paints, as in DMD2
    /// (arXiv 2405.14867).
    pub fake_guidance: Option<f64>,
    /// First timestep at which the two are compared.
    pub min_timestep: usize,
    /// Last timestep at which the two are compared.
    pub max_timestep: usize,
    /// Probability that a batch of the fake teacher is trained without its prompts.
    pub null_probability: f64,
    /// Adapters of the fake teacher.
    pub fake_lora: LoraConfig,
    /// Scheme B: adapters of the student, whose other weights are frozen. Scheme A: none.
    pub student_lora: Option<LoraConfig>,
    /// Scheme B: the clamped CLIP loss. Scheme A: none.
    pub clip: Option<ClipRecipe>,
    /// Steps between two snapshots.
    pub save_every: u64,
    /// Steps between two pictures to look at; 0 for none.
    pub preview_every: u64,
}

/// What networks compute in, forwards and backwards.
///
/// Weights and their gradients, optimisers, x̂₀, the difference of the teachers and all losses are in f32 in any
/// case. f16 is not among them: its gradients would have to be scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16, for devices that have it.
    Bf16,
}

impl Precision {
    /// The same as burn calls it.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// Settings of the clamped CLIP loss (arXiv 2408.14176, §4.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipRecipe {
    /// Weight at the first step; it falls linearly to 0 at the last.
    pub weight: f64,
    /// τ, the cosine beyond which a picture is left alone.
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
            adamw: AdamWConfig::default(),
            max_grad_norm: 1.0,
            ema_decay: 0.9999,
            guidance: 4.5,
            fake_guidance: None,
            min_timestep: 20,
            max_timestep: 980,
            null_probability: 0.1,
            fake_lora: LoraConfig::new(64, 128.0, ["to_q", "to_v"]),
            student_lora: None,
            clip: None,
            save_every: 500,
            preview_every: 500,
        }
    }
}

impl Recipe {
    /// Scheme A of the paper: all weights of the student, variational score distillation alone.
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

    /// Reads a recipe.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, names a setting that does not exist, or asks for the impossible.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Recipe {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let recipe: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        recipe.check().map_err(bad)?;
        Ok(recipe)
    }

    pub(crate) fn guidance(&self) -> Guidance {
        Guidance {
            teacher: self.guidance,
            fake: self.fake_guidance.unwrap_or(self.guidance),
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = [
            ("steps", self.steps as f64),
            ("student_every", self.student_every as f64),
            ("batch", self.batch as f64),
            ("accumulation", self.accumulation as f64),
            ("save_every", self.save_every as f64),
            ("learning_rate", self.learning_rate),
            ("fake_learning_rate", self.fake_learning_rate),
            ("max_grad_norm", self.max_grad_norm),
            ("fake_lora.rank", self.fake_lora.rank as f64),
        ];
        for (name, value) in positive {
            if value.is_nan() || value <= 0.0 {
                return Err(format!("{name} = {value} must be more than 0"));
            }
        }
        for (name, value) in [
            ("null_probability", self.null_probability),
            ("ema_decay", self.ema_decay),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("{name} = {value} must lie within 0..1"));
            }
        }
        if self.min_timestep > self.max_timestep {
            let (min, max) = (self.min_timestep, self.max_timestep);
            return Err(format!(
                "min_timestep = {min} lies beyond max_timestep = {max}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_survives_the_file_and_unknown_settings_do_not_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, toml::to_string(&Recipe::efficient()).unwrap()).unwrap();
        assert_eq!(Recipe::open(&path).unwrap(), Recipe::efficient());
        for (text, named) in [
            ("learning_rat = 1e-4", "learning_rat"),
            ("batch = 0", "batch"),
            ("student_every = 0", "student_every"),
            ("null_probability = 2.0", "null_probability"),
            ("min_timestep = 990", "min_timestep"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Recipe::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("recipe.toml"),
                "{error}"
            );
        }
    }
}
