//! The shipped model folder.

use std::path::Path;

use anyhow::Result;
use burn::tensor::DType;
use swiftbrush_checkpoint::write_json;
use swiftbrush_clip::{Clip, ClipConfig, TextConfig, TextEncoder};
use swiftbrush_unet::UNet;
use swiftbrush_vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};

use crate::model::{Workshop, scheduler, unet_config, write_component};

/// Writes a model folder in f16 with one of the denoisers as `unet`; the class of its scheduler implies one step.
pub(crate) fn ship(workshop: &Workshop, name: &str, output: &Path) -> Result<()> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    let half = DType::F16;
    let unet = UNet::from_model(&folder, name, Some(DType::F32), device)?;
    write_component(
        &output.join("unet"),
        "UNet2DConditionModel",
        &unet_config(),
        &unet,
        half,
    )?;
    let vae = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), device)?;
    let config = AutoencoderKlConfig::from_model(&folder, "vae")?;
    write_component(&output.join("vae"), "AutoencoderKL", &config, &vae, half)?;
    let text_encoder = TextEncoder::from_model(&folder, "text_encoder", Some(DType::F32), device)?;
    let config = TextConfig::from_model(&folder, "text_encoder")?;
    write_component(
        &output.join("text_encoder"),
        "CLIPTextModel",
        &config,
        &text_encoder,
        half,
    )?;
    ship_judges(workshop, output)?;
    copy_tokenizer(&workshop.path("tokenizer"), &output.join("tokenizer"))?;
    write_json(
        output.join("scheduler/scheduler_config.json"),
        &scheduler("DDPMScheduler").with_one_step(true),
    )?;
    let index = serde_json::json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [null, null],
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
    });
    Ok(write_json(output.join("model_index.json"), &index)?)
}

/// Writes CLIP and the tiny autoencoder in f16.
pub(crate) fn ship_judges(workshop: &Workshop, output: &Path) -> Result<()> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    if folder.has("taesd") {
        let tiny = AutoencoderTiny::from_model(&folder, "taesd", Some(DType::F32), device)?;
        let config = AutoencoderTinyConfig::from_model(&folder, "taesd")?;
        write_component(
            &output.join("taesd"),
            "AutoencoderTiny",
            &config,
            &tiny,
            DType::F16,
        )?;
    }
    let clip = Clip::from_model(&folder, "clip", Some(DType::F32), device)?;
    let config = ClipConfig::from_model(&folder, "clip")?;
    write_component(
        &output.join("clip"),
        "CLIPModel",
        &config,
        &clip,
        DType::F16,
    )
}

fn copy_tokenizer(tokenizer: &Path, output: &Path) -> Result<()> {
    std::fs::create_dir_all(output)?;
    for file in [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        std::fs::copy(tokenizer.join(file), output.join(file))?;
    }
    Ok(())
}
