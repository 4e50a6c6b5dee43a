//! Encodes images with captions, once, for the regularisation `[denoise]` of a recipe: a folder, JSON Lines, or WebDataset's tar
//! files.
//!
//! The same command resumes a run that was stopped.
//!
//! ```sh
//! cargo run --release --example encode_images -- --model sd21-base --images photos --output latents
//! cargo run --release --example distill -- … --recipe with-denoise.toml --images latents
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

mod captioned;
#[cfg(test)]
mod tests;
mod web_dataset;

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use clap::Parser;
use examples_common::model::ModelArgs;
use examples_common::tensor;
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_images::resize_and_crop;
use swiftbrush_pipeline::Decoder;
use swiftbrush_trainer::{LatentKind, LatentSetWriter};

use captioned::{Captioned, Image};

/// Encodes images with captions to latents.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folder of images, each with a caption in a text file of the same name (cat.png, cat.txt); or JSON Lines with
    /// "file_name" or "image", relative to the file, and "caption", "prompt" or "text"; or WebDataset: a tar file, or a folder of
    /// them, with a text file or JSON beside each image.
    #[arg(long)]
    images: PathBuf,
    /// Folder to write; 32 KiB per image at the size of Stable Diffusion.
    #[arg(long, short)]
    output: PathBuf,
}

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    examples_common::print_warnings();
    encode(&Args::parse())
}

fn encode(args: &Args) -> Result<()> {
    let images = captioned::open(&args.images)?;
    eprintln!("{}: {} images", args.images.display(), images.len());
    let (source, device) = (args.model.source()?, args.model.device()?);
    let loader = ModelArgs::loader(&source, &device)?;
    let (decoder, side) = (loader.decoder()?, loader.side()?);
    let mut made_from = source.hashes()?;
    made_from.retain(|file, _| file.starts_with(source.options.decoder.component()));
    made_from.insert("images".to_owned(), hash(&images));
    let first = encoded(&images[0].image, &decoder, side, &device)?;
    let [_, channels, height, width] = first.dims();
    let latents = [channels, height, width];
    let mut writer = LatentSetWriter::open(&args.output, LatentKind::Images, latents, made_from)?;
    let bar = ProgressBar::new(images.len() as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    for Captioned { image, caption } in &images[writer.len().min(images.len())..] {
        writer.push(caption.clone(), encoded(image, &decoder, side, &device)?)?;
        bar.set_position(writer.len() as u64);
    }
    bar.finish_and_clear();
    let count = writer.finish()?;
    eprintln!("{}: {count} images", args.output.display());
    Ok(())
}

/// The most probable latents of an image, resized to cover a square and cropped evenly.
fn encoded(image: &Image, decoder: &Decoder, side: usize, device: &Device) -> Result<Tensor<4>> {
    let picture = resize_and_crop(&image.read()?, side as u32, side as u32);
    Ok(decoder.encode_mode(tensor(&picture, 1, device)))
}

/// A hash of file names and captions, by which a stopped run recognises its images.
fn hash(images: &[Captioned]) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for Captioned { image, caption } in images {
        hasher.update(image.name());
        hasher.update([0]);
        hasher.update(caption);
        hasher.update([0]);
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
