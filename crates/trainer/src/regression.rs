//! Regularisation of the student by regression to known latents.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::losses::Regression;
use crate::micro_batch::Sizes;
use crate::prompts::Permutation;
use crate::{Error, LatentKind, LatentSet, Purpose, Random};

/// Settings of a regression loss: `[pairs]` or `[denoise]` in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegressionRecipe {
    /// Weight relative to the distillation loss.
    pub weight: f64,
    /// The loss: `"l2"`, `{ huber = 1.0 }` or `"lpips"`.
    pub loss: RegressionLoss,
    /// Number of entries for an update of the student.
    pub batch: usize,
    /// Updates of the student per update with entries.
    pub every: u64,
}

/// The loss of a regression.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegressionLoss {
    /// The squared error of latents.
    L2,
    /// The Huber loss of latents, with its δ.
    Huber(f64),
    /// [`Lpips`](crate::Lpips) of decoded latents, the loss of DMD.
    Lpips,
}

impl RegressionLoss {
    /// The loss of latents; `None` if it is one of images.
    pub(crate) fn of_latents(self) -> Option<Regression> {
        match self {
            Self::L2 => Some(Regression::L2),
            Self::Huber(delta) => Some(Regression::Huber(delta)),
            Self::Lpips => None,
        }
    }
}

impl Default for RegressionRecipe {
    /// The weight of DMD (arXiv 2311.18828, ¼), whose LPIPS is replaced by the Huber loss of latents. The paper states
    /// neither loss nor weight of its image regularisation (§5, "Ours*"), but uses 200,000 images and 3.3 million
    /// prompts: the same ratio as four entries and a batch of 64.
    fn default() -> Self {
        Self {
            weight: 0.25,
            loss: RegressionLoss::Huber(1.0),
            batch: 4,
            every: 1,
        }
    }
}

impl RegressionRecipe {
    /// The first value out of range, by name and with what is expected.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        let delta = match self.loss {
            RegressionLoss::L2 | RegressionLoss::Lpips => 1.0,
            RegressionLoss::Huber(delta) => delta,
        };
        for (setting, value) in [
            ("weight", self.weight),
            ("loss.huber", delta),
            ("batch", self.batch as f64),
            ("every", self.every as f64),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!(
                    "{name}.{setting} = {value}: expected a finite number above 0"
                ));
            }
        }
        Ok(())
    }
}

/// A regression loss with its data.
#[derive(Debug)]
pub(crate) struct Regularizer {
    pub(crate) recipe: RegressionRecipe,
    set: LatentSet,
    seed: u64,
}

/// Entries for an update of the student.
#[derive(Debug)]
pub(crate) struct RegressionBatch {
    pub(crate) prompts: Vec<String>,
    /// Unit normal noise: that of the pairs, or drawn.
    pub(crate) noise: Tensor<4>,
    pub(crate) latents: Tensor<4>,
}

impl Regularizer {
    /// Combines a setting of a recipe with its data.
    ///
    /// # Errors
    ///
    /// If the recipe has no such loss, or the latents have another size.
    pub(crate) fn new(
        recipe: Option<&RegressionRecipe>,
        set: LatentSet,
        seed: u64,
        latents: [usize; 3],
    ) -> Result<Self, Error> {
        let bad = |reason: String| Error::Latents {
            path: set.folder().to_owned(),
            reason,
        };
        let table = Self::table(set.kind());
        let Some(recipe) = recipe else {
            return Err(bad(format!(
                "it would not be used: the recipe has no [{table}]; add the table, or omit the data"
            )));
        };
        if set.latents() != latents {
            return Err(bad(format!(
                "expected latents of {latents:?} as the networks, found {:?}",
                set.latents()
            )));
        }
        let recipe = recipe.clone();
        Ok(Self { recipe, set, seed })
    }

    /// The name of the settings and of the loss.
    pub(crate) fn table(kind: LatentKind) -> &'static str {
        match kind {
            LatentKind::Pairs => "pairs",
            LatentKind::Images => "denoise",
        }
    }

    pub(crate) fn kind(&self) -> LatentKind {
        self.set.kind()
    }

    pub(crate) fn name(&self) -> &'static str {
        Self::table(self.kind())
    }

    pub(crate) fn hash(&self) -> String {
        self.set.hash().to_owned()
    }

    /// The entries for an update of the student, numbered from 0; `None` if there are none for it.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub(crate) fn batch(
        &self,
        update: u64,
        sizes: &Sizes,
    ) -> Result<Option<RegressionBatch>, Error> {
        let RegressionRecipe { batch, every, .. } = self.recipe;
        if !update.is_multiple_of(every) {
            return Ok(None);
        }
        let (first, len) = (update / every * batch as u64, self.set.len() as u64);
        let entries = (first..first + batch as u64).map(|position| {
            // Orders have the even streams of the purpose, noise the odd ones.
            let order = Permutation::new(len, self.random(2 * (position / len)));
            order.at(position % len) as usize
        });
        let entries = self.set.get(&entries.collect::<Vec<_>>(), &sizes.device)?;
        let draw = || sizes.noise(&mut self.random(2 * update + 1), batch);
        Ok(Some(RegressionBatch {
            prompts: entries.prompts,
            noise: entries.noise.unwrap_or_else(draw),
            latents: entries.latents,
        }))
    }

    fn random(&self, stream: u64) -> Random {
        let purpose = match self.kind() {
            LatentKind::Pairs => Purpose::Pairs,
            LatentKind::Images => Purpose::Denoise,
        };
        Random::new(self.seed, purpose, stream)
    }
}

impl RegressionBatch {
    /// Some consecutive entries.
    pub(crate) fn part(&self, first: usize, size: usize) -> Self {
        Self {
            prompts: self.prompts[first..first + size].to_vec(),
            noise: self.noise.clone().narrow(0, first, size),
            latents: self.latents.clone().narrow(0, first, size),
        }
    }
}
