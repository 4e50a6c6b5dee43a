//! Makes the miniature: SwiftBrush v2 whole, in a world of coloured shapes, on two CPU cores.
//!
//! Every command trains one network and writes it into `<root>/model`, a model folder in the layout of
//! diffusers. Each can be stopped and started again: it goes on from its last snapshot.
//!
//! ```sh
//! cargo run --release --example miniature -- --root runs/miniature autoencoder --steps 2000
//! cargo run --release --example miniature -- --root runs/miniature --help
//! ```
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program talks to its user"
)]

mod data;
mod first_stages;
mod model;
mod scorer;
mod students;
mod teacher;
mod training;
mod world;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::DType;
use clap::{Parser, Subcommand};
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swiftbrush_checkpoint::write_json;
use swiftbrush_clip::{Clip, ClipConfig, TextConfig, TextEncoder, Tokenizer};
use swiftbrush_pipeline::Method;
use swiftbrush_scheduler::SamplerKind;
use swiftbrush_trainer::Recipe;
use swiftbrush_unet::UNet;
use swiftbrush_vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};
use swiftbrush_weight_interp::interpolate_files;

use crate::first_stages::{
    clip_config, kl_config, scaling_factor, tiny_config, train_autoencoder, train_clip,
    train_decoder, train_tiny,
};
use crate::model::{Workshop, scheduler, unet_config, write_component};
use crate::scorer::Score;
use crate::teacher::Painter;

/// Makes the miniature, network by network.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the workshop: snapshots, logs and the model.
    #[arg(long)]
    root: PathBuf,
    /// Everything random follows from this number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute.
    #[arg(long, default_value = examples_common::DEVICES[0])]
    device: String,
    #[command(subcommand)]
    command: Command,
}

/// Steps of each stage from nothing: what went into the model that ships, taken together.
mod steps {
    pub(crate) const AUTOENCODER: u64 = 4500;
    pub(crate) const CLIP: u64 = 3000;
    pub(crate) const TEACHER: u64 = 33_000;
    pub(crate) const START: u64 = 14_500;
    pub(crate) const DECODER: u64 = 13_000;
    pub(crate) const TINY: u64 = 4000;
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything, from an empty folder to the averaged student; stages that are finished are skipped.
    All,
    /// The autoencoder.
    Autoencoder {
        #[arg(long, default_value_t = steps::AUTOENCODER)]
        steps: u64,
    },
    /// The autoencoder's decoder, trained on for latents as imprecise as a denoiser's.
    Decoder {
        #[arg(long, default_value_t = steps::DECODER)]
        steps: u64,
    },
    /// The tiny autoencoder.
    Tiny {
        #[arg(long, default_value_t = steps::TINY)]
        steps: u64,
    },
    /// The tokenizer, CLIP, and the text encoder in it.
    Clip {
        #[arg(long, default_value_t = steps::CLIP)]
        steps: u64,
    },
    /// The teacher.
    Teacher {
        #[arg(long, default_value_t = steps::TEACHER)]
        steps: u64,
        /// A denoiser whose weights it begins with [default: random weights].
        #[arg(long)]
        from: Option<String>,
    },
    /// The student that distillation begins with, the stand-in for SD-Turbo.
    Start {
        #[arg(long, default_value_t = steps::START)]
        steps: u64,
        /// The denoiser whose weights it begins with.
        #[arg(long, default_value = "teacher")]
        from: String,
    },
    /// A student: student_a (all weights, variational score distillation), student_b (low-rank, with the
    /// clamped CLIP loss), student_b_unclamped (the same without the clamp, for the table).
    Distill {
        /// Its name.
        name: String,
        /// Settings [default: the file of its name beside the source].
        #[arg(long)]
        recipe: Option<PathBuf>,
        /// The denoiser whose weights it begins with.
        #[arg(long, default_value = "start")]
        from: String,
    },
    /// Scores one of the denoisers on seen and unseen captions.
    Evaluate {
        /// teacher, start, student_a, student_b, student_b_unclamped, or one that `merge` wrote.
        name: String,
        /// Captions of each kind.
        #[arg(long, default_value_t = 512)]
        captions: usize,
        /// Steps of DDIM; without it the one-step rule.
        #[arg(long)]
        ddim: Option<usize>,
        /// Scale of guidance [default: the teacher's with DDIM, none in one step].
        #[arg(long)]
        guidance: Option<f64>,
    },
    /// Draws true pictures for the program `evaluate`: 00000.png … and prompts.txt.
    Truth {
        /// Where they go.
        output: PathBuf,
        /// Pictures.
        #[arg(long, default_value_t = 1024)]
        count: usize,
        /// With a colour and a shape that are never together in training.
        #[arg(long)]
        unseen: bool,
    },
    /// Averages two denoisers into the component `merged`: λ·A + (1−λ)·B.
    Merge {
        #[arg(long, default_value_t = 0.5)]
        lambda: f64,
        #[arg(long, default_value = "student_a")]
        a: String,
        #[arg(long, default_value = "student_b")]
        b: String,
    },
    /// Writes the folder that ships, in half precision, with one of the denoisers as `unet`.
    Ship {
        /// The denoiser.
        name: String,
        /// Where the folder goes.
        output: PathBuf,
    },
}

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    let args = Args::parse();
    let workshop = Workshop {
        root: args.root,
        device: examples_common::device(&args.device)?,
        seed: args.seed,
    };
    match args.command {
        Command::All => make_all(&workshop),
        Command::Autoencoder { steps } => make_autoencoder(&workshop, steps),
        Command::Decoder { steps } => make_decoder(&workshop, steps),
        Command::Tiny { steps } => make_tiny(&workshop, steps),
        Command::Clip { steps } => make_clip(&workshop, steps),
        Command::Teacher { steps, from } => {
            teacher::train_teacher(&workshop, steps, from.as_deref())
        }
        Command::Start { steps, from } => students::train_start(&workshop, steps, &from),
        Command::Distill { name, recipe, from } => {
            let recipe = recipe.unwrap_or_else(|| students::recipe_path(&name));
            students::distill(&workshop, &name, &from, Recipe::open(&recipe)?)
        }
        Command::Evaluate {
            name,
            captions,
            ddim,
            guidance,
        } => evaluate(&workshop, &name, captions, ddim, guidance),
        Command::Truth {
            output,
            count,
            unseen,
        } => draw_truth(workshop.seed, &output, count, unseen),
        Command::Merge { lambda, a, b } => merge(&workshop, lambda, &a, &b),
        Command::Ship { name, output } => ship(&workshop, &name, &output),
    }
}

