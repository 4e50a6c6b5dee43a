//! Losses and gradients of micro-batches.

use burn::tensor::Tensor;
use swiftbrush_pipeline::one_step;
use swiftbrush_unet::UNet;

use super::Distiller;
use crate::losses::{
    Losses, Teachers, distillation_gradient, distillation_loss, fake_loss, student_latents,
};
use crate::micro_batch::{MicroBatch, Outcome, with_null};
use crate::{Denoiser, NamedGradients, WithCheckpoints};

impl Distiller {
    /// Sums losses and gradients in micro-batch order, so that results are bit-identical for any number of threads. On
    /// one thread, gradients are added to the sum as soon as they are computed.
    pub(super) fn accumulate(&self, micro_batches: &[MicroBatch<'_>]) -> Outcome {
        let waves = micro_batches.chunks(self.threads.count());
        waves.fold(self.no_outcome(), |sum, wave| match wave {
            [batch] => self.add(sum, batch),
            _ => {
                let outcomes = self
                    .threads
                    .map(wave, |batch| self.add(self.no_outcome(), batch));
                outcomes.into_iter().fold(sum, Outcome::plus)
            }
        })
    }

    pub(super) fn no_outcome(&self) -> Outcome {
        Outcome::new(self.zero_losses())
    }

    /// Adds losses and gradients of a micro-batch to those of others.
    pub(super) fn add(&self, mut sum: Outcome, batch: &MicroBatch<'_>) -> Outcome {
        let context = batch.context.clone();
        let context = context.unwrap_or_else(|| self.frozen.encoder.encode(batch.prompts));
        let mut losses = self.zero_losses();
        let latents;
        if self.is_students_turn() {
            (latents, sum.student_grads) =
                self.student_gradients(batch, context.clone(), sum.student_grads, &mut losses);
        } else {
            let (student, noise) = (self.student.plain(), batch.student.noise.clone());
            let schedule = &self.frozen.student_schedule;
            latents = one_step(&student, schedule, noise, context.clone());
        }
        let context = with_null(context, &self.frozen.null_context, &batch.is_null);
        let schedule = &self.frozen.schedule;
        sum.fake_grads = self.gradients(&self.fake.own(), sum.fake_grads, |fake| {
            let loss = fake_loss(fake, schedule, latents, &batch.fake, context);
            losses.fake = loss.clone().inner();
            loss
        });
        sum.losses = sum.losses.zip(losses, |a, b| a + b);
        sum
    }

    /// Computes the student's detached latents, adds its gradients to a sum, and sets its losses.
    fn student_gradients(
        &self,
        batch: &MicroBatch<'_>,
        context: Tensor<3>,
        sum: NamedGradients,
        losses: &mut Losses<Tensor<1>>,
    ) -> (Tensor<4>, NamedGradients) {
        let mut fixed = None;
        let grads = self.gradients(&self.student.own(), sum, |student| {
            let schedule = &self.frozen.student_schedule;
            let latents = student_latents(student, schedule, &batch.student, context.clone());
            fixed = Some(latents.clone().inner());
            self.student_loss(batch, latents, context, losses)
        });
        (fixed.expect("the loss is computed from latents"), grads)
    }

    /// The weighted sum of the student's losses on its graph.
    fn student_loss(
        &self,
        batch: &MicroBatch<'_>,
        latents: Tensor<4>,
        context: Tensor<3>,
        losses: &mut Losses<Tensor<1>>,
    ) -> Tensor<1> {
        let teachers = Teachers {
            teacher: &self.frozen.teacher,
            fake: &self.fake.plain(),
            schedule: &self.frozen.schedule,
        };
        let gradient = distillation_gradient(
            teachers,
            &batch.guidance,
            self.recipe.gradient,
            latents.clone().inner(),
            &batch.student,
            context,
            self.frozen.null_context.clone(),
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
        total
    }

    /// Adds the gradients of a loss to a sum; the loss is computed from a denoiser that stands for the network.
    pub(super) fn gradients(
        &self,
        unet: &UNet,
        sum: NamedGradients,
        loss: impl FnOnce(&dyn Denoiser) -> Tensor<1>,
    ) -> NamedGradients {
        if self.recipe.checkpointing {
            let denoiser = WithCheckpoints::new(unet);
            let loss = loss(&denoiser);
            return denoiser.gradients(loss, sum);
        }
        let loss = loss(unet);
        sum.plus(NamedGradients::take(unet, &mut loss.backward()))
    }

    fn zero_losses(&self) -> Losses<Tensor<1>> {
        let zero = || Tensor::zeros([1], &self.frozen.sizes.device);
        let rewards = self.rewards.iter().map(|reward| reward.name().to_owned());
        let others = self
            .regularizers
            .iter()
            .map(|other| other.name().to_owned());
        Losses {
            distillation: zero(),
            rewards: rewards.chain(others).map(|name| (name, zero())).collect(),
            fake: zero(),
        }
    }
}
