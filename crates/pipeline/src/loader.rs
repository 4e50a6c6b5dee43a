mod check;
mod quantize;
mod scheduler;

use burn::tensor::{DType, Device};
use swiftbrush_checkpoint::{Model, quantize};
use swiftbrush_clip::{TextConfig, TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_scheduler::SchedulerConfig;
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{
    AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig, Tiling,
};

use crate::conditioning::encode_request;
use crate::decoder::Decoder;
use crate::denoise::Denoising;
use crate::loader::scheduler::Scheduler;
use crate::progress::{Stage, Watch, Watcher};
use crate::{DecoderKind, Error, Family, Generation, LoadOptions, Noise, Request, TextToImage};

/// Loads a model, or parts of it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use burn::tensor::{DType, Device};
/// use swiftbrush_pipeline::{DecoderKind, Loader, Model};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/model");
/// let pipeline = Loader::new(Model::open(folder)?, &Device::default())
///     .with_storage(DType::F16)
///     .with_decoder(DecoderKind::Tiny)
///     .load()?;
/// assert!(pipeline.warnings().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Loader {
    model: Model,
    device: Device,
    options: LoadOptions,
    adapters: Vec<(AdapterFile, f64)>,
}

impl Loader {
    /// Creates a loader of the complete model in f32, with its full autoencoder.
    pub fn new(model: Model, device: &Device) -> Self {
        Self {
            model,
            device: device.clone(),
            options: LoadOptions::default(),
            adapters: Vec::new(),
        }
    }

