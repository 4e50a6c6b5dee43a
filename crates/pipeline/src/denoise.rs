//! From noise to latents, independent of the other networks.

use burn::tensor::{DType, Device, FloatDType, Tensor};
use swiftbrush_scheduler::{History, NoiseSchedule, Sampler, SamplerKind, SchedulerConfig, guide};
use swiftbrush_unet::{Context, UNet};

use crate::checks::Checks;
use crate::decoder::Decoder;
use crate::mask::blend;
use crate::progress::Watcher;
use crate::request::n_taken;
use crate::{Conditioning, Error, Method, Noise, Request, Start, Warning, limits};

/// The properties of a model that generation needs besides its networks.
pub(crate) struct Denoising<'a> {
    pub(crate) scheduler: &'a SchedulerConfig,
    /// Channels and side of the latents that the denoiser was trained on.
    pub(crate) latents: (usize, usize),
    /// Number of pixels per latent, along each axis.
    pub(crate) scale: usize,
    /// Channels of the decoder at full resolution.
    pub(crate) width: usize,
    /// Element type of the arithmetic.
    pub(crate) dtype: DType,
    pub(crate) split_guidance: bool,
    pub(crate) device: &'a Device,
}

/// The steps of a sampler, or the one-step rule at a timestep.
enum Plan {
    OneStep(usize),
    Sampler(Sampler),
}

impl Plan {
    fn n_calls(&self) -> usize {
        match self {
            Self::OneStep(_) => 1,
            Self::Sampler(sampler) => sampler.steps().len(),
        }
    }
}

/// Latents before the first call, and the latents that a mask keeps.
pub(crate) struct Begun {
    latents: Tensor<4>,
    kept: Option<Kept>,
}

/// Latents and noise of images to start from, kept outside a mask.
struct Kept {
    clean: Tensor<4>,
    noise: Tensor<4>,
    mask: Tensor<4>,
}

impl Begun {
    /// Latents that are blended, outside the mask, with those of the images: clean ones and noise by these factors.
    fn keep(&self, latents: Tensor<4>, [clean, level]: [f64; 2]) -> Tensor<4> {
        let Some(kept) = &self.kept else {
            return latents;
        };
        let original = kept.clean.clone() * clean + kept.noise.clone() * level;
        blend(kept.mask.clone(), latents, original)
    }
}

/// Strength above which a single call sees nothing of the image.
const FILLING: f64 = 0.8;
/// Largest share of an image that a single call may fill.
const LARGEST_HOLE: f64 = 1.0 / 16.0;

/// Fails for large holes in a single call, which sees noise instead of the surroundings and has no later step to
/// correct it.
fn check_filling(start: &Start, plan: &Plan) -> Result<(), Error> {
    let Some(mask) = &start.mask else {
        return Ok(());
    };
    if plan.n_calls() > 1 || start.strength <= FILLING {
        return Ok(());
    }
    let share = mask.share();
    if share <= LARGEST_HOLE {
        return Ok(());
    }
    Err(Error::Request(format!(
        "a mask over {:.0} % of the image at strength {} in a single call: one step cannot fill a hole, because it sees noise instead of the surroundings; take two steps, between which the surroundings are noised again (`--sampler lcm --steps 2`), or a strength of at most {FILLING}",
        share * 100.0,
        start.strength
    )))
}

