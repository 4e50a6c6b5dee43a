use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_unet::{Context, UNet, UNetConfig};

use crate::checks::Checks;
use crate::conditioning::{encode, encode_request};
use crate::decoder::Decoder;
use crate::denoise::Denoising;
use crate::progress::{Stage, Watch, Watcher};
use crate::source::check_strengths;
use crate::{
    Batches, Conditioning, Error, Generation, Loader, Mask, Method, Noise, Request, Rng, Seeds,
    Start, Warning,
};

/// The one-step student: `x̂₀ = (z − σ_T·ε_θ(z, T, y)) / α_T` at the last timestep T
/// (SwiftBrush, arXiv 2312.05239, equation 6), divided in f32.
///
/// # Shapes
///
/// - noise: `[batch, channels, height, width]`, unit normal
/// - context: `[batch, length, width]`, alone or in a [`Context`], in the element type of the network's arithmetic
/// - returns: latents with the shape of the noise, f32
///
/// # Panics
///
/// If the shapes do not match the network.
#[track_caller]
pub fn one_step(
    unet: &UNet,
    schedule: &NoiseSchedule,
    noise: Tensor<4>,
    context: impl Into<Context>,
) -> Tensor<4> {
    let context = context.into();
    let dtype = context.dtype();
    let predict = |noisy, timesteps| unet.forward(noisy, timesteps, context);
    one_step_with(predict, schedule, noise, dtype)
}

/// [`one_step`] of any network; like [`UNet::forward`], `predict` takes noisy latents in the element type `dtype`, and
/// timesteps.
pub fn one_step_with(
    predict: impl FnOnce(Tensor<4>, Tensor<1>) -> Tensor<4>,
    schedule: &NoiseSchedule,
    noise: Tensor<4>,
    dtype: DType,
) -> Tensor<4> {
    let [batch, _, _, _] = noise.dims();
    let steps = Tensor::full([batch], schedule.last() as f64, &noise.device());
    let output = predict(noise.clone().cast(dtype), steps);
    schedule.clean_latents(output, noise, schedule.last())
}

/// Draws unit normal noise, which is the same for a seed on every machine and device.
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

/// A text-to-image model: its networks, tokenizer and scheduler, which can be replaced. Clones share the parameters.
///
/// Generation blocks the calling thread; call it inside `spawn_blocking` in asynchronous programs. The type is `Send`
/// and `Sync`.
#[derive(Clone, Debug)]
pub struct TextToImage {
    /// Converts prompts to tokens.
    pub tokenizer: Tokenizer,
    /// Converts tokens to embeddings.
    pub text_encoder: TextEncoder,
    /// The denoiser.
    pub unet: UNet,
    /// Converts latents to images.
    pub decoder: Decoder,
    /// The scheduler's configuration.
    pub scheduler: SchedulerConfig,
    /// Channels and side of the latents that the denoiser was trained on.
    pub(crate) latents: (usize, usize),
    /// Channels of the decoder at full resolution.
    pub(crate) width: usize,
    /// Element type of the denoiser's arithmetic.
    pub(crate) dtype: DType,
    pub(crate) split_guidance: bool,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) device: Device,
}

/// Channels of Stable Diffusion's decoder at full resolution.
const WIDTH: usize = 128;

impl TextToImage {
    /// Loads a model with its full autoencoder in the element type `dtype` [default: f32]. [`Loader`] has more options.
    ///
    /// # Errors
    ///
    /// Same as [`Loader::load`].
    pub fn from_model(model: &Model, dtype: Option<DType>, device: &Device) -> Result<Self, Error> {
        let loader = Loader::new(model.clone(), device);
        loader.with_dtype(dtype.unwrap_or(DType::F32)).load()
    }

