//! Generates pictures from prompts.
//!
//! Without `--model` it uses the miniature in this repository, a one-step model of coloured shapes that is small enough for any
//! machine.
//!
//! ```sh
//! cargo run --release --example generate -- "a red circle above a green star on a white background"
//! cargo run --release --example generate -- --model stabilityai/sd-turbo --output cat.png "a photo of a cat"
//! cargo run --release --example generate -- --model v1-5.safetensors --lora style.safetensors=0.8 \
//!     --steps 25 --guidance 7.5 --rng cpu --seed 42 "a castle"
//! cargo run --release --example generate -- --model sd-turbo --image sketch.png --strength 0.6 "a castle"
//! cargo run --release --example generate -- --edit picture.png --from "a red circle" "a blue circle"
//! cargo run --release --example generate -- --to "a blue ring" --frames 16 --output frames "a red ring"
//! ```
//!
//! Each picture contains a record of how it was generated, which the example `verify` checks.
#![allow(clippy::print_stderr, reason = "programs print")]

#[cfg(test)]
mod edit_tests;
mod inputs;
mod jobs;
mod run;
mod settings;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use clap::Parser;
use swiftbrush_checkpoint::Archive;
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{DecoderKind, Loader, Record, Source};

use crate::inputs::{EditArgs, Input, Purpose};
use crate::jobs::{Job, Seed, check_file, jobs};
use crate::run::{Hashes, Painter, Run};
use crate::settings::{Settings, names_only};
use examples_common::model::{MethodArgs, ModelArgs};

/// Generates pictures from prompts.
#[derive(Debug, Parser)]
struct Args {
    /// The prompt
    prompt: Option<String>,
    /// File of prompts, one per line; blank lines are skipped. Pictures are numbered in that order: 00000.png, 00001.png …
    #[arg(long, conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// Seed of the first picture, incremented for each further one; -1 draws a random seed
    #[arg(long, default_value = "0", value_parser = Seed::parse, allow_negative_numbers = true)]
    seed: Seed,
    /// Number of pictures per prompt
    #[arg(long, default_value = "1", value_parser = positive)]
    count: usize,
    /// Start image instead of noise (PNG, JPEG, WebP, BMP, TIFF, PNM), rotated upright; with --size it is resized and cropped, else
    /// resized to the next smaller size that the model supports
    #[arg(long)]
    image: Option<PathBuf>,
    /// Share of the start image that is replaced with noise, 0 to 1; any share for one-step models, whole steps for others
    #[arg(long, default_value = "0.8", requires = "image", value_parser = share)]
    strength: f64,
    #[command(flatten)]
    edits: EditArgs,
    /// Prompt of the last frame of an animation, whose frames are written to the folder --output as 00000.png, 00001.png …
    #[arg(long, requires = "prompt", conflicts_with_all = ["prompts", "count", "edit", "noise", "save_tensors", "low_memory"])]
    to: Option<String>,
    /// Number of frames, both ends included, 2 or more
    #[arg(long, default_value = "16", requires = "to", value_parser = several)]
    frames: usize,
    /// Seed of the last frame; noise is interpolated spherically between the two seeds [default: that of --seed]
    #[arg(long, requires = "to")]
    to_seed: Option<u64>,
    /// Minimises memory: weights in f16, one network at a time, and decoding in tiles of 256 pixels (--vae kl)
    #[arg(long)]
    low_memory: bool,
    /// Number of pictures generated at once
    #[arg(long, default_value = "1", value_parser = batch)]
    batch: usize,
    /// PNG file of the picture [default: picture.png], or folder for several
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Enlarges each pixel to a square of this side, 1 to 64
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    enlarge: u32,
    /// Writes the predicted picture after each step next to the output
    #[arg(long, conflicts_with = "low_memory")]
    previews: bool,
    /// Omits the hashes of the model's files from the record
    #[arg(long)]
    no_hashes: bool,
    /// Records names instead of paths of the model, adapters and start image, for pictures that are shared
    #[arg(long)]
    names_only: bool,
    /// Initial noise, instead of drawing it from a seed: the tensor "noise" of a safetensors file
    #[arg(long)]
    noise: Option<PathBuf>,
    /// Writes tokens, context, noise, latents and image to a safetensors file, to compare with other programs
    #[arg(long)]
    save_tensors: Option<PathBuf>,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

fn batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=Record::MAX_BATCH) => Ok(number),
        _ => Err(format!(
            "expected a whole number from 1 to {}",
            Record::MAX_BATCH
        )),
    }
}

