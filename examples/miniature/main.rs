//! The shapes world.
mod data;
mod first_stages;
mod model;
mod scorer;
mod teacher;
mod training;
mod world;
use std::path::PathBuf;
use burn::tensor::DType;
use model::*;
use first_stages::*;
fn main() -> anyhow::Result<()> {
    let device = burn::tensor::Device::flex();
    let shop = Workshop { root: PathBuf::from("/work/run/mini"), device, seed: 0 };
    let steps = || -> u64 { std::env::args().nth(2).unwrap().parse().unwrap() };
    let model = shop.model()?;
    match std::env::args().nth(1).as_deref() {
        Some("ae") => {
            let kl = train_autoencoder(&shop.stage("autoencoder"), 0, steps(), &shop.device)?;
            let scaling_factor = scaling_factor(&kl, 0, &shop.device);
            println!("scaling factor {scaling_factor}");
            let config = swiftbrush_vae::AutoencoderKlConfig { scaling_factor, ..kl_config() };
            write_component(&model.path("vae"), "AutoencoderKL", &config, &kl, DType::F32)?;
        }
        Some("decoder") => {
            let kl = swiftbrush_vae::AutoencoderKl::from_folder(&model, "vae", None, &shop.device)?;
            let config = swiftbrush_vae::AutoencoderKlConfig::from_folder(&model, "vae")?;
            let kl = train_decoder(&shop.stage("decoder"), &kl, 0, steps(), &shop.device)?;
            write_component(&model.path("vae"), "AutoencoderKL", &config, &kl, DType::F32)?;
        }
        Some("clip") => {
            let n = data::write_tokenizer(&model.path("tokenizer"))?;
            let tok = swiftbrush_clip::Tokenizer::from_folder(&model, "tokenizer")?;
            let clip = train_clip(&shop.stage("clip"), &tok, n, 0, steps(), &shop.device)?;
            write_component(&model.path("clip"), "CLIPModel", &clip_config(n), &clip, DType::F32)?;
            write_component(&model.path("text_encoder"), "CLIPTextModel", &clip_config(n).text_config, &clip.clone().into_text_encoder(), DType::F32)?;
        }
        Some("teacher") => teacher::train_teacher(&shop, steps())?,
        _ => {}
    }
    Ok(())
}
