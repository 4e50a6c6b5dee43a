//! Writes a model with denoiser and text encoder in int8.
//!
//! ```sh
//! cargo run --release --example quantize -- --model stabilityai/sd-turbo sd-turbo-int8
//! cargo run --release --example quantize -- --model sd-turbo --lora style.safetensors=0.8 styled-int8
//! cargo run --release --example generate -- --model sd-turbo-int8 "a castle"
//! ```
//!
//! The folder is in diffusers' layout and takes about a quarter of the space of f32. Adapters are merged into the weights,
//! because none can be added afterwards.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use examples_common::model::ModelArgs;

/// Writes a model with denoiser and text encoder in int8.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folder to write, which must be empty or missing.
    output: PathBuf,
}

fn main() -> Result<()> {
    quantize(&Args::parse())
}

fn quantize(args: &Args) -> Result<()> {
    let device = args.model.device()?;
    let loader = args.model.source()?.loader(&device)?;
    for warning in loader.warnings()? {
        eprintln!("warning: {warning}");
    }
    loader.quantize(&args.output)?;
    eprintln!("wrote {}", args.output.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use swiftbrush_pipeline::{Loader, Model};

    use super::*;

    #[test]
    fn the_miniature_is_quantised_once() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let output = folder.path().join("int8").display().to_string();
        quantize(&Args::try_parse_from(["quantize", &output])?)?;
        assert!(Loader::new(Model::open(&output)?, &Device::flex()).is_int8()?);
        let other = folder.path().join("again").display().to_string();
        for (args, expected) in [
            (vec!["quantize", &output], "not empty"),
            (vec!["quantize", "--model", &output, &other], "already"),
        ] {
            let error = quantize(&Args::try_parse_from(args)?).expect_err("it is rejected");
            assert!(error.to_string().contains(expected), "{error}");
        }
        Ok(())
    }
}