    /// Combines loaded parts, which must be on `device` and in f32.
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
            width: WIDTH,
            dtype: DType::F32,
            split_guidance: false,
            warnings: Vec::new(),
            device: device.clone(),
        }
    }

    /// Returns the model with adapters fused, each scaled by its strength. Everything else is shared, so another set of
    /// adapters can be applied to the original model without loading it again.
    ///
    /// # Errors
    ///
    /// If a strength is not finite, or an adapter has no layer of its name and size; the error lists all of them.
    pub fn with_adapters(&self, adapters: &[(&AdapterFile, f64)]) -> Result<Self, Error> {
        check_strengths(adapters.iter().map(|(_, strength)| *strength))?;
        let mut adapted = self.clone();
        for (file, strength) in adapters {
            adapted.unet = fuse(adapted.unet, &file.unet, *strength)?;
            adapted.text_encoder = fuse(adapted.text_encoder, &file.text_encoder, *strength)?;
        }
        Ok(adapted)
    }

    /// The device of all parts.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Warnings of the loader, such as a replaced scheduler.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Shape of the noise for a batch of images with the size that the model was trained on.
    pub fn latent_shape(&self, batch: usize) -> [usize; 4] {
        let (channels, side) = self.latents;
        [batch, channels, side, side]
    }

    /// Height and width in pixels of the images of a request.
    pub fn size(&self, request: &Request) -> [usize; 2] {
        self.denoising().size(request)
    }

    /// The default method of the model's scheduler; see [`Method::of_scheduler`].
    ///
    /// # Errors
    ///
    /// If the scheduler's class is unknown.
    pub fn default_method(&self) -> Result<Method, Error> {
        Method::of_scheduler(&self.scheduler)
    }

    /// Requests one image per prompt with the model's default method, without guidance.
    ///
    /// # Errors
    ///
    /// Same as [`default_method`](Self::default_method).
    pub fn request<S: Into<String>>(
        &self,
        prompts: impl IntoIterator<Item = S>,
    ) -> Result<Request, Error> {
        Ok(Request::new(prompts).with_method(self.default_method()?))
    }

    /// Checks a request without generating.
    ///
    /// # Errors
    ///
    /// If it contradicts itself or the model.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        self.denoising().check(request, request.prompts.len())
    }

    /// Encodes prompts.
    ///
    /// # Errors
    ///
    /// If the text encoder produces a NaN.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditioning, Error> {
        self.encode_checked(prompts, &mut Checks::Now)
    }

    /// Encodes the prompts of a request, and its negative prompt if that has an effect.
    ///
    /// # Errors
    ///
    /// Same as [`encode`](Self::encode).
    pub fn encode_request(&self, request: &Request) -> Result<Conditioning, Error> {
        self.encode_request_checked(request, &mut Checks::Now)
    }

    /// Generates images.
    ///
    /// # Errors
    ///
    /// If the request contradicts itself, the model or the noise, or a network produces a NaN.
    pub fn generate(&self, request: &Request, noise: &mut dyn Noise) -> Result<Generation, Error> {
        self.generate_with(request, noise, &mut |_| ControlFlow::Continue(()))
    }

    /// Like [`generate`](Self::generate), with a progress callback that can cancel.
    ///
    /// # Errors
    ///
    /// Same as [`generate`](Self::generate), and [`Error::Cancelled`].
    pub fn generate_with(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        watch: Watch<'_>,
    ) -> Result<Generation, Error> {
        self.generate_watched(request, noise, &mut Watcher::new(watch))
    }

    /// Like [`generate`](Self::generate), for devices whose results cannot be waited for, such as WebGPU in a browser. The
    /// computation starts at the call; the future reads the checks for NaNs. Read the images with
    /// [`Generation::pictures_async`].
    ///
    /// # Errors
    ///
    /// The future gives the errors of [`generate`](Self::generate), and [`Error::Execution`] if the device fails.
    pub fn generate_async(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
    ) -> impl Future<Output = Result<Generation, Error>> + use<> {
        let mut watch = |_| ControlFlow::Continue(());
        let mut watcher = Watcher::without_waiting(&mut watch);
        let generation = self.generate_watched(request, noise, &mut watcher);
        checked(generation, watcher.checks)
    }

    fn generate_watched(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        watcher: &mut Watcher<'_>,
    ) -> Result<Generation, Error> {
        self.check(request)?;
        watcher.tell(Stage::Encoding)?;
        let conditioning = self.encode_request_checked(request, &mut watcher.checks)?;
        self.finish(conditioning, request, noise, watcher)
    }

    pub(crate) fn encode_checked<S: AsRef<str>>(
        &self,
        prompts: &[S],
        checks: &mut Checks,
    ) -> Result<Conditioning, Error> {
        let (tokenizer, encoder) = (&self.tokenizer, &self.text_encoder);
        encode(tokenizer, encoder, prompts, &self.device, checks)
    }

    fn encode_request_checked(
        &self,
        request: &Request,
        checks: &mut Checks,
    ) -> Result<Conditioning, Error> {
        let (tokenizer, encoder) = (&self.tokenizer, &self.text_encoder);
        encode_request(tokenizer, encoder, request, &self.device, checks)
    }

    /// Generates from embeddings; the request's prompts are ignored.
    ///
    /// # Errors
    ///
    /// Same as [`generate_with`](Self::generate_with), or if the width of the embeddings differs from the denoiser's,
    /// guidance or a negative method lacks negative embeddings, or there are some without either.
    pub fn generate_encoded(
        &self,
        conditioning: &Conditioning,
        request: &Request,
        noise: &mut dyn Noise,
        watch: Watch<'_>,
    ) -> Result<Generation, Error> {
        self.denoising().check(request, conditioning.batch())?;
        conditioning.check(request)?;
        let mut watcher = Watcher::new(watch);
        self.finish(conditioning.clone(), request, noise, &mut watcher)
    }

    /// Generates one picture per seed, `batch` at a time. The request contains one prompt, and optionally one start image,
    /// per seed, or a single one for all. If `watch` cancels, the pictures of the finished batches are returned.
    ///
    /// # Errors
    ///
    /// Same as [`generate_with`](Self::generate_with) except [`Error::Cancelled`], or if the numbers of prompts and seeds do
    /// not match. Everything is checked before the first batch.
    pub fn generate_in_batches(
        &self,
        request: &Request,
        rng: Rng,
        seeds: &[u64],
        batch: usize,
        watch: Watch<'_>,
    ) -> Result<Batches, Error> {
        if batch == 0 {
            let text = "batches of 0 images; expected at least 1";
            return Err(Error::Request(text.to_owned()));
        }
        if seeds.is_empty() {
            let text = "no seeds; expected one for each image";
            return Err(Error::Request(text.to_owned()));
        }
        let requests = split(request, seeds.len(), batch)?;
        for request in &requests {
            self.check(request)?;
        }
        let n_batches = requests.len();
        let mut batches = Batches::default();
        for (index, (request, seeds)) in requests.iter().zip(seeds.chunks(batch)).enumerate() {
            let mut watch = |progress: crate::Progress| watch(progress.in_batch(index, n_batches));
            let noise = &mut Seeds::new(rng, seeds.iter().copied());
            match self.generate_with(request, noise, &mut watch) {
                Ok(generation) => batches.add(generation),
                Err(Error::Cancelled) => return Ok(batches),
                Err(error) => return Err(error),
            }
        }
        batches.is_complete = true;
        Ok(batches)
    }

    /// Denoises and decodes.
    fn finish(
        &self,
        conditioning: Conditioning,
        request: &Request,
        noise: &mut dyn Noise,
        watcher: &mut Watcher<'_>,
    ) -> Result<Generation, Error> {
        self.check_parts(&conditioning)?;
        let denoising = self.denoising();
        let batch = conditioning.batch();
        let decoder = || Ok(self.decoder.clone());
        let start = denoising.start(request, batch, decoder, noise, &mut watcher.checks)?;
        let latents = denoising.run(&self.unet, request, &conditioning, start, noise, watcher)?;
        let images = self.decoder.decode_watched(latents.clone(), watcher)?;
        let (images, warnings) = (request.paste(images), denoising.warnings(request));
        let generation = Generation::new(images, latents, conditioning, warnings);
        Ok(Generation {
            mask: request.mask(),
            ..generation
        })
    }

    /// Checks the denoiser, which is a public field, against the embeddings and the latents.
    pub(crate) fn check_parts(&self, conditioning: &Conditioning) -> Result<(), Error> {
        let [_, _, width] = conditioning.context.dims();
        let (channels, _) = self.latents;
        let found = [
            ("embeddings", width, self.unet.context_width()),
            ("latents", channels, self.unet.in_channels()),
        ];
        for (what, found, expected) in found {
            if found != expected {
                return Err(Error::Request(format!(
                    "the denoiser expects {what} of {expected} channels, found {found}: it belongs to another model"
                )));
            }
        }
        Ok(())
    }

    fn denoising(&self) -> Denoising<'_> {
        Denoising {
            scheduler: &self.scheduler,
            latents: self.latents,
            scale: self.decoder.scale(),
            width: self.width,
            dtype: self.dtype,
            split_guidance: self.split_guidance,
            device: &self.device,
        }
    }
}

