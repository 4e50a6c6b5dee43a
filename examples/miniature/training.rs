//! The training loop of every network of the miniature: resumable, logged, with averaged weights.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use swiftbrush_checkpoint::{named_tensors, with_tensors, write_atomically};
use swiftbrush_trainer::{AdamW, AdamWConfig, Ema, NamedGradients, Snapshot, Threads};

/// Settings of a training stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// Number of steps.
    pub(crate) steps: u64,
    /// Peak learning rate, after the warm-up.
    pub(crate) learning_rate: f64,
    /// Decay of the averaged weights.
    pub(crate) ema: f64,
    /// Number of micro-batches per step, computed in parallel by one thread each. `loss` computes one of them; like the
    /// seed, their number determines the result.
    pub(crate) parts: u64,
    pub(crate) adamw: AdamWConfig,
}

/// Micro-batches of a step.
pub(crate) const PARTS: u64 = 2;
/// Steps of linear warm-up.
const WARM_UP: u64 = 100;
/// Steps between snapshots.
const SAVE_EVERY: u64 = 200;
/// Maximum gradient norm.
const MAX_NORM: f64 = 1.0;

impl Schedule {
    pub(crate) fn new(steps: u64, parts: u64) -> Self {
        Self {
            steps,
            learning_rate: 1e-3,
            ema: 0.99,
            parts,
            adamw: AdamWConfig::default(),
        }
    }

    /// Linear warm-up, then a cosine down to a twentieth.
    fn learning_rate(&self, step: u64) -> f64 {
        let rise = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
        let done = step as f64 / self.steps as f64;
        let fall = 0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.learning_rate * rise * fall
    }
}

/// Trains a module from its current weights, or from the snapshot in `folder` if there is one, and returns it with its
/// averaged weights, without autodiff.
///
/// `loss` takes the module and the index of the micro-batch, numbered over all steps; `look` is called after every
/// snapshot with the averaged module.
pub(crate) fn train<M: Module + Sync>(
    folder: &Path,
    module: M,
    schedule: Schedule,
    device: &Device,
    loss: impl Fn(&M, u64) -> Tensor<1> + Sync,
    look: impl Fn(&M, u64) -> Result<()>,
) -> Result<M> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("snapshot.safetensors");
    let mut state = State::new(module, schedule);
    if path.is_file() {
        state = state.restore(&Snapshot::open(&path)?, &path, schedule, device)?;
    }
    let mut log = open_log(&folder.join("log.jsonl"), state.step)?;

    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let threads = Threads::new(schedule.parts as usize);
    let bar = progress_bar(&name, schedule.steps, state.step);
    while state.step < schedule.steps {
        let begun = Instant::now();
        let step = state.step;
        let (value, grads) = gradients(&state.module, step, schedule.parts, &threads, &loss);
        ensure!(
            value.is_finite(),
            "the loss is {value} at step {step}; {} is the last snapshot before it",
            path.display()
        );
        let (grads, norm) = grads.clip(MAX_NORM);
        let rate = schedule.learning_rate(step);
        state.module = state.optimizer.step(state.module, grads, rate);
        state.ema.update(&state.module)?;
        state.step += 1;

        let seconds = begun.elapsed().as_secs_f64();
        writeln!(
            log,
            "{}",
            json!({"step": step, "loss": value, "norm": norm, "rate": rate, "seconds": seconds})
        )?;
        bar.set_position(state.step);
        bar.set_message(format!("loss {value:.4}"));
        if state.step.is_multiple_of(SAVE_EVERY) || state.step == schedule.steps {
            state
                .snapshot()
                .save(&path)
                .context("cannot save the snapshot")?;
            look(&state.averaged(), state.step)?;
        }
    }
    bar.finish();
    Ok(state.averaged())
}

/// Mean loss and mean gradients over the micro-batches of a step.
fn gradients<M: Module + Sync>(
    module: &M,
    step: u64,
    n_parts: u64,
    threads: &Threads,
    loss: impl Fn(&M, u64) -> Tensor<1> + Sync,
) -> (f64, NamedGradients) {
    let parts: Vec<u64> = (step * n_parts..(step + 1) * n_parts).collect();
    let found = threads.map(&parts, |&part| {
        // A copy with its own leaves, because burn serialises backward passes of graphs that share a leaf.
        let module = module.valid().train();
        let loss = loss(&module, part);
        let value: f64 = loss.clone().into_data().iter::<f64>().sum();
        (value, NamedGradients::take(&module, &mut loss.backward()))
    });
    let (mut value, mut grads) = (0.0, NamedGradients::default());
    for (part, gradients) in found {
        value += part;
        grads = grads.plus(gradients);
    }
    let share = 1.0 / n_parts as f64;
    (value * share, grads.scale(share))
}

/// Opens the log for appending, without the lines written by a killed run after its last snapshot.
fn open_log(path: &Path, step: u64) -> Result<File> {
    if path.is_file() {
        let text = std::fs::read_to_string(path)?;
        let kept: String = text
            .lines()
            .take(step as usize)
            .flat_map(|line| [line, "\n"])
            .collect();
        write_atomically(path, |file| file.write_all(kept.as_bytes()))?;
    }
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

pub(crate) fn progress_bar(name: &str, steps: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:14} {bar:30} {pos}/{len} {msg} {eta} left");
    let bar = ProgressBar::new(steps)
        .with_prefix(name.to_owned())
        .with_position(done);
    bar.set_style(style.expect("the template is valid"));
    bar.reset_eta();
    bar
}

struct State<M> {
    step: u64,
    module: M,
    optimizer: AdamW,
    ema: Ema,
}

impl<M: Module> State<M> {
    fn new(module: M, schedule: Schedule) -> Self {
        let ema = Ema::new(&module, schedule.ema);
        Self {
            step: 0,
            module,
            optimizer: AdamW::new(schedule.adamw),
            ema,
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.step);
        snapshot.insert("module", named_tensors(&self.module));
        snapshot.insert_adamw("adamw", &self.optimizer);
        snapshot.insert_ema("ema", &self.ema);
        snapshot
    }

    fn restore(
        self,
        snapshot: &Snapshot,
        path: &Path,
        schedule: Schedule,
        device: &Device,
    ) -> Result<Self> {
        let inner = device.clone().inner();
        Ok(Self {
            step: snapshot.step(),
            module: with_tensors(self.module, &snapshot.group("module"), path)?,
            optimizer: snapshot.adamw("adamw", schedule.adamw, &inner),
            ema: snapshot.ema("ema", schedule.ema, &inner),
        })
    }

    fn averaged(&self) -> M {
        self.ema.apply(self.module.clone()).valid()
    }
}
