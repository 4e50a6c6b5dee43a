//! Trains the miniature: the complete SwiftBrush v2 method, in a world of coloured shapes, on two CPU cores.
//!
//! Every command trains one network and writes it to `<root>/model`, a model folder in diffusers' layout. Each can be
//! stopped and run again: it resumes from its last snapshot.
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

mod attributes;
mod autoencoders;
mod contrastive;
mod data;
mod edits;
mod judge;
mod ladder;
mod model;
mod negatives;
mod painter;
mod prefer;
mod protocol;
mod scorer;
mod ship;
mod stages;
mod students;
mod teacher;
mod training;
mod world;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::DType;
use clap::{Parser, Subcommand};
use examples_common::read_image;
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use swiftbrush_checkpoint::{read_json, write_json};
use swiftbrush_clip::{Clip, Tokenizer};
use swiftbrush_pipeline::{Method, Record};
use swiftbrush_scheduler::SamplerKind;
use swiftbrush_trainer::Recipe;
use swiftbrush_weight_interp::interpolate_files;

use crate::contrastive::told_shapes;
use crate::model::Workshop;
use crate::painter::{Painter, captions};
use crate::scorer::Score;
use crate::stages::steps;
use crate::students::PromptSet;
use crate::world::{HeldOut, Scene};

