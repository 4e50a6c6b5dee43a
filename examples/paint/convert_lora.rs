//! Reads adapters in any layout and writes them in another.
//!
//! ```sh
//! cargo run --release --example convert_lora -- style.safetensors --layout diffusers pytorch_lora_weights.safetensors
//! ```
//!
//! Nothing is lost: a layout that has no name for some of the adapted layers is refused with their names.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use swiftbrush_lora::{AdapterFile, Layout};

use examples_common::{Wanted, find, named};

/// Reads adapters in any layout and writes them in another.
#[derive(Debug, Parser)]
struct Args {
    /// File of PEFT, diffusers, kohya's or other training programs, here or on the hub (owner/name/file).
    input: String,
    /// File to write; PEFT's configuration is written beside it.
    output: PathBuf,
    /// How tensors are to be named: peft (for one network), diffusers, diffusers-lora (of 2023, without α),
    /// diffusers-processor (before that, attention only), kohya (what most programs read) or kohya-ldm (the same with layers
    /// named as in the original training code).
    #[arg(long, value_parser = named::<Layout>)]
    layout: Layout,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let file = AdapterFile::open(&find(&args.input, Wanted::Component)?)?;
    file.save(&args.output, args.layout)?;
    eprintln!(
        "wrote {}: {} adapters of the denoiser, {} of the text encoder",
        args.output.display(),
        file.unet.len(),
        file.text_encoder.len()
    );
    Ok(())
}