/// A generation once its checks have been read.
pub(crate) async fn checked(
    generation: Result<Generation, Error>,
    checks: Checks,
) -> Result<Generation, Error> {
    let generation = generation?;
    checks.read().await?;
    Ok(generation)
}

/// Splits a request into requests of at most `batch` images each, `count` in total.
fn split(request: &Request, count: usize, batch: usize) -> Result<Vec<Request>, Error> {
    let prompts = request.prompts.len();
    let images = request.start.as_ref().map_or(1, |start| {
        let [images, ..] = start.images.dims();
        images
    });
    let mask = request.start.as_ref().and_then(|start| start.mask.as_ref());
    let masks = mask.map_or(1, Mask::count);
    for (found, what) in [
        (prompts, "prompts"),
        (images, "images to start from"),
        (masks, "masks"),
    ] {
        if found != count && found != 1 {
            return Err(Error::Request(format!(
                "expected one or {count} {what} for {count} seeds, found {found}"
            )));
        }
    }
    let part = |first: usize| {
        let len = batch.min(count - first);
        let prompt = |index: usize| request.prompts[index.min(prompts - 1)].clone();
        let start = request.start.as_ref().map(|start| {
            let [n_images, ..] = start.images.dims();
            let images = start.images.clone();
            Start {
                images: match n_images {
                    1 => images.repeat_dim(0, len),
                    _ => images.narrow(0, first, len),
                },
                strength: start.strength,
                mask: start.mask.as_ref().map(|mask| mask.narrow(first, len)),
            }
        });
        Request {
            start,
            ..request
                .clone()
                .with_prompts((first..first + len).map(prompt))
        }
    };
    Ok((0..count).step_by(batch).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send_and_sync<T: Send + Sync>() {}

    #[test]
    fn models_loaders_and_noise_can_be_used_from_any_thread() {
        is_send_and_sync::<TextToImage>();
        is_send_and_sync::<Loader>();
        is_send_and_sync::<Seeds>();
        is_send_and_sync::<Request>();
        is_send_and_sync::<Generation>();
        is_send_and_sync::<Error>();
    }
}