impl Denoising<'_> {
    /// Checks a request of `batch` images against itself and the model.
    pub(crate) fn check(&self, request: &Request, batch: usize) -> Result<(), Error> {
        let check = |holds: bool, text: String| match holds {
            true => Ok(()),
            false => Err(Error::Request(text)),
        };
        check(batch > 0, "no prompts".to_owned())?;
        check(
            request.guidance.is_finite() && request.guidance >= 0.0,
            format!(
                "guidance {}; expected 0 or more (values up to 1 turn it off)",
                request.guidance
            ),
        )?;
        check_negative(request).map_err(Error::Request)?;
        if let Some(size) = request.size {
            limits::check_size(size, self.scale, self.width)?;
        }
        if let Some(start) = &request.start {
            self.check_start(start, request.size, batch)?;
        }
        let plan = self.plan(request)?;
        match &request.start {
            Some(start) => check_filling(start, &plan),
            None => Ok(()),
        }
    }

    fn check_start(
        &self,
        start: &Start,
        size: Option<[usize; 2]>,
        batch: usize,
    ) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Request(text));
        let [count, channels, height, width] = start.images.dims();
        if channels != 3 {
            return refuse(format!(
                "expected start images of 3 channels, found {channels}"
            ));
        }
        if count != batch {
            return refuse(format!(
                "expected a start image for each of {batch} prompts, found {count}"
            ));
        }
        limits::check_size([height, width], self.scale, self.width)?;
        if let Some([rows, columns]) = size.filter(|&size| size != [height, width]) {
            return refuse(format!(
                "the start image is {width}x{height}, but the requested size is {columns}x{rows}: resize the image, or omit the size"
            ));
        }
        if !(0.0..=1.0).contains(&start.strength) {
            return refuse(format!("strength {}; expected 0 to 1", start.strength));
        }
        match &start.mask {
            Some(mask) => mask.check(start.images.dims()),
            None => Ok(()),
        }
    }

    fn plan(&self, request: &Request) -> Result<Plan, Error> {
        let strength = request.strength();
        let Method::Sampler(kind, steps) = request.method else {
            let timestep = (strength * self.scheduler.num_train_timesteps as f64).round() as usize;
            return Ok(Plan::OneStep(timestep.max(1) - 1));
        };
        let scheduler = self.scheduler(request);
        let taken = n_taken(steps, strength);
        if steps > 0 && taken == 0 {
            let remedy = match strength > 0.0 {
                true => format!(", or take at least {} steps", (1.0 / strength).ceil()),
                false => String::new(),
            };
            return Err(Error::Request(format!(
                "strength {strength} leaves none of {steps} steps: raise the strength{remedy}"
            )));
        }
        let sampler = Sampler::after(kind, &scheduler, steps, steps - taken)?;
        Ok(Plan::Sampler(sampler))
    }

    /// The model's scheduler with the request's spacing.
    fn scheduler(&self, request: &Request) -> SchedulerConfig {
        let scheduler = self.scheduler.clone();
        match request.spacing {
            Some(spacing) => scheduler.with_spacing(spacing),
            None => scheduler,
        }
    }

    /// Warnings about how a valid request is carried out.
    pub(crate) fn warnings(&self, request: &Request) -> Vec<Warning> {
        let is_ddim = matches!(request.method, Method::Sampler(SamplerKind::Ddim, _));
        let resolved = self.scheduler(request).for_sampler(SamplerKind::Ddim);
        match is_ddim && resolved.is_ok_and(|config| config.clip_sample) {
            true => vec![Warning::LatentsClipped],
            false => Vec::new(),
        }
    }

    /// Height and width in pixels.
    pub(crate) fn size(&self, request: &Request) -> [usize; 2] {
        let (_, side) = self.latents;
        match (&request.start, request.size) {
            (Some(start), _) => {
                let [_, _, height, width] = start.images.dims();
                [height, width]
            }
            (None, Some(size)) => size,
            (None, None) => [side * self.scale; 2],
        }
    }

    /// Computes the initial latents: noise, or latents of images with noise. Only the latter need an encoder.
    pub(crate) fn start(
        &self,
        request: &Request,
        batch: usize,
        decoder: impl FnOnce() -> Result<Decoder, Error>,
        noise: &mut dyn Noise,
        checks: &mut Checks,
    ) -> Result<Begun, Error> {
        let plan = self.plan(request)?;
        let (channels, _) = self.latents;
        let [height, width] = self.size(request).map(|side| side / self.scale);
        let shape = [batch, channels, height, width];
        let Some(Start { images, mask, .. }) = &request.start else {
            let noise = noise.draw(shape, self.device)?;
            let latents = match plan {
                Plan::OneStep(_) => noise,
                Plan::Sampler(sampler) => noise.cast(FloatDType::F32) * sampler.initial_scale(),
            };
            let kept = None;
            return Ok(Begun { latents, kept });
        };
        checks.pixels("start image", images)?;
        let latents = decoder()?.encode(images.clone(), || noise.draw(shape, self.device))?;
        let images = latents.cast(FloatDType::F32);
        checks.finite("encoder", &images)?;
        let noise = noise.draw(shape, self.device)?.cast(FloatDType::F32);
        let [clean, level] = match plan {
            Plan::OneStep(timestep) => {
                let schedule = NoiseSchedule::new(self.scheduler);
                [schedule.alpha(timestep), schedule.sigma(timestep)]
            }
            Plan::Sampler(sampler) => sampler.steps()[0].entry,
        };
        let kept = mask.as_ref().map(|mask| Kept {
            clean: images.clone(),
            noise: noise.clone(),
            mask: mask.latents(self.scale),
        });
        let latents = images * clean + noise * level;
        Ok(Begun { latents, kept })
    }

    /// Computes clean latents from noisy ones, in f32. The loop runs in f32; the network gets its own element type.
    pub(crate) fn run(
        &self,
        unet: &UNet,
        request: &Request,
        conditioning: &Conditioning,
        start: Begun,
        noise: &mut dyn Noise,
        watcher: &mut Watcher<'_>,
    ) -> Result<Tensor<4>, Error> {
        let network = Network::new(self, unet, request, conditioning);
        let sampler = match self.plan(request)? {
            Plan::Sampler(sampler) => sampler,
            Plan::OneStep(timestep) => {
                watcher.call(0, 1, None)?;
                let schedule = NoiseSchedule::new(self.scheduler);
                let output = network.call(start.latents.clone(), timestep as f64);
                let latents = schedule.clean_latents(output, start.latents.clone(), timestep);
                let latents = start.keep(latents, [1.0, 0.0]);
                watcher.checks.finite_in("denoiser", &latents, self.dtype)?;
                watcher.call(1, 1, Some(latents.clone()))?;
                return Ok(latents);
            }
        };
        let n_calls = sampler.steps().len();
        watcher.call(0, n_calls, None)?;
        let mut latents = start.latents.clone();
        let mut history = History::default();
        for (index, step) in sampler.steps().iter().enumerate() {
            let output = network.call(step.input(latents.clone()), step.timestep);
            let expected = step.clean(latents.clone(), output.clone());
            latents = step.advance(latents, output, &mut history);
            if step.fresh != 0.0 {
                let noise = noise.draw(latents.dims(), self.device)?;
                latents = latents + noise.cast(FloatDType::F32) * step.fresh;
            }
            let next = sampler.steps().get(index + 1);
            latents = start.keep(latents, next.map_or([1.0, 0.0], |next| next.entry));
            watcher.call(index + 1, n_calls, Some(expected))?;
        }
        // Checked only once, because a NaN persists and reading waits for the device.
        watcher.checks.finite_in("denoiser", &latents, self.dtype)?;
        Ok(latents)
    }
}

