//! Distils a teacher into a one-step student, using only prompts, and exports the students of a run.
//!
//! The same command resumes a run that was stopped (Ctrl-C, SIGTERM) or killed, which then ends with the
//! same weights as a run that was never stopped.
//!
//! ```sh
//! cargo run --release --example distill -- --teacher sd21-base --student sd-turbo \
//!     --prompts prompts.txt --recipe examples/recipes/scheme-a.toml --run runs/a
//! cargo run --release --example distill -- export runs/a --output student
//! ```
//!
//! Built with the feature `mpi`, `mpirun -n 4 distill …` trains on four ranks; on each machine, rank r uses device r.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

mod export;
mod images;
mod progress;
mod ranks;
mod single_file;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Model, remove_unfinished, write_json};
use swiftbrush_pipeline::Loader;
use swiftbrush_trainer::{
    ClipNetworks, Distiller, Event, LatentSet, LpipsNetworks, MemoryPlan, Networks, Observers,
    PromptFile, Prompts, Recipe, RegressionLoss, RewardModel, RewardNetworks, Run, TensorBoard,
};
use swiftbrush_vae::AutoencoderKl;

use examples_common::{Wanted, device, find, named};
use images::Images;
use progress::Progress;
use ranks::Ranks;

/// Distils a teacher into a one-step student, or exports the student of a run.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Option<TrainArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the student of a run as a model folder for diffusers.
    Export(export::ExportArgs),
}

#[derive(Debug, clap::Args)]
struct TrainArgs {
    /// Model of the teacher, with tokenizer, text encoder, scheduler and autoencoder: a folder, a file,
    /// or a name on the hub.
    #[arg(long)]
    teacher: String,
    /// Denoiser component of the teacher's model.
    #[arg(long, default_value = "unet")]
    teacher_unet: String,
    /// Model of the initial student, with its scheduler.
    #[arg(long)]
    student: String,
    /// Denoiser component of the student's model.
    #[arg(long, default_value = "unet")]
    student_unet: String,
    /// Model folder with `clip` and `taesd`, for a recipe with a CLIP loss or a watcher; `taesd` is enough for published
    /// rewards.
    #[arg(long)]
    clip: Option<PathBuf>,
    /// Network of a published reward of the recipe, NAME=FOLDER: hps or pick_score, with configuration and weights of
    /// transformers or open_clip. Repeat for several.
    #[arg(long, value_name = "NAME=FOLDER")]
    reward: Vec<String>,
    /// Prompts, FILE or FILE=WEIGHT: text with one prompt per line, or JSON Lines with captions. Repeat for several files; a
    /// weight is the number of times that each prompt of a file appears in an epoch [default: 1].
    #[arg(long, required = true, num_args = 1..)]
    prompts: Vec<String>,
    /// Key of the captions in JSON Lines [default: caption, prompt or text].
    #[arg(long)]
    caption_key: Option<String>,
    /// Folder of pairs written by make_pairs, for a recipe with [pairs].
    #[arg(long)]
    pairs: Option<PathBuf>,
    /// Weights of LPIPS, for a recipe whose regression has loss = "lpips": torchvision's vgg16 and the package's
    /// weights/v0.1/vgg.pth. `taesd` of --clip decodes.
    #[arg(long, num_args = 2, value_names = ["VGG16", "LINEAR"])]
    lpips: Vec<PathBuf>,
    /// Folder of latents written by encode_images, for a recipe with [denoise].
    #[arg(long)]
    images: Option<PathBuf>,
    /// Settings as TOML [default: scheme A of the paper].
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Folder of the run: snapshots, logs, TensorBoard's event files, previews, and the student after the last step.
    #[arg(long)]
    run: PathBuf,
    /// Settings and inputs that may differ from those of the snapshot, such as steps,prompts.
    #[arg(long, value_delimiter = ',')]
    accept_changes: Vec<String>,
    /// Device to compute on.
    #[arg(long, default_value = examples_common::DEVICES[0])]
    device: String,
    /// Memory for each rank in GiB [default on a CPU: what the system reports as available].
    #[arg(long)]
    memory: Option<f64>,
    /// Prints the memory that the run needs, without training.
    #[arg(long)]
    dry_run: bool,
}

/// The models of a run, stored in its folder for `export`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sources {
    /// The teacher's model.
    pub(crate) teacher: PathBuf,
    /// The initial student's model.
    pub(crate) student: PathBuf,
    /// The denoiser component of the student's model.
    pub(crate) student_unet: String,
}

/// The name of the [`Sources`] file in the folder of a run.
pub(crate) const SOURCES: &str = "sources.json";

