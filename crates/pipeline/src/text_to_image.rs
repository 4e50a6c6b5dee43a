use std::ops::ControlFlow;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_scheduler::{NoiseSchedule, Sampler, SamplerKind, SchedulerConfig, guide};
use swiftbrush_unet::{UNet, UNetConfig};

use crate::decoder::Decoder;
use crate::{Error, Loader, Method, Noise, Painting, Progress, Request, Start};

/// The one-step student: `x̂₀ = (z − σ_T·ε_θ(z, T, y)) / α_T` at the last timestep T
/// (SwiftBrush, arXiv 2312.05239, equation 6), divided in f32.
///
/// # Shapes
///
/// - noise: `[batch, channels, height, width]`, unit normal
/// - context: `[batch, length, width]`, in the element type that the network is to compute in
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
    let steps = Tensor::full([batch], schedule.last() as f64, &noise.device());
    let output = unet.forward(noise.clone().cast(context.dtype()), steps, context);
    schedule.clean_latents(output, noise, schedule.last())
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

/// All parts of a model, which can be exchanged for others: parameters are handles that clones share.
#[derive(Clone, Debug)]
pub struct TextToImage {
    /// Prompts to numbers.
    pub tokenizer: Tokenizer,
    /// Numbers to states.
    pub text_encoder: TextEncoder,
    /// The denoiser, and what it computes in.
    pub unet: UNet,
    /// Latents to images.
    pub decoder: Decoder,
    /// The noise schedule's configuration.
    pub scheduler: SchedulerConfig,
    /// Channels and side of the latents that the denoiser was trained on.
    pub(crate) latents: (usize, usize),
    /// What the denoiser computes in.
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

/// What a denoiser attends to.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `[batch, length]`
    pub tokens: Tensor<2, Int>,
    /// States of the prompts, `[batch, length, width]`.
    pub context: Tensor<3>,
    /// States of the negative prompt, the same shape; none without guidance.
    pub negative: Option<Tensor<3>>,
}

impl TextToImage {
    /// Loads a model, with its full autoencoder; with `dtype` none, in f32. [`Loader`] has more to choose from.
    ///
    /// # Errors
    ///
    /// If a part is missing, damaged or not supported.
    pub fn from_model(model: &Model, dtype: Option<DType>, device: &Device) -> Result<Self, Error> {
        let loader = Loader::new(model.clone(), device);
        match dtype {
            None => loader.load(),
            Some(dtype) => loader.with_dtype(dtype).load(),
        }
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
        Self {
            tokenizer,
            text_encoder,
            unet,
            decoder,
            scheduler,
            latents: (unet_config.in_channels, unet_config.sample_size),
            dtype: DType::F32,
            device: device.clone(),
        }
    }

    /// The same model with adapters folded in, each times its strength. Whatever is not adapted is shared, so a set
    /// of adapters is exchanged for another by adapting the plain model again: nothing is loaded anew, and
    /// nothing is left of the first.
    ///
    /// # Errors
    ///
    /// If an adapter finds no layer of its name and size; all that do not are in the error.
    pub fn with_adapters(&self, adapters: &[(&AdapterFile, f64)]) -> Result<Self, Error> {
        let mut adapted = self.clone();
        for (file, strength) in adapters {
            adapted.unet = fuse(adapted.unet, &file.unet, *strength)?;
            adapted.text_encoder = fuse(adapted.text_encoder, &file.text_encoder, *strength)?;
        }
        Ok(adapted)
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
        encode(&self.tokenizer, &self.text_encoder, prompts, &self.device)
    }

    /// Paints.
    ///
    /// # Errors
    ///
    /// If the request contradicts itself, the model or the noise, or a network gives a NaN.
    pub fn generate(&self, request: &Request, noise: &mut dyn Noise) -> Result<Painting, Error> {
        self.generate_watched(request, noise, &mut |_| ControlFlow::Continue(()))
    }

    /// [`generate`](Self::generate), telling `watch` after each call of the network where it stands; when that breaks,
    /// the painting is cancelled.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate), and [`Error::Cancelled`].
    pub fn generate_watched(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Painting, Error> {
        let brush = self.brush();
        brush.check(request)?;
        let conditioning = condition(&self.tokenizer, &self.text_encoder, request, &self.device)?;
        let start = brush.start(request, || Ok(self.decoder.clone()), noise)?;
        let latents = brush.latents(&self.unet, request, &conditioning, start, noise, watch)?;
        let images = paint(&self.decoder, &latents)?;
        Ok(conditioning.painting(latents, images))
    }

    /// The method that fits the model's scheduler; see [`Method::of_scheduler`].
    pub fn default_method(&self) -> Method {
        Method::of_scheduler(&self.scheduler)
    }

    fn brush(&self) -> Brush<'_> {
        Brush {
            scheduler: &self.scheduler,
            latents: self.latents,
            scale: self.decoder.scale(),
            dtype: self.dtype,
            device: &self.device,
        }
    }
}

