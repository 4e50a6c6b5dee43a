//! A run on disk: snapshots, a log, and callbacks.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Tensor;
use swiftbrush_checkpoint::Error as FileError;

use crate::log::Log;
use crate::snapshots::{remove_old, remove_unfinished};
use crate::{
    Distiller, Error, PromptSource, Report, Snapshot, Timing, snapshot_path, snapshot_steps,
};

/// An event of a run.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "only one exists at a time")]
pub enum Event {
    /// A step was computed.
    Step {
        /// Losses and norms.
        report: Report,
        /// Time and memory.
        timing: Timing,
    },
    /// Preview latents were generated.
    Preview {
        /// Number of steps done.
        step: u64,
        /// The prompts.
        prompts: Vec<String>,
        /// Latents of the averaged student, `[prompts, channels, height, width]`.
        latents: Tensor<4>,
    },
    /// A snapshot was written.
    Saved {
        /// Number of steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
}

/// Number of preview images.
const PREVIEWS: usize = 16;

/// A distiller with its prompts and its folder on disk.
///
/// The folder contains `snapshots/`, written every `save_every` steps, and `log.jsonl` with one line per
/// step. A killed run resumes at its last snapshot and ends with the same weights as a run that was never
/// killed, bit for bit on the CPU backend.
#[derive(Debug)]
pub struct Run {
    distiller: Distiller,
    prompts: Box<dyn PromptSource>,
    folder: PathBuf,
    log: Log,
    /// Held for as long as the run exists.
    _lock: File,
}

impl Run {
    /// Opens the run in `folder`, at its last snapshot if there is one.
    ///
    /// `accepted` lists the settings and inputs that may differ from those of the snapshot, by their names
    /// in the [`Fingerprint`](crate::Fingerprint).
    ///
    /// # Errors
    ///
    /// If another process uses the folder, or the snapshot is damaged or belongs to another run.
    pub fn open(
        distiller: Distiller,
        prompts: impl PromptSource + 'static,
        folder: impl Into<PathBuf>,
        accepted: &[String],
    ) -> Result<Self, Error> {
        let folder = folder.into();
        let lock = lock(&folder)?;
        remove_unfinished(&folder)?;
        let distiller = distiller.with_folder(&folder);
        let mut distiller = distiller.with_input("prompts", prompts.hash());
        if let Some(&step) = snapshot_steps(&folder)?.last() {
            let path = snapshot_path(&folder, step);
            distiller = distiller.restore(&Snapshot::open(&path)?, &path, accepted)?;
            tracing::info!(step, path = %path.display(), "resumed");
        }
        Ok(Self {
            log: Log::open(&folder, distiller.n_steps())?,
            distiller,
            prompts: Box::new(prompts),
            folder,
            _lock: lock,
        })
    }

    /// The distiller.
    pub fn distiller(&self) -> &Distiller {
        &self.distiller
    }

    /// Closes the run.
    pub fn into_distiller(self) -> Distiller {
        self.distiller
    }

    /// Returns whether the last step of the recipe is done.
    pub fn is_finished(&self) -> bool {
        self.distiller.n_steps() >= self.distiller.recipe().steps
    }

    /// Trains to the last step of the recipe or until `watch` breaks, then saves the state.
    ///
    /// # Errors
    ///
    /// If prompts cannot be read, files cannot be written, or a step is not finite.
    pub fn train(&mut self, mut watch: impl FnMut(Event) -> ControlFlow<()>) -> Result<(), Error> {
        let recipe = self.distiller.recipe().clone();
        let previews = self.prompts.get(0, PREVIEWS.min(self.prompts.len()))?;
        while !self.is_finished() {
            let mut is_stopped = watch(self.step()?).is_break();
            let step = self.distiller.n_steps();
            if recipe.preview_every > 0 && step.is_multiple_of(recipe.preview_every) {
                let event = Event::Preview {
                    step,
                    latents: self.distiller.preview(&previews),
                    prompts: previews.clone(),
                };
                is_stopped |= watch(event).is_break();
            }
            if step.is_multiple_of(recipe.save_every) || self.is_finished() || is_stopped {
                is_stopped |= watch(self.save()?).is_break();
            }
            if is_stopped {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Event, Error> {
        let recipe = self.distiller.recipe();
        let count = recipe.batch * recipe.accumulation;
        let started = Instant::now();
        let first = self.distiller.n_steps() * count as u64;
        let prompts = self.prompts.get(first, count)?;
        let report = self.distiller.step(&prompts)?;
        let timing = Timing::of_step(started.elapsed(), count);
        self.log.write(&report, timing)?;
        Ok(Event::Step { report, timing })
    }

    fn save(&self) -> Result<Event, Error> {
        let step = self.distiller.n_steps();
        let path = snapshot_path(&self.folder, step);
        self.distiller.snapshot().save(&path)?;
        remove_old(&self.folder, self.distiller.recipe())?;
        Ok(Event::Saved { step, path })
    }
}

/// Locks a run's folder until the process ends.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let io = |cause| FileError::write(&path, cause);
    std::fs::create_dir_all(folder).map_err(io)?;
    let file = File::create(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse(folder.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(io(error).into()),
    }
}
