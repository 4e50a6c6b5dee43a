//! Reads adapters in any layout and writes them in another.
//!
//! ```sh
//! cargo run --release --example convert_lora -- style.safetensors --layout diffusers pytorch_lora_weights.safetensors
//! ```
//!
//! Nothing is lost: a layout that has no name for some of the adapted layers is refused with their names.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

mod shared;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use swiftbrush_lora::{AdapterFile, Layout};

use shared::{Wanted, find};

/// Reads adapters in any layout and writes them in another.
#[derive(Debug, Parser)]
struct Args {
    /// File of PEFT, diffusers, kohya's or other training programs, here or on the hub (owner/name/file).
    input: String,
    /// File to write; PEFT's configuration is written beside it.
    output: PathBuf,
    /// How tensors are to be named.
    #[arg(long)]
    layout: LayoutName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutName {
    /// adapter_model.safetensors, for one network.
    Peft,
    /// pytorch_lora_weights.safetensors.
    Diffusers,
    /// The same as diffusers wrote it in 2023, without α.
    DiffusersLora,
    /// The same as diffusers wrote it before, attention only.
    DiffusersProcessor,
    /// What most programs read.
    Kohya,
    /// The same with layers named as in the original training code.
    KohyaLdm,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let file = AdapterFile::open(&find(&args.input, Wanted::Component)?)?;
    let layout = match args.layout {
        LayoutName::Peft => Layout::Peft,
        LayoutName::Diffusers => Layout::Diffusers,
        LayoutName::DiffusersLora => Layout::DiffusersLora,
        LayoutName::DiffusersProcessor => Layout::DiffusersProcessor,
        LayoutName::Kohya => Layout::Kohya,
        LayoutName::KohyaLdm => Layout::KohyaLdm,
    };
    file.save(&args.output, layout)?;
    eprintln!(
        "wrote {}: {} adapters of the denoiser, {} of the text encoder",
        args.output.display(),
        file.unet.len(),
        file.text_encoder.len()
    );
    Ok(())
}