/// Checks that the negative prompt has an effect, through one method only.
fn check_negative(request: &Request) -> Result<(), String> {
    let (guidance, method) = (request.guidance, request.effective_negative_method());
    match method {
        Some(method) if request.is_guided() => Err(format!(
            "guidance {guidance} and {method} both apply the negative prompt: set guidance to 1, or omit the negative method"
        )),
        Some(method) => method.check(),
        None if request.is_guided() || request.negative_prompt.is_empty() => Ok(()),
        None => Err(format!(
            "the negative prompt has no effect at guidance {guidance} in several steps: raise guidance above 1, choose nasa or nag as the negative method, or omit the negative prompt"
        )),
    }
}

/// The denoiser with its embeddings and guidance.
struct Network<'a> {
    unet: &'a UNet,
    dtype: FloatDType,
    guidance: f64,
    calls: Calls,
}

/// The embeddings of each call.
enum Calls {
    /// Positive embeddings, and with a negative method the others.
    Plain(Context),
    /// Negative embeddings, then positive ones, in one call.
    Guided(Tensor<3>),
    /// Positive and negative embeddings, in two calls.
    Split(Tensor<3>, Tensor<3>),
}

impl<'a> Network<'a> {
    fn new(
        denoising: &Denoising<'_>,
        unet: &'a UNet,
        request: &Request,
        conditioning: &Conditioning,
    ) -> Self {
        let dtype = FloatDType::from(denoising.dtype);
        let context = conditioning.context.clone().cast(dtype);
        let shape = context.dims();
        let negative = conditioning.negative.clone();
        let negative = negative.map(|states| states.cast(dtype));
        let calls = match (negative, request.effective_negative_method()) {
            (Some(negative), Some(method)) => {
                Calls::Plain(Context::from(context).with_negative(negative, method))
            }
            (Some(negative), None) if request.is_guided() => {
                let negative = negative.expand(shape);
                match denoising.split_guidance {
                    true => Calls::Split(context, negative),
                    false => Calls::Guided(Tensor::cat(vec![negative, context], 0)),
                }
            }
            _ => Calls::Plain(context.into()),
        };
        Self {
            unet,
            dtype,
            guidance: request.guidance,
            calls,
        }
    }

    /// Computes the guided output, in f32, for one timestep of all images.
    fn call(&self, input: Tensor<4>, timestep: f64) -> Tensor<4> {
        let input = input.cast(self.dtype);
        let forward = |input: Tensor<4>, context: Context| {
            let [batch, _, _, _] = input.dims();
            let timesteps = Tensor::full([batch], timestep, &input.device());
            let output = self.unet.forward(input, timesteps, context);
            output.cast(FloatDType::F32)
        };
        match &self.calls {
            Calls::Plain(context) => forward(input, context.clone()),
            Calls::Split(context, negative) => {
                let unconditional = forward(input.clone(), negative.clone().into());
                let output = forward(input, context.clone().into());
                guide(output, unconditional, self.guidance)
            }
            Calls::Guided(context) => {
                let [batch, _, _, _] = input.dims();
                let doubled = Tensor::cat(vec![input.clone(), input], 0);
                let output = forward(doubled, context.clone().into());
                let half = |start| output.clone().narrow(0, start, batch);
                guide(half(batch), half(0), self.guidance)
            }
        }
    }
}