fn make_all(workshop: &Workshop) -> Result<()> {
    make_autoencoder(workshop, steps::AUTOENCODER)?;
    make_decoder(workshop, steps::DECODER)?;
    make_clip(workshop, steps::CLIP)?;
    teacher::train_teacher(workshop, steps::TEACHER, None)?;
    students::train_start(workshop, steps::START, "teacher")?;
    make_tiny(workshop, steps::TINY)?;
    for name in ["student_a", "student_b", "student_b_unclamped"] {
        let recipe = Recipe::open(&students::recipe_path(name))?;
        students::distill(workshop, name, "start", recipe)?;
    }
    merge(workshop, 0.5, "student_a", "student_b")
}

fn make_autoencoder(workshop: &Workshop, steps: u64) -> Result<()> {
    let (seed, device) = (workshop.seed, &workshop.device);
    let kl = train_autoencoder(&workshop.stage("autoencoder"), seed, steps, device)?;
    let scaling_factor = scaling_factor(&kl, seed, device);
    let config = AutoencoderKlConfig {
        scaling_factor,
        ..kl_config()
    };
    write_component(
        &workshop.path("vae"),
        "AutoencoderKL",
        &config,
        &kl,
        DType::F32,
    )
}

fn make_decoder(workshop: &Workshop, steps: u64) -> Result<()> {
    let folder = workshop.model()?;
    let kl = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), &workshop.device)?;
    let kl = train_decoder(
        &workshop.stage("decoder"),
        kl,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    let config = AutoencoderKlConfig::from_model(&folder, "vae")?;
    write_component(
        &workshop.path("vae"),
        "AutoencoderKL",
        &config,
        &kl,
        DType::F32,
    )
}

fn make_tiny(workshop: &Workshop, steps: u64) -> Result<()> {
    let folder = workshop.model()?;
    let kl = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), &workshop.device)?;
    let tiny = train_tiny(
        &workshop.stage("tiny"),
        &kl,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    write_component(
        &workshop.path("taesd"),
        "AutoencoderTiny",
        &tiny_config(),
        &tiny,
        DType::F32,
    )
}

