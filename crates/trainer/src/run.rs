//! A run on disk: snapshots, logs, and events.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Tensor;
use swiftbrush_checkpoint::{Error as FileError, remove_unfinished};

use crate::ahead::Ahead;
use crate::log::Log;
use crate::snapshots::{SNAPSHOTS, remove_old};
use crate::watch::WatchLog;
use crate::{
    Distiller, Error, Observer, PromptSource, Recipe, Report, Snapshot, Strip, Timing, WatchReport,
    snapshot_path, snapshot_steps,
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
    /// The watcher evaluated its prompts.
    Watched {
        /// Scores and alarms.
        report: WatchReport,
        /// The prompts.
        prompts: Vec<String>,
        /// Latents of student and teachers.
        strip: Strip,
    },
}

/// Number of preview images.
const PREVIEWS: usize = 16;
/// Number of prompts that the watcher uses if the recipe names none.
const WATCHED: usize = 8;

/// A distiller with its prompts and its folder on disk.
///
/// The folder contains `snapshots/`, written every `save_every` steps, `log.jsonl` with one line per step, and
/// `watch.jsonl` with one line per watcher report if the recipe has a watcher. A killed run resumes at its last
/// snapshot and ends with the same weights as a run that was never killed, bit for bit on the CPU backend.
///
/// A thread reads and encodes the prompts of a step while the step before it is computed.
///
/// With several ranks ([`Distiller::with_communicator`]), only rank 0 writes files and calls its observer; the number
/// of ranks may change when a run is resumed.
#[derive(Debug)]
pub struct Run {
    distiller: Distiller,
    prompts: Ahead,
    /// The first prompts, for previews.
    first: Vec<String>,
    folder: PathBuf,
    /// Present on rank 0 only.
    logs: Option<Logs>,
}

