//! Converts adapters from any layout to another.
//!
//! ```sh
//! cargo run --release --example convert_lora -- style.safetensors --layout diffusers pytorch_lora_weights.safetensors
//! ```
//!
//! The element type of the factors and the header entries of training scripts (`ss_*`) are preserved. A layout that cannot
//! name some of the adapted layers is rejected with their names.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use swiftbrush_lora::{AdapterFile, Layout};

use examples_common::{Wanted, find, named};

/// Converts adapters from any layout to another.
#[derive(Debug, Parser)]
struct Args {
    /// Adapter file, or folder of PEFT or diffusers, on disk or on the hub (owner/name/file).
    input: String,
    /// File to write; PEFT's adapter_config.json is written next to it.
    output: PathBuf,
    /// Layout of the output: peft (one network per file), diffusers, diffusers-lora (from 2023, without α),
    /// diffusers-processor (earlier, attention only), kohya (read by most programs) or kohya-ldm (with the layer names of
    /// the original training code).
    #[arg(long, value_parser = named::<Layout>)]
    layout: Layout,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let file = AdapterFile::open(find(&args.input, Wanted::Component)?)?;
    for note in &file.notes {
        eprintln!("{note}");
    }
    file.save(&args.output, args.layout)?;
    eprintln!(
        "wrote {}: {} adapters of the denoiser, {} of the text encoder",
        args.output.display(),
        file.unet.len(),
        file.text_encoder.len()
    );
    Ok(())
}