fn several(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 2..) => Ok(number),
        _ => Err("expected a whole number of at least 2".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    examples_common::print_warnings();
    paint(&Args::parse())
}

/// Set by Ctrl-C: generation ends after the current network call.
static STOP: AtomicBool = AtomicBool::new(false);

/// Checks everything that can be checked before loading, then loads and generates.
fn paint(args: &Args) -> Result<()> {
    let jobs = jobs(args)?;
    let input = Input::read(args)?;
    let device = args.model.device()?;
    let noise = noise(args, &jobs, &device)?;
    let source = source(args, &device)?;
    let loader = ModelArgs::loader(&source, &device)?;
    let settings = Settings::new(args, &loader, &source, input, noise.as_ref(), &device)?;
    eprintln!("{}", settings.describe(args, &source, &jobs));
    for warning in loader.warnings()? {
        eprintln!("warning: {warning}");
    }

    // Tests call this more than once.
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));
    let hashes = Hashes::start(args, &source);
    let is_int8 = loader.is_int8()?;
    let begun = Instant::now();
    let painter = match args.low_memory {
        true => Painter::InTurn(Box::new(loader)),
        false => Painter::AtOnce(Box::new(loader.load()?)),
    };
    eprintln!("loaded in {:.2} s", begun.elapsed().as_secs_f64());
    let run = Run {
        args,
        painter,
        is_int8,
        noise,
        device,
        record: record(args, source, &settings),
        input: settings.input,
        hashes,
    };
    run.run(&jobs)
}

fn source(args: &Args, device: &Device) -> Result<Source> {
    let mut source = args.model.source()?;
    if args.low_memory {
        let is_int8 = Loader::new(source.model()?, device)
            .with_options(source.options.clone())
            .is_int8()?;
        let options = &mut source.options;
        // Weights in int8 take less.
        options.storage = options.storage.or((!is_int8).then_some(DType::F16));
        options.split_guidance = true;
        // The tiny decoder needs little memory even without tiles.
        options.tiling = (options.decoder == DecoderKind::Kl).then_some(Tiling {
            side: 32,
            overlap: 8,
        });
    }
    Ok(source)
}

/// The noise given by `--noise`, for all pictures; also checks `--save-tensors`, which needs a single batch, too.
fn noise(args: &Args, jobs: &[Job], device: &Device) -> Result<Option<Tensor<4>>> {
    for (option, is_given) in [
        ("--noise", args.noise.is_some()),
        ("--save-tensors", args.save_tensors.is_some()),
    ] {
        ensure!(
            !is_given || jobs.len() <= args.batch,
            "{option} needs all {} pictures in one batch: give --batch {}",
            jobs.len(),
            jobs.len()
        );
    }
    if let Some(path) = &args.save_tensors {
        check_file(path, "--save-tensors")?;
    }
    let given = args.noise.as_deref();
    given.map(|path| read_noise(path, device)).transpose()
}

fn read_noise(path: &Path, device: &Device) -> Result<Tensor<4>> {
    let data = Archive::open(path)?.read("noise")?;
    let (rank, dtype) = (data.shape().num_dims(), data.dtype());
    ensure!(
        rank == 4 && dtype.is_float(),
        "{}: expected noise of floats with shape [batch, channels, height, width], found {dtype:?} with {rank} axes",
        path.display()
    );
    Ok(Tensor::from_data(data.convert_dtype(DType::F32), device))
}

/// The record of all pictures, without prompt, seed and hashes.
fn record(args: &Args, source: Source, settings: &Settings) -> Record {
    let scheduler = settings.scheduler.clone();
    let mut record = Record::with_parts(&source, &settings.request, settings.size, scheduler);
    record.source = source;
    record.device.clone_from(&args.model.device);
    record.rng = args.method.rng;
    match settings.input.as_ref().map(|input| &input.purpose) {
        Some(Purpose::Start(start)) => record.start = Some(start.clone()),
        Some(Purpose::Edit(edit)) => record.edit = Some(edit.clone()),
        None => {}
    }
    record.enlarged = args.enlarge;
    if args.names_only {
        names_only(&mut record);
    }
    record
}