fn encode<S: AsRef<str>>(
    tokenizer: &Tokenizer,
    text_encoder: &TextEncoder,
    prompts: &[S],
    device: &Device,
) -> (Tensor<2, Int>, Tensor<3>) {
    for prompt in prompts {
        let n_dropped = tokenizer.encode(prompt.as_ref()).n_dropped;
        if n_dropped > 0 {
            tracing::warn!(
                n_dropped,
                "a prompt is too long: its last tokens are not seen"
            );
        }
    }
    let tokens = tokenizer.encode_batch(prompts, device);
    (tokens.clone(), text_encoder.forward(tokens))
}

/// Encodes what a request says.
pub(crate) fn condition(
    tokenizer: &Tokenizer,
    text_encoder: &TextEncoder,
    request: &Request,
    device: &Device,
) -> Result<Conditioning, Error> {
    let (tokens, context) = encode(tokenizer, text_encoder, &request.prompts, device);
    finite("text encoder", &context)?;
    let negative = (request.guidance != 1.0).then(|| {
        let prompts = vec![request.negative_prompt.as_str(); request.prompts.len()];
        encode(tokenizer, text_encoder, &prompts, device).1
    });
    Ok(Conditioning {
        tokens,
        context,
        negative,
    })
}

impl Conditioning {
    pub(crate) fn painting(self, latents: Tensor<4>, images: Tensor<4>) -> Painting {
        Painting {
            images,
            latents,
            tokens: self.tokens,
            context: self.context,
        }
    }
}

/// Decodes, and looks whether the result is one.
pub(crate) fn paint(decoder: &Decoder, latents: &Tensor<4>) -> Result<Tensor<4>, Error> {
    let images = decoder.decode(latents.clone());
    finite("decoder", &images)?;
    Ok(images)
}

/// What is known of a model without its networks: enough to go from noise to latents with a denoiser.
pub(crate) struct Brush<'a> {
    pub(crate) scheduler: &'a SchedulerConfig,
    pub(crate) latents: (usize, usize),
    /// How many pixels a latent stands for, along each axis.
    pub(crate) scale: usize,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

/// A run of samplers' steps, or the one-step rule at a timestep.
enum Plan {
    OneStep(usize),
    Sampler(Sampler),
}