/// Train the miniature, network by network.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the snapshots, logs and the model.
    #[arg(long)]
    root: PathBuf,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to compute on.
    #[arg(long, default_value = examples_common::DEVICES[0])]
    device: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train everything, from an empty folder to the averaged student; finished stages are skipped.
    All,
    /// Train the autoencoder.
    Autoencoder {
        #[arg(long, default_value_t = steps::AUTOENCODER)]
        steps: u64,
    },
    /// Train the autoencoder's decoder further, for latents as imprecise as a denoiser's.
    Decoder {
        #[arg(long, default_value_t = steps::DECODER)]
        steps: u64,
    },
    /// Train the tiny autoencoder.
    Tiny {
        #[arg(long, default_value_t = steps::TINY)]
        steps: u64,
    },
    /// Train the tiny decoder further, for latents as imprecise as a denoiser's.
    TinyDecoder {
        #[arg(long, default_value_t = steps::TINY_DECODER)]
        steps: u64,
    },
    /// Create the tokenizer and train CLIP, whose text tower is the text encoder.
    Clip {
        #[arg(long, default_value_t = steps::CLIP)]
        steps: u64,
        /// CLIP to start training from [default: random weights].
        #[arg(long)]
        from: Option<String>,
    },
    /// Measure how well CLIP distinguishes shapes in unseen images.
    Judge {
        /// Number of images per class.
        #[arg(long, default_value_t = 4096)]
        count: usize,
        /// Judge one-step images of this denoiser instead, beside the scorer.
        #[arg(long)]
        student: Option<String>,
        /// Cosine below which the loss corrects an image.
        #[arg(long, default_value_t = 0.8)]
        threshold: f64,
    },
    /// Train the teacher.
    Teacher {
        #[arg(long, default_value_t = steps::TEACHER)]
        steps: u64,
        /// Denoiser to start training from [default: random weights].
        #[arg(long)]
        from: Option<String>,
    },
    /// Train the initial student of distillation, the counterpart of SD-Turbo.
    Start {
        #[arg(long, default_value_t = steps::START)]
        steps: u64,
        /// Denoiser whose weights training starts from.
        #[arg(long, default_value = "teacher")]
        from: String,
    },
    /// Distil a student: student_a (all weights, variational score distillation), student_b (low-rank, with the
    /// clamped CLIP loss) or student_b_unclamped (the same without the clamp).
    Distill {
        /// Name of the student.
        name: String,
        /// Recipe [default: NAME.toml next to the source].
        #[arg(long)]
        recipe: Option<PathBuf>,
        /// Denoiser whose weights training starts from.
        #[arg(long, default_value = "start")]
        from: String,
    },
    /// Score a denoiser on captions with known and with held-out pairs; `protocol` gives the reported figures.
    Evaluate {
        /// Name of the denoiser, such as teacher, start, student_a or merged.
        name: String,
        /// Number of captions per class.
        #[arg(long, default_value_t = 512)]
        captions: usize,
        /// Number of DDIM steps [default: one-step generation].
        #[arg(long)]
        ddim: Option<usize>,
        /// Guidance scale [default: the teacher's with DDIM, 1 in one step].
        #[arg(long)]
        guidance: Option<f64>,
    },
    /// Draw ground-truth images for the program `evaluate`: 00000.png … and prompts.txt.
    Truth {
        /// Folder of the images.
        output: PathBuf,
        /// Number of images.
        #[arg(long, default_value_t = 1024)]
        count: usize,
        /// Use only captions with a held-out pair.
        #[arg(long)]
        unseen: bool,
    },
    /// Score generated pictures against the captions in their records; fails if one is not right in everything.
    Score {
        /// PNG files with records.
        #[arg(required = true)]
        pictures: Vec<PathBuf>,
    },
    /// Train every student in docs/miniature.md over three seeds; finished ones are skipped, unfinished ones resumed.
    Ladder,
    /// Measure systems with the protocol of docs/miniature.md.
    #[command(subcommand)]
    Protocol(protocol::Command),
    /// Measure what negative prompts keep out of a student's images and what that costs.
    Negatives(negatives::Options),
    /// Tune a student towards its own best images, ranked by the scorer.
    Prefer(prefer::Options),
    /// Edit images of the shipped model with every method, and score the results.
    Edits(edits::Command),
    /// Average two denoisers: λ·A + (1−λ)·B.
    Merge {
        #[arg(long, default_value_t = 0.5)]
        lambda: f64,
        #[arg(long, default_value = "student_a")]
        a: String,
        #[arg(long, default_value = "student_b")]
        b: String,
        /// Name of the average.
        #[arg(long, default_value = "merged")]
        output: String,
    },
    /// Write CLIP and the tiny autoencoder of the shipped model, in half precision.
    ShipJudges {
        /// Folder of the model.
        output: PathBuf,
    },
    /// Write the shipped model, in half precision, with one of the denoisers as `unet`.
    Ship {
        /// Name of the denoiser.
        name: String,
        /// Folder of the model.
        output: PathBuf,
    },
}

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    let args = Args::parse();
    let workshop = Workshop {
        root: args.root,
        device: examples_common::device(&args.device)?,
        seed: args.seed,
    };
    match args.command {
        Command::All => stages::make_all(&workshop),
        Command::Autoencoder { steps } => stages::make_autoencoder(&workshop, steps),
        Command::Decoder { steps } => stages::make_decoder(&workshop, steps),
        Command::Tiny { steps } => stages::make_tiny(&workshop, steps),
        Command::TinyDecoder { steps } => stages::make_tiny_decoder(&workshop, steps),
        Command::Clip { steps, from } => stages::make_clip(&workshop, steps, from.as_deref()),
        Command::Judge {
            count,
            student: None,
            ..
        } => judge(&workshop, count),
        Command::Judge {
            count,
            student: Some(student),
            threshold,
        } => {
            for class in [HeldOut::None, HeldOut::First] {
                println!("{class:?}");
                judge::verdicts(&workshop, &student, class, count, threshold)?;
            }
            Ok(())
        }
        Command::Teacher { steps, from } => {
            teacher::train_teacher(&workshop, steps, from.as_deref())
        }
        Command::Start { steps, from } => students::train_start(&workshop, steps, &from),
        Command::Distill { name, recipe, from } => {
            let recipe = recipe.unwrap_or_else(|| students::recipe_path(&name));
            let recipe = Recipe::open(&recipe)?;
            students::distill(&workshop, &name, &from, recipe, PromptSet::Known)
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
        } => draw_truth(
            workshop.seed,
            &output,
            count,
            if unseen { HeldOut::Any } else { HeldOut::None },
        ),
        Command::Score { pictures } => score_pictures(&pictures),
        Command::Ladder => ladder::climb(&workshop),
        Command::Protocol(command) => command.run(&workshop),
        Command::Negatives(options) => negatives::negatives(&workshop, &options),
        Command::Prefer(options) => prefer::prefer(&workshop, &options),
        Command::Edits(command) => command.run(&workshop),
        Command::Merge {
            lambda,
            a,
            b,
            output,
        } => merge(&workshop, lambda, &a, &b, &output),
        Command::ShipJudges { output } => ship::ship_judges(&workshop, &output),
        Command::Ship { name, output } => ship::ship(&workshop, &name, &output),
    }
}

fn judge(workshop: &Workshop, count: usize) -> Result<()> {
    let folder = workshop.model()?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let clip = Clip::from_model(&folder, "clip", Some(DType::F32), &workshop.device)?;
    for (name, class) in [
        ("known pairs", HeldOut::None),
        ("held-out pairs", HeldOut::Any),
    ] {
        let told = told_shapes(&clip, &tokenizer, class, workshop.seed ^ 2, count);
        println!("{name}: shape told from all others in {told}");
    }
    Ok(())
}

