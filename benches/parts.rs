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
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTinyConfig};

mod common;
use common::{device, normal, sync};

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
    Ok(())
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
        let begun = match part {
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
