//! Several ranks: each computes its share of the micro-batches and updates its share of the parameters.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::read;

use super::Distiller;
use crate::ahead::{PromptEncoder, Share};
use crate::communicator::any;
use crate::micro_batch::{MicroBatch, Outcome};
use crate::networks::setting;
use crate::shards::Shards;
use crate::snapshot::Entry;
use crate::{Communicator, Error, NamedGradients, Snapshot};

/// The ranks of a run and the parameters that each of them updates.
#[derive(Clone, Debug)]
pub(super) struct Group {
    communicator: Arc<dyn Communicator>,
    student: Shards,
    fake: Shards,
}

/// A tensor of the optimisers of another rank.
#[derive(Serialize, Deserialize)]
struct Remote {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
}

/// Names of the optimisers in a snapshot.
pub(super) const OPTIMIZERS: [&str; 2] = ["student_adamw", "fake_adamw"];

impl Distiller {
    /// Trains together with other ranks, which are created with the same settings and inputs.
    ///
    /// Rank r of n computes the micro-batches r, r + n, …, sums the gradients of its share of the parameters, and
    /// updates those (ZeRO stage 1, arXiv 1910.02054). Weights and averages are on every rank, each moment of the
    /// optimisers on one. Sums are taken in the order of the micro-batches, so on the CPU the result is bit-identical
    /// for any number of ranks. The regression losses are computed by every rank.
    ///
    /// # Errors
    ///
    /// If `accumulation` is not a multiple of the number of ranks.
    pub fn with_communicator(mut self, communicator: Arc<dyn Communicator>) -> Result<Self, Error> {
        let (size, accumulation) = (communicator.size(), self.recipe.accumulation);
        if !accumulation.is_multiple_of(size) {
            return Err(setting(format!(
                "accumulation = {accumulation} with {size} ranks; expected a multiple of {size}"
            )));
        }
        if size > 1 {
            self.group = Some(Group {
                student: Shards::new(self.student.unet(), size),
                fake: Shards::new(self.fake.unet(), size),
                communicator,
            });
            self.keep_own_moments();
        }
        Ok(self)
    }

    /// Index of this rank, 0 if it is the only one. Rank 0 writes the files of a run.
    pub fn rank(&self) -> usize {
        let group = self.group.as_ref();
        group.map_or(0, |group| group.communicator.rank())
    }

    /// The encoder of prompts, and the micro-batches whose prompts this rank encodes.
    pub(crate) fn prompt_encoder(&self) -> (PromptEncoder, Share) {
        let communicator = self.group.as_ref().map(|group| &group.communicator);
        let share = Share {
            batch: self.recipe.batch,
            rank: self.rank(),
            ranks: communicator.map_or(1, |communicator| communicator.size()),
        };
        (self.frozen.encoder.clone(), share)
    }

    /// Returns whether a condition holds on any rank.
    pub(crate) fn any(&self, condition: bool) -> Result<bool, Error> {
        match &self.group {
            Some(group) => Ok(any(&*group.communicator, condition)?),
            None => Ok(condition),
        }
    }

    /// Broadcasts a number from rank 0.
    pub(crate) fn agree(&self, number: Option<u64>) -> Result<Option<u64>, Error> {
        let Some(Group { communicator, .. }) = &self.group else {
            return Ok(number);
        };
        if communicator.rank() > 0 {
            let message = communicator.receive(0)?;
            return Ok(serde_json::from_slice(&message).map_err(std::io::Error::from)?);
        }
        let message = serde_json::to_vec(&number).map_err(std::io::Error::from)?;
        for rank in 1..communicator.size() {
            communicator.send(rank, &message)?;
        }
        Ok(number)
    }

    pub(super) fn keep_own_moments(&mut self) {
        if let Some(group) = &self.group {
            let rank = group.communicator.rank();
            self.student
                .retain_moments(|name| group.student.owns(rank, name));
            self.fake.retain_moments(|name| group.fake.owns(rank, name));
        }
    }

