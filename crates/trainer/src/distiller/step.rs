//! A step: losses and gradients of its micro-batches, their report, and the updates.

use burn::tensor::Tensor;
use swiftbrush_checkpoint::read;

use super::Distiller;
use crate::ahead::StepPrompts;
use crate::gradients::clipping;
use crate::micro_batch::{Outcome, draw};
use crate::{Error, NamedGradients, Recipe, Report};

impl Distiller {
    /// Updates the fake teacher, and in every `student_every`-th step after the first `student_after` also
    /// the student.
    ///
    /// A step with a non-finite loss or gradient updates nothing; up to `max_bad_steps` such steps are
    /// skipped.
    ///
    /// # Errors
    ///
    /// If a loss or a gradient is not finite and no more steps may be skipped, or latents of the recipe's regression losses
    /// are missing or cannot be read.
    ///
    /// # Panics
    ///
    /// If there are not `batch · accumulation` prompts.
    #[track_caller]
    pub fn step(&mut self, prompts: &[String]) -> Result<Report, Error> {
        self.step_encoded(&StepPrompts {
            prompts: prompts.to_vec(),
            contexts: Vec::new(),
        })
    }

    /// A step whose prompts may be encoded already; see [`step`](Self::step).
    #[track_caller]
    pub(crate) fn step_encoded(&mut self, prompts: &StepPrompts) -> Result<Report, Error> {
        let Recipe {
            batch,
            accumulation,
            max_grad_norm,
            ..
        } = self.recipe;
        let StepPrompts { prompts, contexts } = prompts;
        assert_eq!(
            prompts.len(),
            batch * accumulation,
            "a step takes batch times accumulation prompts"
        );
        let mut micro_batches = draw(&self.recipe, &self.frozen.sizes, self.step, prompts);
        for (micro_batch, context) in micro_batches.iter_mut().zip(contexts) {
            micro_batch.context = context.clone();
        }
        self.check_latents()?;
        let mut total = self.accumulate_all(&micro_batches)?;
        if self.is_students_turn() {
            total = self.regularize(total)?;
            total.student_grads = self.keep_own_gradients(total.student_grads);
        }
        let share = 1.0 / accumulation as f64;
        let mut report = self.report(&total, share)?;
        if let Some((what, value)) = report.not_finite() {
            self.skip(what, value)?;
            report.is_skipped = true;
            return Ok(report);
        }
        let clipped = |norm| share * clipping(norm, max_grad_norm);
        let student_grads = total.student_grads.scale(clipped(report.student_norm));
        let fake_grads = total.fake_grads.scale(clipped(report.fake_norm));
        if self.is_students_turn() {
            self.student.update(student_grads, report.learning_rate);
        }
        self.fake.update(fake_grads, self.recipe.fake_learning_rate);
        self.gather_weights()?;
        if self.is_students_turn() {
            self.ema.update(self.student.unet())?;
        }
        self.step += 1;
        Ok(report)
    }

    /// Reads losses and norms, the only time a step waits for the device.
    fn report(&self, total: &Outcome, share: f64) -> Result<Report, Error> {
        let gathered = self.gathered_squares(total)?;
        let [student, fake] = match gathered {
            None => [&total.student_grads, &total.fake_grads].map(NamedGradients::squares),
            Some(_) => [Vec::new(), Vec::new()],
        };
        let (n_losses, n_student) = (total.losses.iter().count(), student.len());
        let losses = total.losses.iter().map(|(_, loss)| loss.clone());
        let sums = losses.chain(student).chain(fake).collect();
        let sums: Vec<f64> = read(Tensor::cat(sums, 0)).iter().collect();
        let (losses, squares) = sums.split_at(n_losses);
        let [student, fake] = gathered.unwrap_or_else(|| {
            let (student, fake) = squares.split_at(n_student);
            [student.to_vec(), fake.to_vec()]
        });
        let norm = |squares: Vec<f64>| share * squares.iter().sum::<f64>().sqrt();
        let mut losses = losses.iter();
        let mut next = |_| losses.next().map_or(f64::NAN, |loss| loss * share);
        Ok(Report {
            step: self.step,
            losses: total.losses.clone().map(&mut next),
            student_norm: norm(student),
            fake_norm: norm(fake),
            learning_rate: match self.is_students_turn() {
                true => self.learning_rate(),
                false => 0.0,
            },
            is_skipped: false,
        })
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

    pub(super) fn is_students_turn(&self) -> bool {
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
        let next = self.student.adamw().n_steps() + 1;
        if next < warm_up {
            learning_rate * next as f64 / warm_up as f64
        } else {
            learning_rate
        }
    }
}
