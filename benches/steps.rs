//! Runs distillation steps on request, for `peers/train_step.py`: for each input line it runs one step and prints the seconds.
//!
//! `cargo run --release -p benches --bin steps -- FOLDER a|b BATCH f32|bf16 checkpointed|plain f32|f16`, where FOLDER is a model
//! written by `peers/make_model.py --clip`; the last two say how activations and frozen weights are stored. Teacher and student start with the same weights.
#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use swiftbrush_checkpoint::Model;
use swiftbrush_trainer::{ClipNetworks, Distiller, FrozenStorage, Networks, Precision, Recipe};

mod common;
use common::{device, report};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, scheme, batch, precision, checkpointing, frozen] = &arguments[..] else {
        return Err("expected FOLDER a|b BATCH f32|bf16 checkpointed|plain f32|f16".into());
    };
    let mut recipe = match scheme.as_str() {
        "a" => Recipe::full(),
        "b" => Recipe::efficient(),
        _ => return Err(format!("unknown scheme {scheme}; expected a or b").into()),
    };
    (recipe.batch, recipe.accumulation) = (batch.parse()?, 1);
    recipe.precision = match precision.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        _ => return Err(format!("unknown precision {precision}; expected f32 or bf16").into()),
    };
    recipe.checkpointing = match checkpointing.as_str() {
        "checkpointed" => true,
        "plain" => false,
        _ => {
            return Err(format!("unknown {checkpointing}; expected checkpointed or plain").into());
        }
    };
    recipe.frozen_weights = match frozen.as_str() {
        "f32" => FrozenStorage::F32,
        "f16" => FrozenStorage::F16,
        _ => return Err(format!("unknown type {frozen}; expected f32 or f16").into()),
    };
    let device = device();
    let prompts = vec!["a photo of a cat".to_owned(); recipe.batch];
    let networks = networks(&Model::open(Path::new(folder))?, &recipe, &device)?;
    let mut distiller = Distiller::new(recipe, networks, &device)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line?;
        let begun = Instant::now();
        distiller.step(&prompts)?;
        device.sync()?;
        println!("{}", begun.elapsed().as_secs_f64());
        std::io::stdout().flush()?;
    }
    report();
    Ok(())
}

fn networks(model: &Model, recipe: &Recipe, device: &Device) -> Result<Networks, Failure> {
    let networks = Networks::load((model, "unet"), (model, "unet"), recipe, device)?;
    Ok(match recipe.clip.is_some() {
        true => networks.with_clip(ClipNetworks::load(model, recipe, device)?),
        false => networks,
    })
}
