//! Interpolates the weights of two models, λ·A + (1−λ)·B, from file to file.
//!
//! ```sh
//! cargo run --release --example merge -- a/unet b/unet --lambda 0.5 --output merged.safetensors
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use swiftbrush_weight_interp::interpolate_files;

/// Interpolates the weights of two models with the same architecture.
///
/// Reads .safetensors, .safetensors.index.json, .ckpt, .pt, .pth and .bin files, and component folders (MODEL/unet).
/// Writes a .safetensors file with the element types and the header of the first.
#[derive(Debug, Parser)]
struct Args {
    /// Weights of the first model.
    a: PathBuf,
    /// Weights of the second model.
    b: PathBuf,
    /// Share of the first model; values outside 0 to 1 extrapolate.
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    lambda: f64,
    /// File to write.
    #[arg(long, short)]
    output: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for note in interpolate_files(&args.a, &args.b, args.lambda, &args.output)? {
        eprintln!("{note}");
    }
    eprintln!("wrote {}", args.output.display());
    Ok(())
}
