//! Times the parts of a Stable Diffusion model on request, for `peers/parts.py`: for each input line `PART BATCH` it runs the part
//! once and prints the seconds.
//!
//! `cargo run --release -p benches --bin parts -- FOLDER [f32|f16|bf16|int8]`, the element type of the computation, or of the weights of
//! denoiser and text encoder [default: f32].
#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::TextEncoder;
use swiftbrush_kernels::{GroupNormConfig, Mask, attention, silu, softmax, upsample_nearest_2x};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny};

mod common;
use common::{device, normal, report, sync};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    swiftbrush_kernels::keep_freed_memory();
    swiftbrush_kernels::use_current_thread();
    let folder = std::env::args()
        .nth(1)
        .ok_or("expected the folder of a model")?;
    let dtype = std::env::args().nth(2);
    let is_int8 = dtype.as_deref() == Some("int8");
    let dtype = match dtype.as_deref() {
        None | Some("f32" | "int8") => DType::F32,
        Some("f16") => DType::F16,
        Some("bf16") => DType::BF16,
        Some(other) => return Err(format!("expected f32, f16, bf16 or int8, found {other}").into()),
    };
    let (model, device) = (Model::open(Path::new(&folder))?, device());
    if !device.supports_dtype(dtype) {
        return Err(format!("{device:?} does not support {dtype:?}").into());
    }
    let parts = Parts::load(&model, dtype, is_int8, &device)?;
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

struct Parts {
    text_encoder: TextEncoder,
    unet: UNet,
    config: UNetConfig,
    kl: AutoencoderKl,
    tiny: AutoencoderTiny,
    dtype: DType,
    device: Device,
}

impl Parts {
    fn load(model: &Model, dtype: DType, is_int8: bool, device: &Device) -> Result<Self, Failure> {
        let of_files = Some(dtype);
        let (unet, text_encoder) = match is_int8 {
            true => (
                UNet::from_model_int8(model, "unet", device)?,
                TextEncoder::from_model_int8(model, "text_encoder", device)?,
            ),
            false => (
                UNet::from_model(model, "unet", of_files, device)?,
                TextEncoder::from_model(model, "text_encoder", of_files, device)?,
            ),
        };
        Ok(Self {
            dtype,
            text_encoder,
            unet,
            config: UNetConfig::from_model(model, "unet")?,
            kl: AutoencoderKl::from_model(model, "vae", of_files, device)?,
            tiny: AutoencoderTiny::from_model(model, "taesd", of_files, device)?,
            device: device.clone(),
        })
    }

    fn normal<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        normal(shape, &self.device).cast(FloatDType::from(self.dtype))
    }

    /// Returns the seconds of one run; inputs are drawn beforehand.
    fn seconds<const D: usize>(&self, run: impl Fn() -> Tensor<D>) -> Result<f64, Failure> {
        self.device.sync()?;
        let begun = Instant::now();
        sync(run());
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Returns the seconds of one run after an uncounted warm-up run.
    fn warm<const D: usize>(&self, run: impl Fn() -> Tensor<D>) -> Result<f64, Failure> {
        sync(run());
        self.seconds(run)
    }

    fn time(&self, part: &str, batch: usize) -> Result<f64, Failure> {
        let device = &self.device;
        let side = self.config.sample_size;
        let latents = self.normal([batch, 4, side, side]);
        // Operations at Stable Diffusion's shapes.
        match part {
            "attention" => {
                let x = self.normal([batch, 5, 4096, 64]);
                self.warm(|| attention(x.clone(), x.clone(), x.clone(), Mask::None))
            }
            "group_norm" | "group_norm_silu" => {
                let norm = GroupNormConfig::new(32, 128).init(device);
                let x = self.normal([batch, 128, 512, 512]);
                self.warm(|| match part {
                    "group_norm" => norm.forward(x.clone()),
                    _ => norm.forward_silu(x.clone()),
                })
            }
            "silu" => {
                let x = self.normal([batch, 128, 512, 512]);
                self.warm(|| silu(x.clone()))
            }
            "softmax" => {
                let x = self.normal([batch, 10, 1024, 1024]);
                self.warm(|| softmax(x.clone()))
            }
            "upsample" => {
                let x = self.normal([batch, 128, 256, 256]);
                self.warm(|| upsample_nearest_2x(x.clone()))
            }
            "text_encoder" => {
                let tokens = Tensor::<2, Int>::ones([batch, 77], device);
                self.seconds(|| self.text_encoder.forward(tokens.clone()))
            }
            "unet" => {
                let steps = Tensor::<1>::full([batch], 999.0, device);
                let context = self.normal([batch, 77, self.config.cross_attention_dim]);
                self.seconds(|| {
                    let (latents, steps) = (latents.clone(), steps.clone());
                    self.unet.forward(latents, steps, context.clone())
                })
            }
            "kl" => self.seconds(|| self.kl.decode(latents.clone())),
            "taesd" => self.seconds(|| self.tiny.decode(latents.clone())),
            _ => Err(format!("unknown part {part}").into()),
        }
    }
}
