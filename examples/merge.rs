//! Averages the weights of two models: λ·A + (1−λ)·B, from file to file.
//!
//! ```sh
//! cargo run --release --example merge -- a/unet/diffusion_pytorch_model.safetensors \
//!     b/unet/diffusion_pytorch_model.safetensors --lambda 0.5 --output merged.safetensors
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use swiftbrush_weight_interp::interpolate_files;

/// Averages the weights of two models.
#[derive(Debug, Parser)]
struct Args {
    /// The first file of weights.
    a: PathBuf,
    /// The second, of the same model.
    b: PathBuf,
    /// Share of the first.
    #[arg(long, default_value_t = 0.5)]
    lambda: f64,
    /// Where the result goes.
    #[arg(long, short)]
    output: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    interpolate_files(&args.a, &args.b, args.lambda, &args.output)?;
    eprintln!("wrote {}", args.output.display());
    Ok(())
}
