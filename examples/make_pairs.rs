//! Writes pairs of noise and a teacher's latents for the regularisation `[pairs]` of a recipe.
//!
//! Each pair depends only on the seed and its number, so the same command resumes a run that was stopped.
//!
//! ```sh
//! cargo run --release --example make_pairs -- --model sd21-base --prompts laion.txt --count 200000 --output pairs
//! cargo run --release --example distill -- … --recipe with-pairs.toml --pairs pairs
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Tensor};
use clap::Parser;
use examples_common::model::ModelArgs;
use examples_common::named;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::{Given, Method, Request, TextToImage, noise};
use swiftbrush_trainer::{LatentKind, LatentSetWriter, PromptSource, Prompts};

/// Samplers that add no noise of their own.
const SAMPLERS: [SamplerKind; 4] = [
    SamplerKind::Ddim,
    SamplerKind::Euler,
    SamplerKind::DpmSolver,
    SamplerKind::Pndm,
];

/// Writes pairs of noise and a teacher's latents.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompts: text with one prompt per line, or JSON Lines with captions.
    #[arg(long)]
    prompts: PathBuf,
    /// Number of pairs.
    #[arg(long)]
    count: u64,
    /// Folder to write; 64 KiB per pair at the size of Stable Diffusion.
    #[arg(long, short)]
    output: PathBuf,
    /// Deterministic sampler: ddim, euler, dpm-solver or pndm.
    #[arg(long, default_value = "ddim", value_parser = named::<SamplerKind>)]
    sampler: SamplerKind,
    /// Number of sampling steps.
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Guidance scale.
    #[arg(long, default_value_t = 4.5)]
    guidance: f64,
    /// Seed of the noise, and of the order of the prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of pairs generated at once.
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    examples_common::print_warnings();
    make(&Args::parse())
}

fn make(args: &Args) -> Result<()> {
    ensure!(args.batch > 0, "--batch 0: expected at least 1");
    ensure!(
        SAMPLERS.contains(&args.sampler),
        "--sampler {}: it adds noise of its own, so an image is no function of the first noise; expected {}",
        args.sampler.name(),
        SAMPLERS.map(SamplerKind::name).join(", ")
    );
    let source = args.model.source()?;
    let device = args.model.device()?;
    let mut prompts = Prompts::open(&args.prompts, args.seed)?;
    for counts in prompts.counts() {
        eprintln!("{counts}");
    }
    let loader = ModelArgs::loader(&source, &device)?;
    let scheduler = loader.scheduler()?;
    let pipeline = loader.load()?;
    let [_, channels, height, width] = pipeline.latent_shape(1);
    let mut made_from = source.hashes()?;
    made_from.extend(settings(args, &prompts));
    let strengths = source.adapters.iter().map(|(_, strength)| strength);
    for (key, value) in [
        ("options", json!(source.options)),
        ("scheduler", json!(scheduler)),
        ("adapters", json!(strengths.collect::<Vec<_>>())),
    ] {
        made_from.insert(key.to_owned(), value.to_string());
    }
    let latents = [channels, height, width];
    let mut writer = LatentSetWriter::open(&args.output, LatentKind::Pairs, latents, made_from)?;
    let bar = ProgressBar::new(args.count);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(writer.len() as u64);
    bar.reset_eta();
    while (writer.len() as u64) < args.count {
        let first = writer.len() as u64;
        let count = (args.count - first).min(args.batch as u64) as usize;
        let texts = prompts.get(first, count)?;
        let pairs = pairs(args, &pipeline, &texts, first)?;
        for (text, pair) in texts.into_iter().zip(pairs) {
            writer.push(text, pair)?;
        }
        bar.set_position(writer.len() as u64);
    }
    bar.finish_and_clear();
    let count = writer.finish()?;
    eprintln!("{}: {count} pairs", args.output.display());
    Ok(())
}

