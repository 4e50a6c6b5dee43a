//! The whole data flow at toy size, in seconds: generation, two steps of each training scheme, a merge.
//!
//! Weights are random, so the images are meaningless; the tour follows every arrow in docs/architecture.md.
//!
//! ```sh
//! cargo run --release --example tour
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

use std::path::Path;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{ClipConfig, TextConfig, Tokenizer};
use swiftbrush_pipeline::{Decoder, Request, Rng, Seeds, TextToImage};
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_trainer::{ClipNetworks, Distiller, Networks, Recipe};
use swiftbrush_unet::UNetConfig;
use swiftbrush_vae::{AutoencoderKlConfig, AutoencoderTinyConfig};
use swiftbrush_weight_interp::interpolate;

fn main() -> Result<()> {
    let device = examples_common::device(examples_common::DEVICES[0])?;
    device.seed(0);
    let prompt = "a red circle above a green star on a white background".to_owned();

    // Prompt → tokens → context; noise and context → latents → image.
    let networks = networks(&device)?;
    let pipeline = TextToImage::from_parts(
        networks.tokenizer.clone(),
        networks.text_encoder.clone(),
        networks.student.clone(),
        Decoder::Kl(AutoencoderKlConfig::tiny().init(&device)),
        SchedulerConfig::default(),
        &UNetConfig::tiny(),
        &device,
    );
    let seed = || Seeds::new(Rng::Native, [0]);
    let painting = pipeline.generate(&Request::new([prompt.clone()]), &mut seed())?;
    eprintln!("context {:?}", painting.conditioning.context.dims());
    eprintln!(
        "latents {:?}, image {:?}",
        painting.latents.dims(),
        painting.images.dims()
    );

    // The fake teacher starts as a copy of the teacher; from the second step on they differ, and the student moves.
    let student = |recipe: Recipe| -> Result<_> {
        let mut distiller = Distiller::new(recipe, networks.clone(), &device)?;
        for _ in 0..2 {
            let report = distiller.step(std::slice::from_ref(&prompt))?;
            eprintln!("{}", serde_json::to_string(&report)?);
        }
        Ok(distiller.student())
    };
    let a = student(small(Recipe::full()))?;
    let b = student(small(Recipe::efficient()))?;

    // The average of both students.
    let merged = interpolate(a, &b, 0.5)?;
    let mut pipeline = pipeline;
    pipeline.unet = merged;
    let merged = pipeline.generate(&Request::new([prompt]), &mut seed())?;
    let moved = (merged.latents - painting.latents).abs().max().into_data();
    ensure!(
        moved.iter::<f32>().all(|distance| distance > 0.0),
        "the student did not change"
    );
    eprintln!("the tour is complete");
    Ok(())
}

fn small(mut recipe: Recipe) -> Recipe {
    (recipe.batch, recipe.accumulation) = (1, 1);
    recipe.learning_rate = 1e-3;
    recipe.fake_lora.rank = 2;
    if let Some(lora) = &mut recipe.student_lora {
        lora.rank = 2;
    }
    recipe
}

fn networks(device: &Device) -> Result<Networks> {
    let folder = Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature/model"))?;
    let tokenizer = Tokenizer::from_model(&folder, "tokenizer")?;
    let vocabulary = TextConfig::from_model(&folder, "text_encoder")?;
    let text = TextConfig {
        vocab_size: vocabulary.vocab_size,
        eos_token_id: vocabulary.eos_token_id,
        max_position_embeddings: tokenizer.length(),
        ..TextConfig::tiny()
    };
    let clip = ClipConfig {
        text_config: text.clone(),
        ..ClipConfig::tiny()
    };
    let networks = Networks::new(
        tokenizer,
        text.init(device),
        [(); 2].map(|()| UNetConfig::tiny().init(device)),
        NoiseSchedule::new(&SchedulerConfig::default()),
        [4, 8, 8],
    );
    Ok(networks.with_clip(ClipNetworks {
        clip: clip.init(device),
        decoder: AutoencoderTinyConfig::tiny().init(device),
    }))
}