    /// Replaces all options.
    pub fn with_options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets the element type of the arithmetic: f32, f16 or bf16. In f16, the full autoencoder still computes in f32 if
    /// its configuration says that it overflows in half precision (`force_upcast`).
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = dtype;
        self
    }

    /// Stores the denoiser's weights in this element type and converts them where they are used, which halves memory at a
    /// small cost in time.
    pub fn with_storage(mut self, storage: DType) -> Self {
        self.options.storage = Some(storage);
        self
    }

    /// Stores the denoiser's weights as in the file while computing in f32, unless
    /// [`with_storage`](Self::with_storage) is set: a half-precision file is not converted before the first image, and the
    /// results are bit-identical. On a CPU this costs no time; other backends convert every weight in each call. Adapters
    /// would be rounded, so this has no effect if there are any.
    pub fn with_weights_as_stored(mut self) -> Self {
        self.options.weights_as_stored = true;
        self
    }

    /// Quantises the denoiser and the text encoder to int8 while loading, which on a CPU takes a quarter of the memory
    /// of f32 and less time; see [`Int8Weight`](swiftbrush_kernels::Int8Weight). Adapters are merged first. Models
    /// stored in int8 need no option.
    pub fn with_int8(mut self) -> Self {
        self.options.int8 = true;
        self
    }

    /// Uses another component than `unet` as the denoiser.
    pub fn with_denoiser(mut self, component: &str) -> Self {
        component.clone_into(&mut self.options.denoiser);
        self
    }

    /// Selects the autoencoder.
    pub fn with_decoder(mut self, decoder: DecoderKind) -> Self {
        self.options.decoder = decoder;
        self
    }

    /// Encodes and decodes in tiles, with the full autoencoder.
    pub fn with_tiling(mut self, tiling: Tiling) -> Self {
        self.options.tiling = Some(tiling);
        self
    }

    /// Sets the family of a model without a scheduler configuration, such as a single file that does not identify it. Other
    /// models ignore it with a warning.
    pub fn with_family(mut self, family: Family) -> Self {
        self.options.family = Some(family);
        self
    }

    /// Calls the denoiser twice for guidance instead of once with twice the batch, which needs less memory but is slightly
    /// slower.
    pub fn with_split_guidance(mut self) -> Self {
        self.options.split_guidance = true;
        self
    }

    /// Adds an adapter, scaled by a strength; can be repeated.
    pub fn with_adapter(mut self, adapter: AdapterFile, strength: f64) -> Self {
        self.adapters.push((adapter, strength));
        self
    }

    /// The options.
    pub fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// Loads all parts.
    ///
    /// # Errors
    ///
    /// Same as [`check`](Self::check), or if a part is damaged.
    pub fn load(&self) -> Result<TextToImage, Error> {
        self.check()?;
        let Scheduler {
            config,
            mut warnings,
        } = self.resolve_scheduler()?;
        warnings.extend(self.file_notes());
        let (latents, width) = (self.latents()?, self.width()?);
        // Reading a vocabulary is bound by one core and reading weights by memory, so they run in parallel where there are
        // threads.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new();
            let tokenizer = thread.spawn_scoped(scope, || self.fitting_tokenizer());
            Ok(TextToImage {
                text_encoder: self.text_encoder()?,
                unet: self.unet()?,
                decoder: self.decoder()?,
                scheduler: config,
                latents,
                width,
                dtype: self.options.dtype,
                split_guidance: self.options.split_guidance,
                warnings,
                device: self.device.clone(),
                tokenizer: match tokenizer {
                    Ok(tokenizer) => tokenizer
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                    Err(_) => self.fitting_tokenizer()?,
                },
            })
        })
    }

    /// Generates with one network in memory at a time: each is loaded when it is needed and freed afterwards. Peak memory
    /// is that of the largest network instead of all, but every call loads them again.
    ///
    /// # Errors
    ///
    /// Same as [`load`](Self::load) and [`TextToImage::generate_with`].
    pub fn generate_sequentially(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        watch: Watch<'_>,
    ) -> Result<Generation, Error> {
        self.check()?;
        let Scheduler { config, .. } = self.resolve_scheduler()?;
        let denoising = self.denoising(&config)?;
        let batch = request.prompts.len();
        denoising.check(request, batch)?;
        let mut watcher = Watcher::new(watch);
        watcher.tell(Stage::Encoding)?;
        let start = denoising.start(
            request,
            batch,
            || self.decoder(),
            noise,
            &mut watcher.checks,
        )?;
        let conditioning = {
            let (tokenizer, text_encoder) = (self.fitting_tokenizer()?, self.text_encoder()?);
            encode_request(
                &tokenizer,
                &text_encoder,
                request,
                &self.device,
                &mut watcher.checks,
            )?
        };
        let latents = {
            let unet = self.unet()?;
            denoising.run(&unet, request, &conditioning, start, noise, &mut watcher)?
        };
        let decoder = self.decoder()?;
        let images = decoder.decode_watched(latents.clone(), &mut watcher)?;
        let (images, warnings) = (request.paste(images), denoising.warnings(request));
        let generation = Generation::new(images, latents, conditioning, warnings);
        Ok(Generation {
            mask: request.mask(),
            ..generation
        })
    }

    /// Loads only the tokenizer.
    ///
    /// # Errors
    ///
    /// If it is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Ok(Tokenizer::from_model(&self.model, "tokenizer")?)
    }

    /// Loads only the text encoder.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn text_encoder(&self) -> Result<TextEncoder, Error> {
        let (name, dtype) = ("text_encoder", Some(self.options.dtype));
        let (model, device, is_int8) = (&self.model, &self.device, self.options.int8);
        if is_int8 && self.adapters.is_empty() {
            return Ok(TextEncoder::from_model_int8(model, name, device)?);
        }
        let mut network = TextEncoder::from_model(model, name, dtype, device)?;
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.text_encoder, *strength)?;
        }
        Ok(match is_int8 {
            true => quantize(network, TextEncoder::is_int8_weight, model.root())?,
            false => network,
        })
    }

    /// Loads only the denoiser.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn unet(&self) -> Result<UNet, Error> {
        let options = &self.options;
        let is_as_stored =
            options.weights_as_stored && options.dtype == DType::F32 && self.adapters.is_empty();
        let (model, component, device) = (&self.model, &options.denoiser, &self.device);
        if options.int8 && self.adapters.is_empty() {
            return Ok(UNet::from_model_int8(model, component, device)?);
        }
        let mut network = match options.storage {
            None if is_as_stored => UNet::from_model_as_stored(model, component, device)?,
            storage => {
                let dtype = storage.unwrap_or(options.dtype);
                UNet::from_model(model, component, Some(dtype), device)?
            }
        };
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.unet, *strength)?;
        }
        Ok(match options.int8 {
            true => quantize(network, UNet::is_int8_weight, model.root())?,
            false => network,
        })
    }

    /// Loads only the autoencoder.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn decoder(&self) -> Result<Decoder, Error> {
        let dtype = self.options.dtype;
        if self.options.decoder == DecoderKind::Tiny {
            let tiny =
                AutoencoderTiny::from_model(&self.model, "taesd", Some(dtype), &self.device)?;
            return Ok(Decoder::Tiny(tiny));
        }
        let is_narrow = dtype == DType::F16
            && AutoencoderKlConfig::from_model(&self.model, "vae")?.force_upcast;
        let dtype = Some(if is_narrow { DType::F32 } else { dtype });
        let vae = AutoencoderKl::from_model(&self.model, "vae", dtype, &self.device)?;
        Ok(match self.options.tiling {
            None => Decoder::Kl(vae),
            Some(tiling) => Decoder::Tiled(vae, tiling),
        })
    }

    /// Number of pixels per latent, along each axis; 8 for Stable Diffusion.
    ///
    /// # Errors
    ///
    /// If the autoencoder's configuration cannot be used.
    pub fn scale(&self) -> Result<usize, Error> {
        let levels = match self.options.decoder {
            DecoderKind::Kl => {
                let config = AutoencoderKlConfig::from_model(&self.model, "vae")?;
                config.block_out_channels.len()
            }
            DecoderKind::Tiny => {
                let config = AutoencoderTinyConfig::from_model(&self.model, "taesd")?;
                config.num_decoder_blocks.len()
            }
        };
        Ok(1 << (levels - 1))
    }

    /// Side in pixels of the images that the model was trained on.
    ///
    /// # Errors
    ///
    /// If a configuration cannot be used.
    pub fn side(&self) -> Result<usize, Error> {
        let (_, side) = self.latents()?;
        Ok(side * self.scale()?)
    }

    fn denoising<'a>(&'a self, scheduler: &'a SchedulerConfig) -> Result<Denoising<'a>, Error> {
        Ok(Denoising {
            scheduler,
            latents: self.latents()?,
            scale: self.scale()?,
            width: self.width()?,
            dtype: self.options.dtype,
            split_guidance: self.options.split_guidance,
            device: &self.device,
        })
    }

    fn unet_config(&self) -> Result<UNetConfig, Error> {
        Ok(UNetConfig::from_model(&self.model, &self.options.denoiser)?)
    }

    /// Channels of the decoder at full resolution.
    fn width(&self) -> Result<usize, Error> {
        let channels = match self.options.decoder {
            DecoderKind::Kl => {
                AutoencoderKlConfig::from_model(&self.model, "vae")?.block_out_channels
            }
            DecoderKind::Tiny => {
                AutoencoderTinyConfig::from_model(&self.model, "taesd")?.decoder_block_out_channels
            }
        };
        Ok(channels.first().copied().unwrap_or_default())
    }

    /// Loads the tokenizer, and checks that the text encoder has all its tokens and positions.
    fn fitting_tokenizer(&self) -> Result<Tokenizer, Error> {
        let tokenizer = self.tokenizer()?;
        let config = TextConfig::from_model(&self.model, "text_encoder")?;
        let (tokens, positions) = (config.vocab_size, config.max_position_embeddings);
        if tokenizer.vocabulary() > tokens || tokenizer.length() > positions {
            return Err(self.contradiction(format!(
                "the tokenizer has {} tokens and prompts of {}, the text encoder {tokens} and {positions}",
                tokenizer.vocabulary(),
                tokenizer.length()
            )));
        }
        Ok(tokenizer)
    }

    fn contradiction(&self, reason: String) -> Error {
        Error::Model {
            path: self.model.root().to_owned(),
            reason,
        }
    }
}