/// Settings that the pairs depend on.
fn settings(args: &Args, prompts: &Prompts) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("prompts".to_owned(), prompts.hash()),
        ("sampler".to_owned(), args.sampler.name().to_owned()),
        ("steps".to_owned(), args.steps.to_string()),
        ("guidance".to_owned(), args.guidance.to_string()),
        ("seed".to_owned(), args.seed.to_string()),
    ])
}

/// Generates latents for some prompts: noise and latents, `[2, channels, height, width]` each.
fn pairs(
    args: &Args,
    pipeline: &TextToImage,
    prompts: &[String],
    first: u64,
) -> Result<Vec<Tensor<4>>> {
    let numbers = first..first + prompts.len() as u64;
    let noise = numbers.map(|number| {
        let seed = args.seed.wrapping_add(number);
        noise(pipeline.latent_shape(1), seed, pipeline.device())
    });
    // Rounded first, so that the student starts from exactly the noise that the teacher starts from.
    let noise = Tensor::cat(noise.collect(), 0)
        .cast(DType::F16)
        .cast(DType::F32);
    let request = Request::new(prompts)
        .with_method(Method::Sampler(args.sampler, args.steps))
        .with_guidance(args.guidance);
    let generation = pipeline.generate(&request, &mut Given::from(noise.clone()))?;
    for warning in &generation.warnings {
        eprintln!("warning: {warning}");
    }
    let pair = |index| {
        let parts = [&noise, &generation.latents].map(|part| part.clone().narrow(0, index, 1));
        Tensor::cat(parts.to_vec(), 0)
    };
    Ok((0..prompts.len()).map(pair).collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use swiftbrush_trainer::LatentSet;

    use super::*;

    fn arguments(folder: &std::path::Path, rest: &[&str]) -> Args {
        let prompts = folder.join("prompts.txt");
        std::fs::write(&prompts, "a red circle\na green star\n").unwrap();
        let [prompts, output] = [prompts, folder.join("pairs")];
        let fixed = [
            "make_pairs",
            "--prompts",
            prompts.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
        ];
        Args::parse_from(fixed.iter().chain(rest))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_pair_is_what_the_teacher_generates_from_its_noise() {
        let folder = tempfile::tempdir().unwrap();
        let args = arguments(
            folder.path(),
            &[
                "--count", "3", "--steps", "2", "--batch", "2", "--seed", "5",
            ],
        );
        make(&args).unwrap();
        let set = LatentSet::open(&args.output).unwrap();
        assert_eq!((set.len(), set.kind()), (3, LatentKind::Pairs));
        let device = args.model.device().unwrap();
        let found = set.get(&[2], &device).unwrap();
        // The third pair starts a second epoch.
        let expected = Prompts::open(&args.prompts, 5).unwrap().get(2, 1).unwrap();
        assert_eq!(found.prompts, expected);
        let source = args.model.source().unwrap();
        let pipeline = ModelArgs::loader(&source, &device).unwrap().load().unwrap();
        let pair = pairs(&args, &pipeline, &expected, 2).unwrap().remove(0);
        let round = |tensor: Tensor<4>| tensor.cast(DType::F16).cast(DType::F32).into_data();
        // The teacher starts from what the file holds.
        let noise = pair.clone().narrow(0, 0, 1);
        assert_eq!(round(noise.clone()), noise.into_data());
        assert_eq!(
            round(pair.clone().narrow(0, 0, 1)),
            found.noise.unwrap().into_data()
        );
        assert_eq!(round(pair.narrow(0, 1, 1)), found.latents.into_data());
    }

    #[test]
    fn samplers_that_add_noise_and_other_settings_for_a_folder_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let few = ["--count", "1", "--steps", "1"];
        let ancestral = [&few[..], &["--sampler", "euler-ancestral"]].concat();
        let error = make(&arguments(folder.path(), &ancestral))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--sampler euler-ancestral") && error.contains("ddim, euler"),
            "{error}"
        );
        make(&arguments(folder.path(), &few)).unwrap();
        let guided = [&few[..], &["--guidance", "3"]].concat();
        let error = make(&arguments(folder.path(), &guided))
            .unwrap_err()
            .to_string();
        assert!(error.contains("another folder"), "{error}");
    }
}
