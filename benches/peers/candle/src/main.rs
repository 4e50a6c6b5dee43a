//! Times candle's own modules for `../parts.py`: for each input line `PART BATCH` it runs the part once and prints the seconds.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::StableDiffusionConfig;
use candle_transformers::models::stable_diffusion::clip::ClipTextTransformer;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("expected the folder of a model")?;
    let folder = Path::new(&folder);
    let (device, dtype) = (Device::Cpu, DType::F32);
    let config = StableDiffusionConfig::v2_1(None, Some(512), Some(512));
    let weights = |part: &str, file: &str| folder.join(part).join(file);
    let diffusion = "diffusion_pytorch_model.safetensors";
    // SAFETY: nothing else writes to the file while it is mapped.
    let builder = unsafe {
        let file = weights("text_encoder", "model.safetensors");
        VarBuilder::from_mmaped_safetensors(&[file], dtype, &device)?
    };
    // transformers 5 saves it without the prefix that all earlier versions write.
    let builder = match builder.contains_tensor("text_model.final_layer_norm.weight") {
        true => builder,
        false => builder.rename_f(|name| name.trim_start_matches("text_model.").to_owned()),
    };
    let text_encoder = ClipTextTransformer::new(builder, &config.clip)?;
    let unet = config.build_unet(weights("unet", diffusion), &device, 4, false, dtype)?;
    let vae = config.build_vae(weights("vae", diffusion), &device, dtype)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (part, batch) = line.split_once(' ').context("expected PART BATCH")?;
        let batch: usize = batch.parse()?;
        let latents = Tensor::randn(0f32, 1.0, (batch, 4, 64, 64), &device)?;
        let context = Tensor::randn(0f32, 1.0, (batch, 77, 1024), &device)?;
        let tokens = Tensor::ones((batch, 77), DType::U32, &device)?;
        let begun = Instant::now();
        match part {
            "text_encoder" => drop(text_encoder.forward(&tokens)?),
            "unet" => drop(unet.forward(&latents, 999.0, &context)?),
            "kl" => drop(vae.decode(&latents)?),
            _ => bail!("unknown part {part}; expected text_encoder, unet or kl"),
        }
        println!("{}", begun.elapsed().as_secs_f64());
        std::io::stdout().flush()?;
    }
    Ok(())
}