impl Brush<'_> {
    /// Whether a request fits itself and the model.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Request(text));
        if request.prompts.is_empty() {
            return refuse("there are no prompts".to_owned());
        }
        if !request.guidance.is_finite() {
            return refuse(format!("guidance is {}", request.guidance));
        }
        let scale = self.scale;
        let fits = |size: [usize; 2]| {
            size.iter()
                .all(|&side| side > 0 && side.is_multiple_of(scale))
        };
        if let Some(size) = request.size.filter(|&size| !fits(size)) {
            return refuse(format!("{size:?} pixels are not multiples of {scale}"));
        }
        if let Some(start) = &request.start {
            let [batch, channels, height, width] = start.images.dims();
            let prompts = request.prompts.len();
            if batch != prompts || channels != 3 {
                return refuse(format!(
                    "there are {prompts} prompts, but {batch} pictures of {channels} channels to begin with"
                ));
            }
            if !fits([height, width]) || request.size.is_some_and(|size| size != [height, width]) {
                return refuse(format!(
                    "the picture to begin with is {height}×{width}; it must be of the size asked for, in multiples of {scale}"
                ));
            }
            if !(0.0..=1.0).contains(&start.strength) {
                return refuse(format!("strength is {}; it is 0 to 1", start.strength));
            }
        }
        if self.scheduler.rescale_betas_zero_snr
            && matches!(request.method, Method::Sampler(SamplerKind::Pndm, _))
        {
            return refuse("PNDM divides by 0 where the schedule ends in pure noise".to_owned());
        }
        let Method::Sampler(kind, steps) = request.method else {
            return Ok(());
        };
        let most = kind.max_steps(self.scheduler);
        if !(1..=most).contains(&steps) {
            return refuse(format!("{steps} steps; there can be 1 to {most}"));
        }
        let strength = request.start.as_ref().map_or(1.0, |start| start.strength);
        if n_taken(steps, strength) == 0 {
            return refuse(format!(
                "strength {strength} of {steps} steps leaves none; there must be one"
            ));
        }
        Ok(())
    }

    fn plan(&self, request: &Request, schedule: &NoiseSchedule) -> Plan {
        let strength = request.start.as_ref().map_or(1.0, |start| start.strength);
        match request.method {
            Method::OneStep => {
                let timestep = (strength * schedule.len() as f64).round() as usize;
                Plan::OneStep(timestep.max(1) - 1)
            }
            Method::Sampler(kind, steps) => {
                let skipped = steps - n_taken(steps, strength);
                Plan::Sampler(Sampler::after(kind, self.scheduler, steps, skipped))
            }
        }
    }

    /// Latents to begin with: noise, or those of pictures with noise, for which alone an encoder is needed.
    pub(crate) fn start(
        &self,
        request: &Request,
        decoder: impl FnOnce() -> Result<Decoder, Error>,
        noise: &mut dyn Noise,
    ) -> Result<Tensor<4>, Error> {
        let schedule = NoiseSchedule::new(self.scheduler);
        let plan = self.plan(request, &schedule);
        let (channels, side) = self.latents;
        let [height, width] = match (&request.start, request.size) {
            (Some(start), _) => {
                let [_, _, height, width] = start.images.dims();
                [height / self.scale, width / self.scale]
            }
            (None, Some(size)) => size.map(|side| side / self.scale),
            (None, None) => [side, side],
        };
        let shape = [request.prompts.len(), channels, height, width];
        let Some(Start { images, .. }) = &request.start else {
            let noise = noise.draw(shape, self.device)?;
            return Ok(match plan {
                Plan::OneStep(_) => noise,
                Plan::Sampler(sampler) => noise.cast(FloatDType::F32) * sampler.initial_scale(),
            });
        };
        let latents = decoder()?.encode(images.clone(), || noise.draw(shape, self.device))?;
        let latents = latents.cast(FloatDType::F32);
        finite("encoder", &latents)?;
        let noise = noise.draw(shape, self.device)?.cast(FloatDType::F32);
        let [clean, level] = match plan {
            Plan::OneStep(timestep) => [schedule.alpha(timestep), schedule.sigma(timestep)],
            Plan::Sampler(sampler) => sampler.steps()[0].entry,
        };
        Ok(latents * clean + noise * level)
    }

    /// Latents of noisy ones, f32. The loop is in f32; the network sees its own element type.
    pub(crate) fn latents(
        &self,
        unet: &UNet,
        request: &Request,
        conditioning: &Conditioning,
        start: Tensor<4>,
        noise: &mut dyn Noise,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Error> {
        let schedule = NoiseSchedule::new(self.scheduler);
        let shape = start.dims();
        let dtype = FloatDType::from(self.dtype);
        let context = conditioning.context.clone().cast(dtype);
        let negative = conditioning
            .negative
            .clone()
            .map(|states| states.cast(dtype));
        let ask = |input: Tensor<4>, timestep: f64| {
            let steps = Tensor::full([shape[0]], timestep, self.device);
            let input = input.cast(dtype);
            let ask = |context: Tensor<3>| {
                let output = unet.forward(input.clone(), steps.clone(), context);
                output.cast(FloatDType::F32)
            };
            let conditional = ask(context.clone());
            match &negative {
                Some(negative) => guide(conditional, ask(negative.clone()), request.guidance),
                None => conditional,
            }
        };
        let sampler = match self.plan(request, &schedule) {
            Plan::Sampler(sampler) => sampler,
            Plan::OneStep(timestep) => {
                let output = ask(start.clone(), timestep as f64);
                let latents = schedule.clean_latents(output, start, timestep);
                finite_in("denoiser", &latents, self.dtype)?;
                told(watch, 1, 1, latents.clone())?;
                return Ok(latents);
            }
        };
        let mut latents = start;
        let mut predictions = Vec::new();
        let n_calls = sampler.steps().len();
        for (index, step) in sampler.steps().iter().enumerate() {
            let output = ask(step.input(latents.clone()), step.timestep);
            let expected = step.clean(latents.clone(), output.clone());
            predictions.insert(0, step.predict(latents.clone(), output));
            predictions.truncate(sampler.memory());
            latents = step.advance(latents, &predictions);
            if step.fresh != 0.0 {
                let noise = noise.draw(shape, self.device)?.cast(FloatDType::F32);
                latents = latents + noise * step.fresh;
            }
            told(watch, index + 1, n_calls, expected)?;
        }
        // Looked at once: a NaN stays, and looking waits for the device.
        finite_in("denoiser", &latents, self.dtype)?;
        Ok(latents)
    }
}

/// Steps that are taken of `steps` from a picture of which `strength` is lost; as diffusers counts.
fn n_taken(steps: usize, strength: f64) -> usize {
    ((steps as f64 * strength) as usize).min(steps)
}

fn told(
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    call: usize,
    n_calls: usize,
    expected: Tensor<4>,
) -> Result<(), Error> {
    let progress = Progress {
        call,
        n_calls,
        expected,
    };
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

fn finite<const D: usize>(part: &'static str, tensor: &Tensor<D>) -> Result<(), Error> {
    finite_in(part, tensor, tensor.dtype())
}

/// Whether a part gave numbers; `dtype` is what it computed in.
fn finite_in<const D: usize>(
    part: &'static str,
    tensor: &Tensor<D>,
    dtype: DType,
) -> Result<(), Error> {
    let total = tensor.clone().cast(FloatDType::F32).abs().max().into_data();
    match total.iter::<f32>().all(f32::is_finite) {
        true => Ok(()),
        false => Err(Error::NotFinite { part, dtype }),
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;

    use super::*;

    /// Of the numbers of a picture one is enough, wherever it is.
    #[test]
    fn one_nan_or_infinity_is_noticed() {
        let check = |values: Vec<f32>| {
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [3000]), &device());
            finite("decoder", &tensor)
        };
        assert!(check(vec![-3.0; 3000]).is_ok());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 1, 1717, 2999] {
                let mut values = vec![0.5; 3000];
                values[place] = bad;
                assert!(check(values).is_err(), "{bad} at {place}");
            }
        }
    }
}