fn make_clip(workshop: &Workshop, steps: u64) -> Result<()> {
    let folder = workshop.model()?;
    let n_tokens = data::write_tokenizer(&workshop.path("tokenizer"))?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let config = clip_config(n_tokens);
    let clip = train_clip(
        &workshop.stage("clip"),
        &tokenizer,
        n_tokens,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    write_component(
        &workshop.path("clip"),
        "CLIPModel",
        &config,
        &clip,
        DType::F32,
    )?;
    // CLIP can be trained on; a teacher needs the text encoder that it learned with.
    let path = workshop.path("text_encoder");
    if path.is_dir() {
        return Ok(());
    }
    let text_encoder = clip.into_text_encoder();
    write_component(
        &path,
        "CLIPTextModel",
        &config.text_config,
        &text_encoder,
        DType::F32,
    )
}

/// Prints a row of the table in docs/results.md.
fn evaluate(
    workshop: &Workshop,
    name: &str,
    count: usize,
    ddim: Option<usize>,
    guidance: Option<f64>,
) -> Result<()> {
    let (method, usual) = match ddim {
        Some(steps) => (Method::Sampler(SamplerKind::Ddim, steps), teacher::GUIDANCE),
        None => (Method::OneStep, 1.0),
    };
    let painter = Painter {
        pipeline: &workshop.pipeline(name)?,
        method,
        guidance: guidance.unwrap_or(usual),
    };
    let scenes = |held_out| teacher::captions(workshop.seed ^ 9, count, held_out);
    let seen = painter.tally(&scenes(false))?;
    let unseen = painter.tally(&scenes(true))?;
    let diversity = painter.diversity(&teacher::captions(workshop.seed ^ 10, 32, false))?;
    eprintln!("{name}, {method:?}, {count} captions\n  seen: {seen}\n  unseen: {unseen}");
    let (seen, unseen) = (seen.share(Score::all), unseen.share(Score::all));
    let calls = painter.n_calls();
    println!("| {name} | {calls} | {seen:.3} | {unseen:.3} | {diversity:.3} |");
    Ok(())
}

fn draw_truth(seed: u64, output: &Path, count: usize, unseen: bool) -> Result<()> {
    std::fs::create_dir_all(output)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut prompts = String::new();
    for (index, scene) in teacher::captions(seed, count, unseen).iter().enumerate() {
        let side = data::SIDE as u32;
        let picture = RgbImage::from_raw(side, side, scene.draw(data::SIDE, &mut rng));
        let picture = picture.context("three bytes a pixel")?;
        examples_common::write_png(&picture, &output.join(format!("{index:05}.png")))?;
        prompts.push_str(&scene.caption());
        prompts.push('\n');
    }
    std::fs::write(output.join("prompts.txt"), prompts)?;
    Ok(())
}

fn merge(workshop: &Workshop, lambda: f64, a: &str, b: &str) -> Result<()> {
    let file = |name: &str| {
        workshop
            .path(name)
            .join("diffusion_pytorch_model.safetensors")
    };
    interpolate_files(&file(a), &file(b), lambda, &file("merged"))?;
    std::fs::copy(
        workshop.path(a).join("config.json"),
        workshop.path("merged").join("config.json"),
    )?;
    Ok(())
}

/// Copies the model with its weights in f16; the scheduler's class says that it paints in one step.
fn ship(workshop: &Workshop, name: &str, output: &Path) -> Result<()> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    let half = DType::F16;
    let unet = UNet::from_model(&folder, name, Some(DType::F32), device)?;
    write_component(
        &output.join("unet"),
        "UNet2DConditionModel",
        &unet_config(),
        &unet,
        half,
    )?;
    let vae = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), device)?;
    let config = AutoencoderKlConfig::from_model(&folder, "vae")?;
    write_component(&output.join("vae"), "AutoencoderKL", &config, &vae, half)?;
    if folder.has("taesd") {
        let tiny = AutoencoderTiny::from_model(&folder, "taesd", Some(DType::F32), device)?;
        let config = AutoencoderTinyConfig::from_model(&folder, "taesd")?;
        write_component(
            &output.join("taesd"),
            "AutoencoderTiny",
            &config,
            &tiny,
            half,
        )?;
    }
    let text_encoder = TextEncoder::from_model(&folder, "text_encoder", Some(DType::F32), device)?;
    let config = TextConfig::from_model(&folder, "text_encoder")?;
    write_component(
        &output.join("text_encoder"),
        "CLIPTextModel",
        &config,
        &text_encoder,
        half,
    )?;
    let clip = Clip::from_model(&folder, "clip", Some(DType::F32), device)?;
    let config = ClipConfig::from_model(&folder, "clip")?;
    write_component(&output.join("clip"), "CLIPModel", &config, &clip, half)?;
    copy_tokenizer(&workshop.path("tokenizer"), &output.join("tokenizer"))?;
    write_json(
        &output.join("scheduler/scheduler_config.json"),
        &scheduler("DDPMScheduler").with_one_step(true),
    )?;
    let index = serde_json::json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [null, null],
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
    });
    Ok(write_json(&output.join("model_index.json"), &index)?)
}

fn copy_tokenizer(tokenizer: &Path, output: &Path) -> Result<()> {
    std::fs::create_dir_all(output)?;
    for file in [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        std::fs::copy(tokenizer.join(file), output.join(file))?;
    }
    Ok(())
}
