use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use swiftbrush_checkpoint::Folder;
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_scheduler::{
    NoiseSchedule, Predicts, Sampler, SchedulerConfig, TimestepSpacing, guide,
};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny};

use crate::Error;

/// The one-step student: `x̂₀ = (z − σ_T·ε_θ(z, T, y)) / α_T` at the last timestep T
/// (SwiftBrush, arXiv 2312.05239, equation 6), divided in f32.
///
/// # Shapes
///
/// - noise: `[batch, channels, height, width]`, unit normal
/// - context: `[batch, length, width]`
/// - returns: latents of the shape of the noise, f32
///
/// # Panics
///
/// If the shapes do not fit the network.
pub fn one_step(
    unet: &UNet,
    schedule: &NoiseSchedule,
    noise: Tensor<4>,
    context: Tensor<3>,
) -> Tensor<4> {
    let [batch, _, _, _] = noise.dims();
    let timesteps = vec![schedule.last(); batch];
    let predicted = predict(unet, schedule, noise.clone(), &timesteps, context);
    schedule.predicted_latents(noise, predicted, &timesteps)
}

/// The noise that a network sees in latents at whole timesteps.
fn predict(
    unet: &UNet,
    schedule: &NoiseSchedule,
    noisy: Tensor<4>,
    timesteps: &[usize],
    context: Tensor<3>,
) -> Tensor<4> {
    let values = timesteps.iter().map(|&t| t as f32).collect::<Vec<_>>();
    let device = noisy.device();
    let steps = Tensor::from_data(TensorData::new(values, [timesteps.len()]), &device);
    let output = unet.forward(noisy.clone(), steps, context);
    schedule.predicted_noise(output, noisy, timesteps)
}

/// Unit normal noise, the same for a seed on every machine and device.
///
/// # Shapes
///
/// - returns: `shape`
pub fn noise(shape: [usize; 4], seed: u64, device: &Device) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| StandardNormal.sample(&mut rng))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// How latents are made of noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// SwiftBrush's rule, one network call; see [`one_step`].
    OneStep,
    /// DDIM with this many steps.
    Ddim(usize),
    /// Euler with this many steps; one step with trailing spacing is SD-Turbo's own rule.
    Euler(usize),
    /// DPM-Solver++(2M) with this many steps.
    DpmSolver(usize),
    /// PNDM with this many steps, and a call more than steps.
    Pndm(usize),
}

impl Method {
    /// Calls of the network for a picture, without guidance; guidance doubles them.
    pub fn n_calls(self) -> usize {
        match self {
            Self::OneStep => 1,
            Self::Ddim(steps) | Self::Euler(steps) | Self::DpmSolver(steps) => steps,
            Self::Pndm(steps) if steps > 1 => steps + 1,
            Self::Pndm(steps) => steps,
        }
    }
}

/// What to paint.
#[derive(Clone, Debug)]
pub struct Request {
    /// A prompt for each picture.
    pub prompts: Vec<String>,
    /// What to paint the opposite of, where `guidance` is not 1.
    pub negative_prompt: String,
    /// How.
    pub method: Method,
    /// Scale of classifier-free guidance; 1 for none, which one-step students need.
    pub guidance: f64,
}

impl Request {
    /// One picture for each prompt, in one step, without guidance.
    pub fn new<S: Into<String>>(prompts: impl IntoIterator<Item = S>) -> Self {
        Self {
            prompts: prompts.into_iter().map(Into::into).collect(),
            negative_prompt: String::new(),
            method: Method::OneStep,
            guidance: 1.0,
        }
    }
}

/// What was painted, and all that led to it.
#[derive(Clone, Debug)]
pub struct Painting {
    /// `[batch, 3, height, width]`, RGB in about −1…1.
    pub images: Tensor<4>,
    /// `[batch, channels, height, width]`, scaled, f32.
    pub latents: Tensor<4>,
    /// `[batch, length]`
    pub tokens: Tensor<2, Int>,
    /// `[batch, length, width]`
    pub context: Tensor<3>,
}

/// What makes images of latents.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and its parameters live elsewhere"
)]
pub enum Decoder {
    /// The full autoencoder.
    Kl(AutoencoderKl),
    /// The tiny one.
    Tiny(AutoencoderTiny),
}

impl Decoder {
    /// Images from latents; shapes as of the two decoders.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }
}

