//! Encodes images with captions, once, for the regularisation `[denoise]` of a recipe.
//!
//! The same command resumes a run that was stopped.
//!
//! ```sh
//! cargo run --release --example encode_images -- --model sd21-base --images photos --output latents
//! cargo run --release --example distill -- … --recipe with-denoise.toml --images latents
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor};
use clap::Parser;
use examples_common::model::ModelArgs;
use examples_common::{read_image, tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use swiftbrush_checkpoint::{Lines, read_text};
use swiftbrush_images::{Folder, resize_and_crop};
use swiftbrush_pipeline::Decoder;
use swiftbrush_trainer::{LatentKind, LatentSetWriter};

/// Keys of image files in JSON Lines.
const FILES: [&str; 2] = ["file_name", "image"];
/// Keys of captions in JSON Lines.
const CAPTIONS: [&str; 3] = ["caption", "prompt", "text"];

/// Encodes images with captions to latents.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folder of images, each with a caption in a text file of the same name (cat.png, cat.txt); or JSON Lines with
    /// "file_name" or "image", relative to the file, and "caption", "prompt" or "text".
    #[arg(long)]
    images: PathBuf,
    /// Folder to write; 32 KiB per image at the size of Stable Diffusion.
    #[arg(long, short)]
    output: PathBuf,
}

/// An image file and its caption.
type Captioned = (PathBuf, String);

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
    examples_common::print_warnings();
    encode(&Args::parse())
}