/// Set by Ctrl-C and SIGTERM: the run stops after its current step and saves.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    start(Args::parse())
}

fn start(args: Args) -> Result<()> {
    match (args.command, args.train) {
        (Some(Command::Export(args)), _) => export::export(&args),
        (None, Some(args)) => train(&args),
        (None, None) => unreachable!("clap requires the arguments of one of the two"),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    ctrlc::set_handler(stop).context("cannot handle Ctrl-C")?;
    let ranks = Ranks::start()?;
    let device = device(&ranks.device(&args.device))?;
    let recipe = args
        .recipe
        .as_deref()
        .map_or(Ok(Recipe::full()), Recipe::open)?;
    let prompts = open_prompts(args, recipe.seed)?;
    let components = ["unet", "vae", "text_encoder"];
    let teacher = Model::open(find(&args.teacher, Wanted::Model(&components, None))?)?;
    let student = Model::open(find(&args.student, Wanted::Model(&["unet"], None))?)?;
    let has_images = recipe.preview_every > 0 || recipe.watch.is_some();
    let vae = match has_images {
        true => Some(AutoencoderKl::from_model(
            &teacher,
            "vae",
            Some(DType::F32),
            &device,
        )?),
        false => None,
    };
    let networks = networks(args, &recipe, [&teacher, &student], &device)?;
    check_memory(args, &recipe, &networks, ranks.numbers())?;
    if args.dry_run {
        return Ok(());
    }
    let mut distiller = Distiller::new(recipe, networks, &device)?;
    for folder in [&args.pairs, &args.images].into_iter().flatten() {
        distiller = distiller.with_latents(LatentSet::open(folder)?)?;
    }
    let distiller = ranks.join(distiller)?;
    let mut run = Run::open(distiller, prompts, &args.run, &args.accept_changes)?;
    if run.distiller().rank() > 0 {
        return Ok(run.train(|_: &Event| ControlFlow::Continue(()))?);
    }
    let sources = Sources {
        teacher: std::path::absolute(teacher.root())?,
        student: std::path::absolute(student.root())?,
        student_unet: args.student_unet.clone(),
    };
    write_json(args.run.join(SOURCES), &sources)?;

    let tensor_board =
        TensorBoard::create(args.run.join("tensorboard"), run.distiller().n_steps())?;
    let observers = Observers::default()
        .with(tensor_board)
        .with(Images::new(&args.run, vae))
        .with(Progress::new(run.distiller()))
        .with(|_: &Event| match STOP.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
    run.train(observers)?;
    finish(&run, &student, args)
}

/// Opens the prompts and prints a summary of each file.
fn open_prompts(args: &TrainArgs, seed: u64) -> Result<Prompts> {
    let files = args.prompts.iter().map(|text| {
        let (path, weight) = with_weight(text)?;
        let file = PromptFile::new(path).with_weight(weight);
        Ok(match &args.caption_key {
            Some(key) => file.with_key(key),
            None => file,
        })
    });
    let prompts = Prompts::open_files(&files.collect::<Result<Vec<_>>>()?, seed)?;
    for counts in prompts.counts() {
        eprintln!("{counts}");
    }
    Ok(prompts)
}

/// Splits FILE or FILE=WEIGHT. An existing file whose name contains `=` takes precedence.
fn with_weight(text: &str) -> Result<(&str, f64)> {
    match text.rsplit_once('=') {
        Some((file, weight)) if !Path::new(text).exists() => {
            let weight = weight.parse().with_context(|| {
                format!("--prompts {text}: no such file, and {weight:?} is not a weight")
            })?;
            Ok((file, weight))
        }
        _ => Ok((text, 1.0)),
    }
}

/// Prints the plan of a run's memory, and rejects a run that would not fit. On a CPU, the ranks of a machine share its memory.
fn check_memory(
    args: &TrainArgs,
    recipe: &Recipe,
    networks: &Networks,
    [rank, ranks, local_ranks]: [usize; 3],
) -> Result<()> {
    if rank == 0 {
        eprintln!("{}", MemoryPlan::new(recipe, networks, ranks));
    }
    let loaded = || Some(available_memory()? / local_ranks as u64 + resident_memory()?);
    let available = match args.memory {
        Some(gibibytes) => Some((gibibytes * f64::from(1 << 30)) as u64),
        None if args.device == "flex" => loaded(),
        None => None,
    };
    if let Some(available) = available {
        MemoryPlan::check(recipe, networks, ranks, available)?;
    }
    Ok(())
}

/// Memory that the system could still give to programs, if it reports that.
fn available_memory() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

/// Memory of this process, which has loaded the networks already.
fn resident_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmRSS:")
}

fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Stops after the current step; a second signal stops immediately.
fn stop() {
    if STOP.swap(true, Ordering::Relaxed) {
        std::process::exit(130);
    }
    eprintln!("stopping after this step; repeat to stop immediately without saving");
}

fn networks(
    args: &TrainArgs,
    recipe: &Recipe,
    [teacher, student]: [&Model; 2],
    device: &Device,
) -> Result<Networks> {
    let networks = Networks::load(
        (teacher, &args.teacher_unet),
        (student, &args.student_unet),
        recipe,
        device,
    )?;
    for (model, component) in [(teacher, &args.teacher_unet), (student, &args.student_unet)] {
        let loader = Loader::new(model.clone(), device).with_denoiser(component);
        for warning in loader.warnings()? {
            eprintln!("{}: {warning}", model.root().display());
        }
    }
    if networks.schedule != networks.student_schedule {
        eprintln!(
            "teacher and student have different schedules: predictions of the teacher are converted"
        );
    }
    let networks = with_rewards(networks, args, recipe, device)?;
    let networks = with_lpips(networks, args, recipe, device)?;
    let uses_clip = recipe.clip.is_some() || recipe.watch.is_some();
    Ok(match (&recipe.clip, &args.clip) {
        (_, Some(path)) if uses_clip => {
            networks.with_clip(ClipNetworks::load(&Model::open(path)?, recipe, device)?)
        }
        (Some(_), None) => {
            anyhow::bail!("the recipe has a CLIP loss: give --clip FOLDER with clip and taesd")
        }
        (_, Some(path)) if recipe.rewards.is_empty() && args.lpips.is_empty() => {
            eprintln!(
                "--clip {} is not used: the recipe has neither [clip] nor [rewards] nor [watch], and there is no --lpips",
                path.display()
            );
            networks
        }
        (_, _) => networks,
    })
}

/// Adds the networks of LPIPS.
fn with_lpips(
    networks: Networks,
    args: &TrainArgs,
    recipe: &Recipe,
    device: &Device,
) -> Result<Networks> {
    let [vgg16, linear] = &args.lpips[..] else {
        return Ok(networks);
    };
    let mut regressions = recipe.pairs.iter().chain(&recipe.denoise);
    ensure!(
        regressions.any(|regression| regression.loss == RegressionLoss::Lpips),
        "--lpips would not be used: the recipe has no regression with loss = \"lpips\""
    );
    let decoder = args.clip.as_ref();
    let decoder = decoder.context("--lpips: give --clip FOLDER with taesd")?;
    let decoder = Model::open(decoder)?;
    let lpips = LpipsNetworks::load([vgg16, linear], &decoder, recipe, device)?;
    Ok(networks.with_lpips(lpips))
}

/// Adds the networks of the published rewards.
fn with_rewards(
    networks: Networks,
    args: &TrainArgs,
    recipe: &Recipe,
    device: &Device,
) -> Result<Networks> {
    args.reward.iter().try_fold(networks, |networks, text| {
        let at = || format!("--reward {text}");
        let parts = text.split_once('=').context("expected NAME=FOLDER");
        let (name, folder) = parts.with_context(at)?;
        let model: RewardModel = named(name).map_err(anyhow::Error::msg).with_context(at)?;
        ensure!(
            recipe.rewards.contains_key(&model),
            "--reward {text} would not be used: the recipe has no [rewards.{name}]"
        );
        let decoder = args.clip.as_ref();
        let decoder =
            decoder.with_context(|| format!("{}: give --clip FOLDER with taesd", at()))?;
        let [folder, decoder] = [Path::new(folder), decoder].map(Model::open);
        let found = RewardNetworks::load(&folder?, &decoder?, recipe, device)?;
        Ok(networks.with_reward(model, found))
    })
}

/// After the last step, writes the current and the averaged student as components.
fn finish(run: &Run, student: &Model, args: &TrainArgs) -> Result<()> {
    let done = run.distiller().n_steps();
    if !run.is_finished() {
        let steps = run.distiller().recipe().steps;
        eprintln!("saved at step {done} of {steps}; the same command resumes the run");
        return Ok(());
    }
    let trained = run.distiller().trained_student();
    for (name, trained) in [("unet", trained.clone()), ("unet_ema", trained.averaged())] {
        let folder = args.run.join(name);
        remove_unfinished(&folder)?;
        export::write_denoiser(&trained, student, &args.student_unet, DType::F32, &folder)?;
    }
    Ok(())
}
