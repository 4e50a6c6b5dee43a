//! Times parts of a model of Stable Diffusion's layout on request, for `peers/parts.py`: for each line of input, which is the
//! name of a part and a batch size, it runs that part once and prints the seconds.
//!
//! `cargo run --release -p benches --bin parts -- FOLDER`
#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Device, Int, Tensor};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::TextEncoder;
use swiftbrush_kernels::{GroupNormConfig, Mask, attention, double, silu, softmax};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTinyConfig};

mod common;
use common::{device, normal, report, sync};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    swiftbrush_kernels::keep_freed_memory();
    let folder = std::env::args().nth(1).ok_or("say where the model is")?;
    let (model, device) = (Model::open(Path::new(&folder))?, device());
    let parts = Parts::load(&model, &device)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (part, batch) = line.split_once(' ').ok_or("expected PART BATCH")?;
        let seconds = parts.time(part, batch.parse()?)?;
        println!("{seconds}");
        std::io::stdout().flush()?;
    }
    report();
    Ok(())
}

/// When it began, after once before to warm up.
fn timed<const D: usize>(run: impl Fn() -> Tensor<D>) -> Instant {
    sync(run());
    let begun = Instant::now();
    sync(run());
    begun
}

struct Parts {
    text_encoder: TextEncoder,
    unet: UNet,
    config: UNetConfig,
    kl: AutoencoderKl,
    device: Device,
}

impl Parts {
    fn load(model: &Model, device: &Device) -> Result<Self, Failure> {
        let dtype = Some(DType::F32);
        Ok(Self {
            text_encoder: TextEncoder::from_model(model, "text_encoder", dtype, device)?,
            unet: UNet::from_model(model, "unet", dtype, device)?,
            config: UNetConfig::from_model(model, "unet")?,
            kl: AutoencoderKl::from_model(model, "vae", dtype, device)?,
            device: device.clone(),
        })
    }

    fn time(&self, part: &str, batch: usize) -> Result<f64, Failure> {
        let device = &self.device;
        let side = self.config.sample_size;
        let latents = normal([batch, 4, side, side], device);
        // Operations at shapes of Stable Diffusion, on numbers that are there before.
        let begun = match part {
            "attention" => {
                let x = normal([batch, 5, 4096, 64], device);
                timed(|| attention(x.clone(), x.clone(), x.clone(), Mask::None))
            }
            "group_norm" | "group_norm_silu" => {
                let norm = GroupNormConfig::new(32, 128).init(device);
                let x = normal([batch, 128, 512, 512], device);
                timed(|| match part {
                    "group_norm" => norm.forward(x.clone()),
                    _ => norm.forward_silu(x.clone()),
                })
            }
            "silu" => {
                let x = normal([batch, 128, 512, 512], device);
                timed(|| silu(x.clone()))
            }
            "softmax" => {
                let x = normal([batch, 10, 1024, 1024], device);
                timed(|| softmax(x.clone()))
            }
            "double" => {
                let x = normal([batch, 128, 256, 256], device);
                timed(|| double(x.clone()))
            }
            "text_encoder" => {
                let tokens = Tensor::<2, Int>::ones([batch, 77], device);
                let begun = Instant::now();
                sync(self.text_encoder.forward(tokens));
                begun
            }
            "unet" => {
                let steps = Tensor::full([batch], 999.0, device);
                let context = normal([batch, 77, self.config.cross_attention_dim], device);
                let begun = Instant::now();
                sync(self.unet.forward(latents, steps, context));
                begun
            }
            "kl" => {
                let begun = Instant::now();
                sync(self.kl.decode(latents));
                begun
            }
            // Its speed does not depend on its weights, which not every model has beside it.
            "taesd" => {
                let tiny = AutoencoderTinyConfig::default().init(device);
                sync(tiny.decode(normal([1, 4, 8, 8], device)));
                let begun = Instant::now();
                sync(tiny.decode(latents));
                begun
            }
            _ => return Err(format!("there is no part {part}").into()),
        };
        Ok(begun.elapsed().as_secs_f64())
    }
}