fn encode(args: &Args) -> Result<()> {
    let images = match args.images.is_dir() {
        true => of_folder(&args.images)?,
        false => of_lines(&args.images)?,
    };
    eprintln!("{}: {} images", args.images.display(), images.len());
    let (source, device) = (args.model.source()?, args.model.device()?);
    let loader = ModelArgs::loader(&source, &device)?;
    let (decoder, side) = (loader.decoder()?, loader.side()?);
    let mut made_from = source.hashes()?;
    made_from.retain(|file, _| file.starts_with(source.options.decoder.component()));
    made_from.insert("images".to_owned(), hash(&images));
    let first = encoded(&images[0].0, &decoder, side, &device)?;
    let [_, channels, height, width] = first.dims();
    let latents = [channels, height, width];
    let mut writer = LatentSetWriter::open(&args.output, LatentKind::Images, latents, made_from)?;
    let bar = ProgressBar::new(images.len() as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    for (path, caption) in &images[writer.len().min(images.len())..] {
        writer.push(caption.clone(), encoded(path, &decoder, side, &device)?)?;
        bar.set_position(writer.len() as u64);
    }
    bar.finish_and_clear();
    let count = writer.finish()?;
    eprintln!("{}: {count} images", args.output.display());
    Ok(())
}

/// The most probable latents of an image, resized to cover a square and cropped evenly.
fn encoded(path: &Path, decoder: &Decoder, side: usize, device: &Device) -> Result<Tensor<4>> {
    let picture = resize_and_crop(&read_image(path)?, side as u32, side as u32);
    Ok(decoder.encode_mode(tensor(&picture, 1, device)))
}

/// A hash of file names and captions, by which a stopped run recognises its images.
fn hash(images: &[Captioned]) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for (path, caption) in images {
        let name = path.file_name().unwrap_or_default();
        hasher.update(name.as_encoded_bytes());
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

fn of_folder(folder: &Path) -> Result<Vec<Captioned>> {
    let images = Folder::list(folder)?.pictures.into_iter().map(|path| {
        let text = path.with_extension("txt");
        let caption = read_text(&text).with_context(|| {
            format!(
                "{}: expected its caption in {}",
                path.display(),
                text.display()
            )
        })?;
        ensure!(
            !caption.trim().is_empty(),
            "{}: the caption is empty",
            text.display()
        );
        Ok((path, caption.trim().to_owned()))
    });
    images.collect()
}

fn of_lines(path: &Path) -> Result<Vec<Captioned>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let images = Lines::open(path)?.map(|line| {
        let line = line?;
        let at = || format!("{}: line {}", path.display(), line.number);
        let object: Map<String, Value> = serde_json::from_str(&line.text).with_context(at)?;
        let [file, caption] = [&FILES[..], &CAPTIONS].map(|keys| text(&object, keys));
        let file = folder.join(file.with_context(at)?);
        Ok((file, caption.with_context(at)?.trim().to_owned()))
    });
    let images = images.collect::<Result<Vec<_>>>()?;
    ensure!(
        !images.is_empty(),
        "{}: there are no images",
        path.display()
    );
    Ok(images)
}

/// The only text under one of some keys.
fn text<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Result<&'a str> {
    let found: Vec<_> = keys.iter().filter_map(|&key| object.get(key)).collect();
    match found[..] {
        [Value::String(text)] if !text.trim().is_empty() => Ok(text),
        [other] => bail!("expected a text under {}, found {other}", keys.join(" or ")),
        _ => bail!(
            "expected one of the keys {}, found {}",
            keys.join(", "),
            found.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;
    use clap::CommandFactory;
    use image::{Rgb, RgbImage};
    use swiftbrush_trainer::LatentSet;

    use super::*;

    fn arguments(images: &Path, output: &Path) -> Args {
        let paths = [images, output].map(|path| path.to_str().unwrap().to_owned());
        Args::parse_from([
            "encode_images",
            "--images",
            &paths[0],
            "--output",
            &paths[1],
        ])
    }

    /// Two images that are wider than high.
    fn images(folder: &Path) {
        for (name, colour) in [("a", [255, 0, 0]), ("b", [0, 200, 50])] {
            RgbImage::from_pixel(50, 40, Rgb(colour))
                .save(folder.join(name).with_extension("png"))
                .unwrap();
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn latents_are_those_of_the_autoencoder() {
        let folder = tempfile::tempdir().unwrap();
        images(folder.path());
        for name in ["a", "b"] {
            std::fs::write(
                folder.path().join(name).with_extension("txt"),
                format!("picture {name}\n"),
            )
            .unwrap();
        }
        let lines = "{\"file_name\": \"b.png\", \"text\": \"picture b\"}\n{\"image\": \"a.png\", \"caption\": \"picture a\"}\n";
        std::fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
        let sets = ["", "metadata.jsonl"].map(|name| {
            let output = folder.path().join(format!("latents-{name}"));
            let args = arguments(&folder.path().join(name), &output);
            encode(&args).unwrap();
            LatentSet::open(output).unwrap()
        });
        let args = arguments(folder.path(), folder.path());
        let device = args.model.device().unwrap();
        let loader = ModelArgs::loader(&args.model.source().unwrap(), &device).unwrap();
        let (decoder, side) = (loader.decoder().unwrap(), loader.side().unwrap());
        let path = folder.path().join("b.png");
        let expected = encoded(&path, &decoder, side, &device).unwrap();
        let expected = expected.cast(DType::F16).cast(DType::F32).into_data();
        for (set, entry) in sets.iter().zip([1, 0]) {
            assert_eq!((set.len(), set.kind()), (2, LatentKind::Images));
            let found = set.get(&[entry], &device).unwrap();
            assert_eq!(found.prompts, ["picture b"]);
            assert!(found.noise.is_none());
            assert_eq!(found.latents.into_data(), expected);
        }
    }

    #[test]
    fn images_without_captions_are_rejected_by_name() {
        let folder = tempfile::tempdir().unwrap();
        images(folder.path());
        let fails = |images: &Path| {
            let error = encode(&arguments(images, &folder.path().join("latents")));
            format!("{:#}", error.unwrap_err())
        };
        assert!(fails(folder.path()).contains("a.png: expected its caption in"));
        let lines = folder.path().join("metadata.jsonl");
        for (text, expected) in [
            (
                "{\"image\": \"a.png\"}",
                "line 1: expected one of the keys caption, prompt, text, found 0",
            ),
            (
                "{\"text\": \"a\", \"image\": \"a.png\", \"file_name\": \"b.png\"}",
                "file_name, image, found 2",
            ),
            (
                "{\"text\": 3, \"image\": \"a.png\"}",
                "expected a text under caption or prompt or text, found 3",
            ),
            ("{\"text\": \"a\", \"image\": \"c.png\"}", "c.png"),
            ("\n", "there are no images"),
        ] {
            std::fs::write(&lines, text).unwrap();
            let error = fails(&lines);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