/// Everything that a model folder holds; the fields can be exchanged for others.
#[derive(Clone, Debug)]
pub struct TextToImage {
    /// Prompts to numbers.
    pub tokenizer: Tokenizer,
    /// Numbers to states.
    pub text_encoder: TextEncoder,
    /// The denoiser.
    pub unet: UNet,
    /// Latents to images.
    pub decoder: Decoder,
    /// The noise schedule's configuration.
    pub scheduler: SchedulerConfig,
    /// Channels and side of the latents that the denoiser was trained on.
    latents: (usize, usize),
    dtype: DType,
    device: Device,
}

impl TextToImage {
    /// Loads a model folder in the layout of diffusers, with its full autoencoder; with `dtype` none,
    /// in f32.
    ///
    /// # Errors
    ///
    /// If a part is missing, damaged or not supported.
    pub fn from_folder(
        folder: &Folder,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        Self::from_folder_with(folder, "unet", dtype, device)
    }

    /// [`from_folder`](Self::from_folder) with another component than `unet` as the denoiser.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_folder_with(
        folder: &Folder,
        denoiser: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        let dtype = dtype.unwrap_or(DType::F32);
        let path = folder.path("scheduler/scheduler_config.json");
        let text: serde_json::Value = folder.json("scheduler/scheduler_config.json")?;
        let scheduler = SchedulerConfig::from_json(&text.to_string())
            .map_err(|source| Error::Scheduler { path, source })?;
        let unet = UNetConfig::from_folder(folder, denoiser)?;
        Ok(Self {
            tokenizer: Tokenizer::from_folder(folder, "tokenizer")?,
            text_encoder: TextEncoder::from_folder(folder, "text_encoder", Some(dtype), device)?,
            unet: UNet::from_folder(folder, denoiser, Some(dtype), device)?,
            decoder: Decoder::Kl(AutoencoderKl::from_folder(
                folder,
                "vae",
                Some(dtype),
                device,
            )?),
            scheduler,
            latents: (unet.in_channels, unet.sample_size),
            dtype,
            device: device.clone(),
        })
    }

    /// Puts loaded parts together; they are taken to be on `device` and in f32.
    pub fn from_parts(
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        unet: UNet,
        decoder: Decoder,
        scheduler: SchedulerConfig,
        unet_config: &UNetConfig,
        device: &Device,
    ) -> Self {
        let latents = (unet_config.in_channels, unet_config.sample_size);
        let (dtype, device) = (DType::F32, device.clone());
        Self {
            tokenizer,
            text_encoder,
            unet,
            decoder,
            scheduler,
            latents,
            dtype,
            device,
        }
    }

    /// The device that everything is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Shape of the noise for a number of pictures of the size that the model was trained on.
    pub fn latent_shape(&self, batch: usize) -> [usize; 4] {
        let (channels, side) = self.latents;
        [batch, channels, side, side]
    }

    /// The states of prompts.
    ///
    /// # Shapes
    ///
    /// - returns: tokens `[prompts, length]`, context `[prompts, length, width]`
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> (Tensor<2, Int>, Tensor<3>) {
        for prompt in prompts {
            let n_dropped = self.tokenizer.encode(prompt.as_ref()).n_dropped;
            if n_dropped > 0 {
                tracing::warn!(
                    n_dropped,
                    "a prompt is too long: its last tokens are not seen"
                );
            }
        }
        let tokens = self.tokenizer.encode_batch(prompts, &self.device);
        (tokens.clone(), self.text_encoder.forward(tokens))
    }

    /// Paints.
    ///
    /// # Shapes
    ///
    /// - noise: `[prompts, channels, height, width]`, unit normal; its size decides that of the picture
    ///
    /// # Errors
    ///
    /// If the request contradicts itself or the noise, or a network gives a NaN.
    pub fn generate(&self, request: &Request, noise: Tensor<4>) -> Result<Painting, Error> {
        self.check(request, &noise)?;
        let (tokens, context) = self.encode(&request.prompts);
        finite("text encoder", &context)?;
        let latents = self.latents(request, noise, context.clone());
        finite("denoiser", &latents)?;
        let images = self.decoder.decode(latents.clone().cast(self.dtype));
        finite("decoder", &images)?;
        Ok(Painting {
            images,
            latents,
            tokens,
            context,
        })
    }

    fn check(&self, request: &Request, noise: &Tensor<4>) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Request(text));
        let [batch, channels, _, _] = noise.dims();
        let train = self.scheduler.num_train_timesteps;
        if batch != request.prompts.len() {
            return refuse(format!(
                "there are {} prompts but noise for {batch}",
                request.prompts.len()
            ));
        }
        if channels != self.latents.0 {
            return refuse(format!(
                "the noise has {channels} channels, the model takes {}",
                self.latents.0
            ));
        }
        if !request.guidance.is_finite() {
            return refuse(format!("guidance is {}", request.guidance));
        }
        let (steps, most) = match request.method {
            Method::OneStep => return Ok(()),
            Method::Ddim(steps) | Method::Euler(steps) | Method::Pndm(steps) => (steps, train),
            Method::DpmSolver(steps) => (steps, train - 1),
        };
        if (1..=most).contains(&steps) {
            Ok(())
        } else {
            refuse(format!("{steps} steps; there can be 1 to {most}"))
        }
    }

    /// Latents of noise, f32. The loop is in f32; the networks see their own element type.
    fn latents(&self, request: &Request, noise: Tensor<4>, context: Tensor<3>) -> Tensor<4> {
        let schedule = NoiseSchedule::new(&self.scheduler);
        let negative = (request.guidance != 1.0).then(|| {
            let prompts = vec![request.negative_prompt.as_str(); request.prompts.len()];
            self.encode(&prompts).1
        });
        let predict = |noisy: Tensor<4>, timestep: f64| {
            let [batch, _, _, _] = noisy.dims();
            let steps = Tensor::full([batch], timestep, &self.device);
            let noisy = noisy.cast(self.dtype);
            let predict = |context: Tensor<3>| {
                let output = self
                    .unet
                    .forward(noisy.clone(), steps.clone(), context)
                    .cast(FloatDType::F32);
                // v- and x₀-models are tied to whole timesteps.
                let timesteps = vec![timestep.round() as usize; batch];
                schedule.predicted_noise(output, noisy.clone().cast(FloatDType::F32), &timesteps)
            };
            let conditional = predict(context.clone());
            match &negative {
                Some(negative) => guide(conditional, predict(negative.clone()), request.guidance),
                None => conditional,
            }
        };
        let sampler = match request.method {
            Method::OneStep => {
                let timesteps = vec![schedule.last(); request.prompts.len()];
                let predicted = predict(noise.clone(), schedule.last() as f64);
                return schedule.predicted_latents(noise, predicted, &timesteps);
            }
            Method::Ddim(steps) => Sampler::ddim(&self.scheduler, steps),
            Method::Euler(steps) => Sampler::euler(&self.scheduler, steps),
            Method::DpmSolver(steps) => Sampler::dpm_solver(&self.scheduler, steps),
            Method::Pndm(steps) => Sampler::pndm(&self.scheduler, steps),
        };
        let mut latents = noise.cast(FloatDType::F32) * sampler.initial_scale();
        let mut predictions = Vec::new();
        for step in sampler.steps() {
            let input = step.input(latents.clone());
            let noise = predict(input.clone(), step.timestep);
            let prediction = match sampler.predicts() {
                Predicts::Noise => noise,
                Predicts::Latents => {
                    let timesteps = vec![step.timestep as usize; request.prompts.len()];
                    schedule.predicted_latents(input, noise, &timesteps)
                }
            };
            predictions.insert(0, prediction);
            predictions.truncate(sampler.memory());
            latents = step.advance(latents, &predictions);
        }
        latents
    }

    /// The method that fits the folder's scheduler: its own one-step rule for models whose only step
    /// is the last timestep, else 25 steps of the scheduler that it names, or of DDIM if it is none of ours.
    pub fn default_method(&self) -> Method {
        match (
            self.scheduler.class_name.as_str(),
            self.scheduler.timestep_spacing,
        ) {
            ("EulerDiscreteScheduler", TimestepSpacing::Trailing) => Method::Euler(1),
            ("EulerDiscreteScheduler", _) => Method::Euler(25),
            ("DPMSolverMultistepScheduler", _) => Method::DpmSolver(25),
            ("PNDMScheduler", _) => Method::Pndm(25),
            ("DDPMScheduler", _) => Method::OneStep,
            _ => Method::Ddim(25),
        }
    }
}

fn finite<const D: usize>(part: &'static str, tensor: &Tensor<D>) -> Result<(), Error> {
    let total = tensor.clone().cast(FloatDType::F32).abs().max().into_data();
    match total.iter::<f32>().all(f32::is_finite) {
        true => Ok(()),
        false => Err(Error::NotFinite {
            part,
            dtype: tensor.dtype(),
        }),
    }
}
