//! The training stages, each of which writes one component of the model.

use anyhow::Result;
use burn::tensor::DType;
use swiftbrush_clip::{Clip, Tokenizer};
use swiftbrush_vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};

use crate::autoencoders::{
    kl_config, scaling_factor, tiny_config, train_autoencoder, train_decoder, train_tiny,
    train_tiny_decoder,
};
use crate::contrastive::{clip_config, train_clip};
use crate::data::write_tokenizer;
use crate::model::{Workshop, write_component};
use crate::{ladder, students, teacher};

/// Default steps of each stage.
pub(crate) mod steps {
    pub(crate) const AUTOENCODER: u64 = 4500;
    pub(crate) const CLIP: u64 = 4000;
    pub(crate) const TEACHER: u64 = 20_000;
    pub(crate) const START: u64 = 8000;
    pub(crate) const DECODER: u64 = 8000;
    pub(crate) const TINY: u64 = 4000;
    pub(crate) const TINY_DECODER: u64 = 6000;
}

/// Trains everything, from an empty folder to the averaged student.
pub(crate) fn make_all(workshop: &Workshop) -> Result<()> {
    make_autoencoder(workshop, steps::AUTOENCODER)?;
    make_decoder(workshop, steps::DECODER)?;
    make_clip(workshop, steps::CLIP, None)?;
    teacher::train_teacher(workshop, steps::TEACHER, None)?;
    students::train_start(workshop, steps::START, "teacher")?;
    make_tiny(workshop, steps::TINY)?;
    make_tiny_decoder(workshop, steps::TINY_DECODER)?;
    ladder::train_shipped(workshop)
}

pub(crate) fn make_autoencoder(workshop: &Workshop, steps: u64) -> Result<()> {
    let (seed, device) = (workshop.seed, &workshop.device);
    let kl = train_autoencoder(&workshop.stage("autoencoder"), seed, steps, device)?;
    let scaling_factor = scaling_factor(&kl, seed, device);
    let config = AutoencoderKlConfig {
        scaling_factor,
        ..kl_config()
    };
    write_component(
        &workshop.path("vae"),
        "AutoencoderKL",
        &config,
        &kl,
        DType::F32,
    )
}

pub(crate) fn make_decoder(workshop: &Workshop, steps: u64) -> Result<()> {
    let folder = workshop.model()?;
    let kl = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), &workshop.device)?;
    let kl = train_decoder(
        &workshop.stage("decoder"),
        kl,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    let config = AutoencoderKlConfig::from_model(&folder, "vae")?;
    write_component(
        &workshop.path("vae"),
        "AutoencoderKL",
        &config,
        &kl,
        DType::F32,
    )
}

pub(crate) fn make_tiny(workshop: &Workshop, steps: u64) -> Result<()> {
    let folder = workshop.model()?;
    let kl = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), &workshop.device)?;
    let tiny = train_tiny(
        &workshop.stage("tiny"),
        &kl,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    write_component(
        &workshop.path("taesd"),
        "AutoencoderTiny",
        &tiny_config(),
        &tiny,
        DType::F32,
    )
}

/// Trains the tiny decoder further; the encoder keeps its weights.
pub(crate) fn make_tiny_decoder(workshop: &Workshop, steps: u64) -> Result<()> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    let kl = AutoencoderKl::from_model(&folder, "vae", Some(DType::F32), device)?;
    let config = AutoencoderTinyConfig::from_model(&folder, "taesd")?;
    let tiny = AutoencoderTiny::from_model(&folder, "taesd", Some(DType::F32), device)?;
    let stage = workshop.stage("tiny_decoder");
    let tiny = train_tiny_decoder(&stage, &kl, &tiny, workshop.seed, steps, device)?;
    write_component(
        &workshop.path("taesd"),
        "AutoencoderTiny",
        &config,
        &tiny,
        DType::F32,
    )
}

/// Trains CLIP, from the weights of the component `from` if there is one.
pub(crate) fn make_clip(workshop: &Workshop, steps: u64, from: Option<&str>) -> Result<()> {
    let (folder, device) = (workshop.model()?, &workshop.device);
    let n_tokens = write_tokenizer(&workshop.path("tokenizer"))?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let config = clip_config(n_tokens);
    let f32 = Some(DType::F32);
    let beginning = match from {
        Some(from) => Clip::from_model(&folder, from, f32, device)?,
        None => config.init(device),
    };
    let clip = train_clip(
        &workshop.stage("clip"),
        &tokenizer,
        beginning,
        &AutoencoderKl::from_model(&folder, "vae", f32, device)?,
        workshop.seed,
        steps,
        &workshop.device,
    )?;
    write_component(
        &workshop.path("clip"),
        "CLIPModel",
        &config,
        &clip,
        DType::F32,
    )?;
    // CLIP may be trained again; a teacher needs the text encoder that it was trained with.
    let path = workshop.path("text_encoder");
    if path.join("model.safetensors").is_file() {
        return Ok(());
    }
    let text_encoder = clip.into_text_encoder();
    write_component(
        &path,
        "CLIPTextModel",
        &config.text_config,
        &text_encoder,
        DType::F32,
    )
}