/// Prints a row of the table in docs/miniature.md.
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
    let scenes = |class| captions(workshop.seed ^ 9, count, class);
    let seen = painter.tally(&scenes(HeldOut::None))?;
    let unseen = painter.tally(&scenes(HeldOut::Any))?;
    let diversity = painter.diversity(&captions(workshop.seed ^ 10, 32, HeldOut::None))?;
    eprintln!("{name}, {method:?}, {count} captions\n  seen: {seen}\n  unseen: {unseen}");
    let (seen, unseen) = (seen.share(Score::all), unseen.share(Score::all));
    let calls = painter.n_calls();
    println!("| {name} | {calls} | {seen:.3} | {unseen:.3} | {diversity:.3} |");
    Ok(())
}

fn draw_truth(seed: u64, output: &Path, count: usize, class: HeldOut) -> Result<()> {
    std::fs::create_dir_all(output)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut prompts = String::new();
    for (index, scene) in captions(seed, count, class).iter().enumerate() {
        let side = data::SIDE as u32;
        let picture = RgbImage::from_raw(side, side, scene.draw(data::SIDE, &mut rng));
        let picture = picture.context("three bytes per pixel")?;
        examples_common::write_png(&picture, &output.join(format!("{index:05}.png")))?;
        prompts.push_str(&scene.caption());
        prompts.push('\n');
    }
    std::fs::write(output.join("prompts.txt"), prompts)?;
    Ok(())
}

fn score_pictures(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let caption = score_picture(path).with_context(|| path.display().to_string())?;
        println!("{}: right, {caption}", path.display());
    }
    Ok(())
}

/// Returns the caption of a picture that shows everything in it.
fn score_picture(path: &Path) -> Result<String> {
    let caption = Record::read(path)?.prompt;
    let scene = Scene::of_caption(&caption).with_context(|| {
        format!("the prompt {caption:?} is not a caption of this world; expected one such as \"a red circle on a white background\"")
    })?;
    let picture = read_image(path)?;
    let (width, height) = picture.dimensions();
    ensure!(
        width == height,
        "found {width}x{height} pixels; expected a square picture"
    );
    let score = scorer::score(&picture, &scene);
    ensure!(
        score.all(),
        "the picture does not show {caption:?}: found {score:?}"
    );
    Ok(caption)
}

fn merge(workshop: &Workshop, lambda: f64, a: &str, b: &str, output: &str) -> Result<()> {
    let file = |name: &str| {
        workshop
            .path(name)
            .join("diffusion_pytorch_model.safetensors")
    };
    // The configuration first: a student is finished once its weights are there.
    let config: Value = read_json(workshop.path(a).join("config.json"))?;
    write_json(workshop.path(output).join("config.json"), &config)?;
    interpolate_files(file(a), file(b), lambda, file(output))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use swiftbrush_pipeline::{Model, Rng, Seeds, Source, TextToImage};

    use super::*;

    #[test]
    fn a_picture_is_scored_against_the_caption_in_its_record() -> Result<()> {
        const CAPTION: &str = "a red circle above a green star on a white background";
        let model = examples_common::miniature();
        let pipeline = TextToImage::from_model(&Model::open(&model)?, None, &Device::flex())?;
        let request = pipeline.request([CAPTION])?;
        let generation = pipeline.generate(&request, &mut Seeds::new(Rng::Native, [3]))?;
        let record = Record::of(&Source::new(model), &request, 0, Rng::Native, 3, &pipeline);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("picture.png");
        let scored = |caption: &str| {
            let record = record.clone().with_image(caption, 3);
            std::fs::write(&path, generation.pictures()[0].to_png(Some(&record)))?;
            score_picture(&path)
        };
        assert_eq!(scored(CAPTION)?, CAPTION);
        for (caption, expected) in [
            (
                "a red circle above a green heart on a white background",
                "shape: false",
            ),
            (
                "a red circle above a blue star on a white background",
                "color: false",
            ),
            (
                "a red circle above a green star on a black background",
                "ground: false",
            ),
            (
                "a red circle to the left of a green star on a white background",
                "relation: false",
            ),
            ("a castle", "not a caption"),
        ] {
            let error = scored(caption).expect_err(caption).to_string();
            assert!(error.contains(expected), "{caption}: {error}");
        }
        Ok(())
    }
}