/// The open files of a run.
#[derive(Debug)]
struct Logs {
    steps: Log,
    watch: WatchLog,
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
    /// If another process uses the folder, the snapshot is damaged or belongs to another run, or the prompts cannot be read.
    pub fn open(
        distiller: Distiller,
        mut prompts: impl PromptSource + 'static,
        folder: impl AsRef<Path>,
        accepted: &[String],
    ) -> Result<Self, Error> {
        distiller.check_latents()?;
        let folder = folder.as_ref().to_owned();
        let (mut lock, mut last) = (None, None);
        if distiller.rank() == 0 {
            lock = Some(self::lock(&folder)?);
            remove_unfinished(&folder)?;
            remove_unfinished(folder.join(SNAPSHOTS))?;
            last = snapshot_steps(&folder)?.last().copied();
        }
        let last = distiller.agree(last)?;
        let distiller = distiller.with_folder(&folder);
        let mut distiller = distiller.with_input("prompts", prompts.hash());
        if let Some(step) = last {
            let path = snapshot_path(&folder, step);
            distiller = distiller.restore(&Snapshot::open(&path)?, &path, accepted)?;
            tracing::info!(step, path = %path.display(), "resumed");
        }
        let first = prompts.get(0, PREVIEWS.min(prompts.len()))?;
        let (encoder, share) = distiller.prompt_encoder();
        let open = |lock| Logs::open(&folder, distiller.n_steps(), lock);
        Ok(Self {
            logs: lock.map(open).transpose()?,
            prompts: Ahead::start(Box::new(prompts), encoder, share)?,
            first,
            distiller,
            folder,
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

    /// Trains to the last step of the recipe or until the observer breaks, then saves the state.
    ///
    /// # Errors
    ///
    /// If prompts cannot be read, files cannot be written, a step is not finite, the observer fails, or the watcher raises
    /// an alarm and the recipe says that it stops the run.
    pub fn train(&mut self, mut observer: impl Observer) -> Result<(), Error> {
        let recipe = self.distiller.recipe().clone();
        let first = self.first.clone();
        let is_new = self.logs.as_ref().is_some_and(|it| it.watch.is_empty());
        let is_stopped = is_new && self.watch(&recipe, &first, &mut observer)?.is_break();
        if self.distiller.any(is_stopped)? {
            return Ok(());
        }
        while !self.is_finished() {
            let event = self.step()?;
            let is_stopped = self.observe(&recipe, &first, &event, &mut observer)?;
            let is_stopped = self.distiller.any(is_stopped.is_break())?;
            let step = self.distiller.n_steps();
            if step.is_multiple_of(recipe.save_every) || self.is_finished() || is_stopped {
                let event = self.save()?;
                let is_broken = self.logs.is_some() && observer.observe(&event)?.is_break();
                if self.distiller.any(is_stopped || is_broken)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Passes a step to the observer, with the preview and the watcher report that are due after it.
    fn observe(
        &mut self,
        recipe: &Recipe,
        first: &[String],
        event: &Event,
        observer: &mut impl Observer,
    ) -> Result<ControlFlow<()>, Error> {
        if self.logs.is_none() {
            return Ok(ControlFlow::Continue(()));
        }
        let mut is_stopped = observer.observe(event)?.is_break();
        let step = self.distiller.n_steps();
        if recipe.preview_every > 0 && step.is_multiple_of(recipe.preview_every) {
            is_stopped |= observer.observe(&self.preview(first))?.is_break();
        }
        let watch = recipe.watch.as_ref();
        if watch.is_some_and(|watch| step.is_multiple_of(watch.every)) {
            is_stopped |= self.watch(recipe, first, observer)?.is_break();
        }
        Ok(match is_stopped {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }

    fn preview(&self, prompts: &[String]) -> Event {
        Event::Preview {
            step: self.distiller.n_steps(),
            latents: self.distiller.preview(prompts),
            prompts: prompts.to_vec(),
        }
    }

    /// Evaluates the watched prompts, if the recipe has a watcher.
    fn watch(
        &mut self,
        recipe: &Recipe,
        first: &[String],
        observer: &mut impl Observer,
    ) -> Result<ControlFlow<()>, Error> {
        let Some(recipe) = &recipe.watch else {
            return Ok(ControlFlow::Continue(()));
        };
        let prompts = match recipe.prompts.as_slice() {
            [] => &first[..WATCHED.min(first.len())],
            prompts => prompts,
        };
        let (mut report, strip) = self.distiller.watch(recipe, prompts);
        if let Some(logs) = &self.logs {
            logs.watch.judge(&mut report, recipe);
        }
        let (step, alarms) = (report.step, report.alarms.clone());
        for alarm in &alarms {
            tracing::warn!(step, "{alarm}");
        }
        let flow = observer.observe(&Event::Watched {
            report: report.clone(),
            prompts: prompts.to_vec(),
            strip,
        })?;
        // Last, because a first report that is in the log is not repeated after a resume.
        if let Some(logs) = &mut self.logs {
            logs.watch.write(&report)?;
        }
        match alarms.into_iter().next() {
            Some(alarm) if recipe.stop => Err(Error::Collapsed { alarm, step }),
            _ => Ok(flow),
        }
    }

    fn step(&mut self) -> Result<Event, Error> {
        let recipe = self.distiller.recipe();
        let count = recipe.batch * recipe.accumulation;
        let started = Instant::now();
        let first = self.distiller.n_steps() * count as u64;
        let continues = self.distiller.n_steps() + 1 < recipe.steps;
        let prompts = self.prompts.take(first, count, continues)?;
        let report = self.distiller.step_encoded(&prompts)?;
        let timing = Timing::of_step(started.elapsed(), count);
        if let Some(logs) = &mut self.logs {
            logs.steps.write(&report, timing)?;
        }
        Ok(Event::Step { report, timing })
    }

    fn save(&self) -> Result<Event, Error> {
        let step = self.distiller.n_steps();
        let path = snapshot_path(&self.folder, step);
        self.distiller.save(&path)?;
        if self.logs.is_some() {
            remove_old(&self.folder, self.distiller.recipe())?;
        }
        Ok(Event::Saved { step, path })
    }
}

impl Logs {
    fn open(folder: &Path, step: u64, lock: File) -> Result<Self, Error> {
        Ok(Self {
            steps: Log::open(folder, step)?,
            watch: WatchLog::open(folder, step)?,
            _lock: lock,
        })
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
