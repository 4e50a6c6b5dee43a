//! A run on disk: snapshots, a log, and whoever watches.

use std::fs::OpenOptions;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use swiftbrush_checkpoint::{Error as FileError, write_atomically};

use crate::{Distiller, Error, Prompts, Report, Snapshot};

/// What happens in a run.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one at a time, never kept")]
pub enum Event {
    /// A step was done.
    Step(Report),
    /// There are latents to be decoded and looked at, `[prompts, channels, height, width]`.
    Preview {
        /// Steps done.
        step: u64,
        /// The prompts.
        prompts: Vec<String>,
        /// What the averaged student makes of them.
        latents: Tensor<4>,
    },
    /// A snapshot is on disk.
    Saved {
        /// Steps done.
        step: u64,
    },
}

/// Prompts of which previews are made.
const PREVIEWS: usize = 16;

/// The snapshot of a run in `folder`.
pub fn snapshot_path(folder: &Path) -> PathBuf {
    folder.join("snapshot.safetensors")
}

/// Goes on from the snapshot in `folder` if there is one.
///
/// # Errors
///
/// If the snapshot is damaged or of other networks.
pub fn resume(distiller: Distiller, folder: &Path) -> Result<Distiller, Error> {
    let path = snapshot_path(folder);
    if !path.is_file() {
        return Ok(distiller);
    }
    let distiller = distiller.restore(&Snapshot::open(&path)?, &path)?;
    tracing::info!(step = distiller.n_steps(), path = %path.display(), "resumed");
    Ok(distiller)
}

/// Trains until the recipe's last step, or until `watch` breaks off: then what was done is saved.
///
/// Into `folder` go `snapshot.safetensors`, replaced every `save_every` steps, and `log.jsonl` with a
/// line for every step. Prompts are taken in order from where the run stands.
///
/// # Errors
///
/// If prompts cannot be read, files not written, or a step is not finite.
pub fn run(
    distiller: &mut Distiller,
    prompts: &Prompts,
    folder: &Path,
    mut watch: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<(), Error> {
    let recipe = distiller.recipe().clone();
    let per_step = recipe.batch * recipe.accumulation;
    let mut log = Log::open(folder, distiller.n_steps())?;
    let previews = prompts.get(0, PREVIEWS.min(prompts.len()))?;
    while distiller.n_steps() < recipe.steps {
        let batch = prompts.get(distiller.n_steps() * per_step as u64, per_step)?;
        let report = distiller.step(&batch)?;
        log.write(&report)?;
        let step = distiller.n_steps();
        let mut flow = watch(Event::Step(report));
        if recipe.preview_every > 0 && step.is_multiple_of(recipe.preview_every) {
            let latents = distiller.preview(&previews);
            let event = Event::Preview {
                step,
                prompts: previews.clone(),
                latents,
            };
            flow = if watch(event).is_break() {
                ControlFlow::Break(())
            } else {
                flow
            };
        }
        if step.is_multiple_of(recipe.save_every) || step == recipe.steps || flow.is_break() {
            distiller.snapshot().save(&snapshot_path(folder))?;
            flow = if watch(Event::Saved { step }).is_break() {
                ControlFlow::Break(())
            } else {
                flow
            };
        }
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// One line of JSON for every step.
struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    /// Opens the log, without the lines that a run which was killed wrote after its last snapshot.
    fn open(folder: &Path, step: u64) -> Result<Self, Error> {
        let path = folder.join("log.jsonl");
        let io = |error| FileError::write(&path, error);
        std::fs::create_dir_all(folder).map_err(io)?;
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(io)?;
            let kept: String = text
                .lines()
                .take(step as usize)
                .flat_map(|line| [line, "\n"])
                .collect();
            write_atomically(&path, |file| file.write_all(kept.as_bytes()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io)?;
        Ok(Self { path, file })
    }

    fn write(&mut self, report: &Report) -> Result<(), Error> {
        let line = serde_json::to_string(report).expect("a report is plain numbers");
        let io = |error| FileError::write(&self.path, error);
        Ok(writeln!(self.file, "{line}").map_err(io)?)
    }
}