    /// Losses and gradients of all micro-batches; with several ranks, the gradients of this rank's parameters.
    pub(super) fn accumulate_all(
        &self,
        micro_batches: &[MicroBatch<'_>],
    ) -> Result<Outcome, Error> {
        let Some(group) = &self.group else {
            return Ok(self.accumulate(micro_batches));
        };
        let (rank, size) = (group.communicator.rank(), group.communicator.size());
        let own: Vec<_> = micro_batches.iter().skip(rank).step_by(size).collect();
        let mut total = self.no_outcome();
        for wave in own.chunks(self.threads.count()) {
            let outcomes = self
                .threads
                .map(wave, |batch| self.add(self.no_outcome(), batch));
            for outcome in outcomes {
                total = self.add_round(group, total, outcome)?;
            }
        }
        Ok(total)
    }

    /// Adds one micro-batch of each rank.
    fn add_round(&self, group: &Group, total: Outcome, own: Outcome) -> Result<Outcome, Error> {
        let (communicator, device) = (&*group.communicator, &self.frozen.sizes.device);
        let losses = own.losses.iter().map(|(_, loss)| loss.clone());
        let losses: Vec<f32> = read(Tensor::cat(losses.collect(), 0)).iter().collect();
        let mut sum = total.losses;
        for losses in communicator.gather(losses)? {
            let mut losses = losses.into_iter();
            sum = sum.map(|sum| sum + losses.next().unwrap_or(f32::NAN));
        }
        let add = |shards: &Shards, sum, grads| shards.add(communicator, sum, grads, device);
        Ok(Outcome {
            losses: sum,
            student_grads: add(&group.student, total.student_grads, own.student_grads)?,
            fake_grads: add(&group.fake, total.fake_grads, own.fake_grads)?,
        })
    }

    /// Drops gradients of parameters that other ranks update.
    pub(super) fn keep_own_gradients(&self, grads: NamedGradients) -> NamedGradients {
        match &self.group {
            None => grads,
            Some(Group {
                communicator,
                student,
                ..
            }) => grads.retain(|name| student.owns(communicator.rank(), name)),
        }
    }

    /// Sums of squares of all gradients of the student and of the fake teacher, by name.
    pub(super) fn gathered_squares(&self, total: &Outcome) -> Result<Option<[Vec<f64>; 2]>, Error> {
        let Some(group) = &self.group else {
            return Ok(None);
        };
        let communicator = &*group.communicator;
        Ok(Some([
            group.student.squares(communicator, &total.student_grads)?,
            group.fake.squares(communicator, &total.fake_grads)?,
        ]))
    }

    /// Replaces the parameters that other ranks have updated.
    pub(super) fn gather_weights(&mut self) -> Result<(), Error> {
        if let Some(group) = &self.group {
            let communicator = &*group.communicator;
            if self.is_students_turn() {
                self.student.gather(&group.student, communicator)?;
            }
            self.fake.gather(&group.fake, communicator)?;
        }
        Ok(())
    }

    /// Writes the state of the run to a file. With several ranks, all of them call this, and rank 0 writes.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or another rank has ended.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let snapshot = self.snapshot();
        let Some(Group { communicator, .. }) = &self.group else {
            return Ok(snapshot.save(path)?);
        };
        if communicator.rank() > 0 {
            return serve(&**communicator, &snapshot);
        }
        let saved = with_remote_moments(communicator, snapshot)?.save(path);
        for rank in 1..communicator.size() {
            communicator.send(rank, &[])?;
        }
        Ok(saved?)
    }
}

/// The snapshot of rank 0 with the moments that other ranks send on request.
fn with_remote_moments(
    communicator: &Arc<dyn Communicator>,
    mut snapshot: Snapshot,
) -> Result<Snapshot, Error> {
    for rank in 1..communicator.size() {
        let message = communicator.receive(rank)?;
        let remote: Vec<Remote> = serde_json::from_slice(&message).map_err(std::io::Error::from)?;
        for Remote { name, shape, dtype } in remote {
            let communicator = Arc::clone(communicator);
            let (of_data, request) = (shape.clone(), name.clone());
            let read = move || {
                let sent = communicator.send(rank, request.as_bytes());
                let bytes = sent.and_then(|()| communicator.receive(rank));
                let bytes = bytes.expect("the other ranks wait until the snapshot is written");
                TensorData::from_bytes_vec(bytes, of_data.clone(), dtype)
            };
            snapshot.insert_entry(name, Entry::new(shape, dtype, read));
        }
    }
    Ok(snapshot)
}

/// Sends the moments of this rank to rank 0, tensor by tensor, until it has written its snapshot.
fn serve(communicator: &dyn Communicator, snapshot: &Snapshot) -> Result<(), Error> {
    let moments = snapshot.entries_of(&OPTIMIZERS);
    let own: Vec<_> = moments
        .map(|(name, entry)| Remote {
            name: name.to_owned(),
            shape: entry.shape().to_vec(),
            dtype: entry.dtype(),
        })
        .collect();
    let message = serde_json::to_vec(&own).map_err(std::io::Error::from)?;
    communicator.send(0, &message)?;
    loop {
        let name = communicator.receive(0)?;
        if name.is_empty() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&name);
        let bytes = snapshot.entry(&name).map(|entry| entry.read().into_bytes());
        let bytes = bytes.ok_or_else(|| std::io::Error::other(format!("no tensor {name}")))?;
        communicator.send(0, &bytes)?;
    }
}
