//! Distils a teacher into a one-step student, from prompts alone.
//!
//! A run can be stopped (Ctrl-C, or killed) and started again with the same command: it goes on from its
//! last snapshot and ends with the same weights.
//!
//! ```sh
//! cargo run --release --example distill -- --teacher sd21-base --student sd-turbo \
//!     --prompts prompts.txt --recipe recipe.toml --run runs/a
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, Tensor};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_checkpoint::{Model, save};
use swiftbrush_clip::{Clip, TextEncoder, Tokenizer};
use swiftbrush_pipeline::Loader;
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_trainer::{ClipNetworks, Distiller, Event, Networks, Prompts, Recipe, resume, run};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny};

use examples_common::{Wanted, device, find, grid, pictures, write_png};

/// Distils a teacher into a one-step student.
#[derive(Debug, Parser)]
struct Args {
    /// Model folder of the teacher, with tokenizer, text encoder, scheduler and autoencoder.
    #[arg(long)]
    teacher: String,
    /// Which component of it is the teacher's denoiser.
    #[arg(long, default_value = "unet")]
    teacher_unet: String,
    /// Model folder of the student to begin with.
    #[arg(long)]
    student: String,
    /// Which component of it is the student's denoiser.
    #[arg(long, default_value = "unet")]
    student_unet: String,
    /// Model folder with `clip` and `taesd`, for a recipe with a CLIP loss.
    #[arg(long)]
    clip: Option<PathBuf>,
    /// A file with a prompt on each line.
    #[arg(long)]
    prompts: PathBuf,
    /// Settings as TOML; without it scheme A of the paper.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Folder of the run: snapshot, log, pictures, and the student in the end.
    #[arg(long)]
    run: PathBuf,
    /// Where to compute.
    #[arg(long, default_value = examples_common::DEVICES[0])]
    device: String,
}

/// Set by Ctrl-C: the run saves and stops after its step.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("no handler for Ctrl-C")?;
    let device = device(&args.device)?;
    let recipe = args
        .recipe
        .as_deref()
        .map_or(Ok(Recipe::full()), Recipe::open)?;
    let prompts = Prompts::open(&args.prompts, recipe.seed)?;
    let components = ["unet", "vae", "text_encoder"];
    let teacher = Model::open(find(&args.teacher, Wanted::Model(&components, None))?)?;
    let vae = AutoencoderKl::from_model(&teacher, "vae", Some(DType::F32), &device)?;
    let networks = networks(&args, &teacher, &device)?;
    let mut distiller = resume(Distiller::new(recipe, networks, &device)?, &args.run)?;

    let bar = progress_bar(&distiller);
    run(&mut distiller, &prompts, &args.run, |event| {
        match event {
            Event::Step(report) => {
                bar.set_position(report.step + 1);
                bar.set_message(format!("fake teacher {:.4}", report.fake_loss));
            }
            Event::Preview { step, latents, .. } => {
                if let Err(error) =
                    preview(&vae, latents, &args.run.join(format!("step-{step:07}.png")))
                {
                    tracing::warn!("no picture of step {step}: {error:#}");
                }
            }
            _ => {}
        }
        if STOP.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    bar.finish();
    let finished = distiller.n_steps() >= distiller.recipe().steps;
    if finished {
        export(&distiller, &args.run)?;
    }
    Ok(())
}

fn networks(args: &Args, teacher: &Model, device: &Device) -> Result<Networks> {
    let f32 = Some(DType::F32);
    let config = UNetConfig::from_model(teacher, &args.teacher_unet)?;
    let scheduler = Loader::new(teacher.clone(), device).scheduler()?;
    let clip = match &args.clip {
        Some(path) => {
            let folder = Model::open(path)?;
            let clip = Clip::from_model(&folder, "clip", f32, device)?;
            Some(ClipNetworks {
                clip,
                decoder: AutoencoderTiny::from_model(&folder, "taesd", f32, device)?,
            })
        }
        None => None,
    };
    Ok(Networks {
        tokenizer: Tokenizer::from_model(teacher, "tokenizer")?,
        text_encoder: TextEncoder::from_model(teacher, "text_encoder", f32, device)?,
        teacher: UNet::from_model(teacher, &args.teacher_unet, f32, device)?,
        student: UNet::from_model(
            &Model::open(find(&args.student, Wanted::Model(&["unet"], None))?)?,
            &args.student_unet,
            f32,
            device,
        )?,
        schedule: NoiseSchedule::new(&scheduler),
        latents: [config.in_channels, config.sample_size, config.sample_size],
        clip,
    })
}

fn progress_bar(distiller: &Distiller) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {msg} {eta} left");
    let bar = ProgressBar::new(distiller.recipe().steps).with_position(distiller.n_steps());
    bar.set_style(style.expect("the template is valid"));
    bar.reset_eta();
    bar
}

fn preview(vae: &AutoencoderKl, latents: Tensor<4>, path: &Path) -> Result<()> {
    write_png(&grid(&pictures(vae.decode(latents)), 4), path)
}

/// Writes the student, present and averaged, as components that take the place of `unet`.
fn export(distiller: &Distiller, run: &Path) -> Result<()> {
    let metadata = || HashMap::from([("format".to_owned(), "pt".to_owned())]);
    for (name, unet) in [
        ("unet", distiller.student()),
        ("unet_ema", distiller.averaged_student()),
    ] {
        let path = run.join(name).join("diffusion_pytorch_model.safetensors");
        save(&unet, &path, DType::F32, metadata())?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
