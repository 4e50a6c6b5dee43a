//! The teacher: a text-conditioned latent-diffusion model.

use anyhow::Result;
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_pipeline::{Decoder, Method, Request, TextToImage, noise};
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_trainer::{Purpose, Random};
use swiftbrush_unet::UNet;
use swiftbrush_vae::AutoencoderKl;

use crate::data::{Batch, to_bytes};
use crate::model::{Workshop, scheduler, unet_config, write_component};
use crate::scorer::{Score, score};
use crate::training::{PARTS, Schedule, train};
use crate::world::Scene;

/// Share of captions that are left out, so that guidance has something to guide away from.
const DROP: f64 = 0.1;
/// Pictures in a part of a step.
const BATCH: usize = 32 / PARTS as usize;
/// Guidance that the teacher paints with, here and when it teaches.
pub(crate) const GUIDANCE: f64 = 4.5;

pub(crate) fn train_teacher(workshop: &Workshop, steps: u64) -> Result<()> {
    let inner = &workshop.device;
    let device = inner.clone().autodiff();
    let seed = workshop.seed;
    workshop.write_scheduler("DDIMScheduler")?;
    let folder = workshop.model()?;
    let vae = AutoencoderKl::from_folder(&folder, "vae", None, inner)?;
    let tokenizer = Tokenizer::from_folder(&folder, "tokenizer")?;
    let text_encoder = TextEncoder::from_folder(&folder, "text_encoder", None, inner)?;
    let schedule = NoiseSchedule::new(&scheduler("DDIMScheduler"));

    let loss = |unet: &UNet, step| {
        let batch = Batch::new(seed, step, BATCH);
        let mut random = Random::new(seed, Purpose::Student, step);
        let latents = vae.encode(batch.images(inner)).mode();
        let captions: Vec<_> = batch
            .captions()
            .into_iter()
            .map(|caption| {
                if random.chance(DROP) {
                    String::new()
                } else {
                    caption
                }
            })
            .collect();
        let context = text_encoder.forward(tokenizer.encode_batch(&captions, inner));
        let timesteps = random.integers(BATCH, 0..schedule.len());
        let noise = random.normal(latents.dims(), inner);
        let noisy = schedule.add_noise(latents, noise.clone(), &timesteps);
        let timesteps = floats(&timesteps, &device);
        let predicted = unet.forward(noisy.autodiff(), timesteps, context.autodiff());
        (predicted - noise.autodiff()).powi_scalar(2).mean()
    };
    let look = |unet: &UNet, step| {
        if step % 1000 != 0 && step != steps {
            return Ok(());
        }
        let pipeline = TextToImage::from_parts(
            tokenizer.clone(),
            text_encoder.clone(),
            unet.clone(),
            Decoder::Kl(vae.clone()),
            scheduler("DDIMScheduler"),
            &unet_config(),
            inner,
        );
        let tally = evaluate(
            &pipeline,
            Method::Ddim(10),
            GUIDANCE,
            &captions(seed, 64, false),
        )?;
        eprintln!("step {step}: ten steps of DDIM, {tally}");
        Ok(())
    };
    let schedule_of_rate = Schedule {
        steps,
        learning_rate: 1e-3,
        ema: 0.999,
        parts: PARTS,
    };
    let unet = train(
        &workshop.stage("teacher"),
        unet_config().init(&device),
        schedule_of_rate,
        &device,
        loss,
        look,
    )?;
    write_component(
        &folder.path("teacher"),
        "UNet2DConditionModel",
        &unet_config(),
        &unet,
        DType::F32,
    )
}

pub(crate) fn floats(timesteps: &[usize], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values, [timesteps.len()]), device)
}

/// Scenes to be painted: seen ones hold no held-out pair, the others do.
pub(crate) fn captions(seed: u64, count: usize, held_out: bool) -> Vec<Scene> {
    use rand::SeedableRng;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x5ce0e);
    (0..count)
        .map(|_| Scene::random(&mut rng, held_out))
        .collect()
}

/// How many pictures had what right.
pub(crate) struct Tally(pub(crate) Vec<Score>);

impl Tally {
    pub(crate) fn share(&self, right: impl Fn(Score) -> bool) -> f64 {
        self.0.iter().filter(|score| right(**score)).count() as f64 / self.0.len().max(1) as f64
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ground, color) = (self.share(|s| s.ground), self.share(|s| s.color));
        let (shape, relation) = (self.share(|s| s.shape), self.share(|s| s.relation));
        let all = self.share(Score::all);
        write!(
            f,
            "ground {ground:.3}, colour {color:.3}, shape {shape:.3}, relation {relation:.3}, all {all:.3}"
        )
    }
}

/// Paints scenes and scores the pictures.
pub(crate) fn evaluate(
    pipeline: &TextToImage,
    method: Method,
    guidance: f64,
    scenes: &[Scene],
) -> Result<Tally> {
    let mut scores = Vec::new();
    for (index, scenes) in scenes.chunks(64).enumerate() {
        let request = Request {
            method,
            guidance,
            ..Request::new(scenes.iter().map(Scene::caption))
        };
        let noise = noise(
            pipeline.latent_shape(scenes.len()),
            index as u64,
            pipeline.device(),
        );
        let painting = pipeline.generate(&request, noise)?;
        scores.extend(
            to_bytes(painting.images)
                .iter()
                .zip(scenes)
                .map(|(image, scene)| score(image, scene)),
        );
    }
    Ok(Tally(scores))
}
