//! Regularisation: gradients of entries whose latents are known.

use super::Distiller;
use crate::losses::{denoising_input, generated, regression_loss};
use crate::micro_batch::Outcome;
use crate::regression::{RegressionBatch, Regularizer};
use crate::{Error, LatentKind, LatentSet};

impl Distiller {
    /// Adds the data of a regression loss that the recipe has: pairs for `[pairs]`, images for `[denoise]`.
    ///
    /// # Errors
    ///
    /// If the recipe has no such loss, the latents have another size than those of the networks, or there are two sets of
    /// one kind.
    pub fn with_latents(mut self, set: LatentSet) -> Result<Self, Error> {
        let (kind, latents) = (set.kind(), self.frozen.sizes.latents);
        let recipe = match kind {
            LatentKind::Pairs => self.recipe.pairs.as_ref(),
            LatentKind::Images => self.recipe.denoise.as_ref(),
        };
        let regularizer = Regularizer::new(recipe, set, self.recipe.seed, latents)?;
        if self.has_latents(kind) {
            return Err(Error::RewardName(regularizer.name().to_owned()));
        }
        let entry = format!("{}.latents", regularizer.name());
        self.fingerprint.set(&entry, regularizer.hash());
        self.regularizers.push(regularizer);
        Ok(self)
    }

    fn has_latents(&self, kind: LatentKind) -> bool {
        self.regularizers.iter().any(|other| other.kind() == kind)
    }

    /// Checks that each regression loss of the recipe has its data.
    ///
    /// # Errors
    ///
    /// If data is missing for one.
    pub(crate) fn check_latents(&self) -> Result<(), Error> {
        for (kind, is_needed) in [
            (LatentKind::Pairs, self.recipe.pairs.is_some()),
            (LatentKind::Images, self.recipe.denoise.is_some()),
        ] {
            if is_needed && !self.has_latents(kind) {
                return Err(Error::NoLatents(Regularizer::table(kind)));
            }
        }
        Ok(())
    }

    /// Adds gradients and losses of the entries for the next update of the student.
    pub(super) fn regularize(&self, mut total: Outcome) -> Result<Outcome, Error> {
        let update = self.student.adamw().n_steps();
        for regularizer in &self.regularizers {
            if let Some(batch) = regularizer.batch(update, &self.frozen.sizes)? {
                total = self.add_regression(total, regularizer, &batch);
            }
        }
        Ok(total)
    }

    /// Adds a regression loss in parts of the size of a micro-batch, so that it takes no more memory than a
    /// micro-batch.
    fn add_regression(
        &self,
        mut total: Outcome,
        regularizer: &Regularizer,
        batch: &RegressionBatch,
    ) -> Outcome {
        let count = batch.prompts.len();
        for first in (0..count).step_by(self.recipe.batch) {
            let size = self.recipe.batch.min(count - first);
            // Sums over micro-batches are divided by their number.
            let share = (size * self.recipe.accumulation) as f64 / count as f64;
            let part = batch.part(first, size);
            total = self.add_part(total, regularizer, part, share);
        }
        total
    }

    fn add_part(
        &self,
        mut total: Outcome,
        regularizer: &Regularizer,
        batch: RegressionBatch,
        share: f64,
    ) -> Outcome {
        let context = self.frozen.encoder.encode(&batch.prompts);
        let schedule = &self.frozen.student_schedule;
        let (latents, noise) = (batch.latents, batch.noise);
        let input = match regularizer.kind() {
            LatentKind::Pairs => noise,
            LatentKind::Images => denoising_input(schedule, latents.clone(), noise),
        };
        let recipe = &regularizer.recipe;
        let mut value = None;
        total.student_grads = self.gradients(&self.student.own(), total.student_grads, |student| {
            let loss = match (recipe.loss.of_latents(), &self.frozen.lpips) {
                (None, Some(networks)) => {
                    networks.loss(generated(student, schedule, input, context), latents)
                }
                (loss, _) => {
                    let loss = loss.expect("LPIPS has its networks");
                    regression_loss(student, schedule, input, latents, context, loss)
                }
            };
            value = Some(loss.clone().inner() * share);
            loss * (recipe.weight * share)
        });
        let sum = total.losses.rewards.get_mut(regularizer.name());
        if let (Some(sum), Some(value)) = (sum, value) {
            *sum = sum.clone() + value;
        }
        total
    }
}
