//! Paints pictures again from what they say of themselves, and compares.
//!
//! ```sh
//! cargo run --release --example verify -- picture.png
//! cargo run --release --example verify -- --model elsewhere/sd-turbo picture.png
//! ```
//!
//! It fails if a file of the model has changed, or if a pixel differs by more than `--tolerance` (0 on the device
//! that painted it; devices differ in their last bits).
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program talks to its user"
)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use swiftbrush_checkpoint::sha256;
use swiftbrush_pipeline::{Picture, Record, Seeds, Start};

use examples_common::{device, enlarged, read_image, tensor};

/// Paints pictures again from what they say of themselves, and compares.
#[derive(Debug, Parser)]
struct Args {
    /// Pictures that `generate` painted.
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Where the model is now, if elsewhere.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to compute [default: where it was painted].
    #[arg(long)]
    device: Option<String>,
    /// How much a byte of a pixel may differ.
    #[arg(long, default_value_t = 0)]
    tolerance: u8,
    /// Only says what a picture says of itself.
    #[arg(long)]
    show: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for path in &args.pictures {
        verify(&args, path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn verify(args: &Args, path: &Path) -> Result<()> {
    let mut record = Record::read(path)?;
    if args.show {
        println!("{}", serde_json::to_string_pretty(&record)?);
        return Ok(());
    }
    if let Some(model) = &args.model {
        record.source.model.clone_from(model);
    }
    let hashes = record.source.hashes()?;
    for (file, expected) in &record.hashes {
        let found = hashes.get(file).map_or("no such file", String::as_str);
        ensure!(
            found == expected,
            "{file} is not what it was painted with: expected {expected}, found {found}"
        );
    }
    let device = device(args.device.as_deref().unwrap_or(&record.device))?;
    let mut pipeline = record.source.loader(&device)?.load()?;
    pipeline.scheduler = record.scheduler.clone();
    let mut request = record.request();
    if let Some(start) = &record.start {
        let found = sha256(&start.file)?;
        let file = start.file.display();
        ensure!(
            found == start.sha256,
            "{file} is not what it began with: expected {}, found {found}",
            start.sha256
        );
        request.start = Some(Start {
            images: tensor(&read_image(&start.file)?, 1, &device),
            strength: start.strength,
        });
    }
    let painting = pipeline.generate(&request, &mut Seeds::new(record.rng, [record.seed]))?;
    let [found] = Picture::of_images(painting.images)
        .try_into()
        .expect("one prompt is one picture");
    let expected = read_image(path)?;
    let found = enlarged(&found, record.enlarged);
    ensure!(
        [found.width, found.height] == [expected.width, expected.height],
        "it is {}×{}, painted again {}×{}",
        expected.width,
        expected.height,
        found.width,
        found.height
    );
    let differences = found.bytes.iter().zip(&expected.bytes);
    let differences: Vec<_> = differences.map(|(a, b)| a.abs_diff(*b)).collect();
    let worst = differences.iter().max().copied().unwrap_or_default();
    let count = differences
        .iter()
        .filter(|&&by| by > args.tolerance)
        .count();
    ensure!(
        count == 0,
        "{count} of {} bytes differ by more than {}, the worst by {worst}",
        differences.len(),
        args.tolerance
    );
    eprintln!("{} is what it says, to within {worst}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anyhow::Result;
    use burn::tensor::Device;
    use swiftbrush_pipeline::{Method, Rng, Source};

    use super::*;
    use examples_common::{miniature, write_picture};

    fn record() -> Result<Record> {
        let source = Source::new(miniature());
        let hashes: BTreeMap<_, _> = source.hashes()?;
        let scheduler = source.loader(&Device::flex())?.scheduler()?;
        Ok(Record {
            software: Record::software(),
            source,
            hashes,
            device: "flex".to_owned(),
            prompt: "a red circle".to_owned(),
            negative_prompt: String::new(),
            method: Method::OneStep,
            guidance: 1.0,
            size: [32, 32],
            seed: 3,
            rng: Rng::Native,
            start: None,
            scheduler,
            enlarged: 2,
        })
    }

    fn check(record: &Record, change: impl FnOnce(&mut Picture)) -> Result<()> {
        let pipeline = record.source.loader(&Device::flex())?.load()?;
        let seeds = &mut Seeds::new(Rng::Native, [3]);
        let painting = pipeline.generate(&record.request(), seeds)?;
        let mut picture = enlarged(&Picture::of_images(painting.images)[0], 2);
        change(&mut picture);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("picture.png");
        write_picture(&picture, record, &path)?;
        let args = Args::try_parse_from(["verify".as_ref(), path.as_os_str()])?;
        verify(&args, &path)
    }

    #[test]
    fn a_picture_is_what_it_says_until_somebody_changes_it() -> Result<()> {
        let record = record()?;
        check(&record, |_| ())?;
        let error = check(&record, |picture| picture.bytes[100] ^= 4);
        let error = error.expect_err("a pixel was changed").to_string();
        assert!(error.contains("1 of 12288 bytes differ"), "{error}");
        Ok(())
    }

    #[test]
    fn another_seed_or_model_is_noticed() -> Result<()> {
        let other = Record {
            seed: 4,
            ..record()?
        };
        assert!(check(&other, |_| ()).is_err());
        let mut other = record()?;
        let unet = "unet/diffusion_pytorch_model.safetensors";
        other.hashes.insert(unet.to_owned(), "0".repeat(64));
        let error = check(&other, |_| ())
            .expect_err("it is another model")
            .to_string();
        assert!(error.contains(unet), "{error}");
        Ok(())
    }
}
