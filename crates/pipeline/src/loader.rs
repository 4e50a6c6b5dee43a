use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{TextConfig, TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_scheduler::{PredictionType, SchedulerConfig};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{
    AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig, Tiling,
};

use crate::conditioning::encode_request;
use crate::decoder::Decoder;
use crate::denoise::Denoising;
use crate::progress::{Stage, Watch, Watcher};
use crate::source::check_strengths;
use crate::{
    DecoderKind, Error, Family, Generation, LoadOptions, Method, Noise, Request, TextToImage,
    Warning, limits,
};

/// Path of the scheduler's configuration in a model folder.
const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// Key of the prediction type in a file's header (Stability AI's model specification).
const PREDICTS: &str = "modelspec.prediction_type";

/// Loads a model, or parts of it.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use burn::tensor::{DType, Device};
/// use swiftbrush_pipeline::{DecoderKind, Loader, Model};
///
/// let pipeline = Loader::new(Model::open("models/sd-turbo")?, &Device::default())
///     .with_storage(DType::F16)
///     .with_decoder(DecoderKind::Tiny)
///     .load()?;
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

/// The scheduler's configuration, and what deviates from its file.
struct Scheduler {
    config: SchedulerConfig,
    warnings: Vec<Warning>,
}

impl Loader {
    /// All of a model in f32, with its full autoencoder.
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

    /// Sets the element type of the arithmetic: f32, f16 or bf16. In f16 the full autoencoder still computes in f32 if
    /// its configuration says that half precision is too narrow for it (`force_upcast`).
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = dtype;
        self
    }

    /// Stores the denoiser's weights in this element type and converts them where they are used: half the memory for
    /// a little time.
    pub fn with_storage(mut self, storage: DType) -> Self {
        self.options.storage = Some(storage);
        self
    }

    /// Stores the denoiser's weights as in the file while computing in f32, unless
    /// [`with_storage`](Self::with_storage) is set: a file in half precision is not converted before the first image,
    /// and the results are the same to the bit. On a CPU this costs no time; other backends convert every weight at
    /// each call. Adapters would be rounded, so with any of them this has no effect.
    pub fn with_weights_as_stored(mut self) -> Self {
        self.options.weights_as_stored = true;
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

    /// Names the family of a single file that does not tell it.
    pub fn with_family(mut self, family: Family) -> Self {
        self.options.family = Some(family);
        self
    }

    /// Calls the denoiser twice for guidance instead of once with twice the batch: less memory, a little slower.
    pub fn with_split_guidance(mut self) -> Self {
        self.options.split_guidance = true;
        self
    }

    /// Folds an adapter in, times a strength; can be repeated.
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
    /// As [`check`](Self::check), or if a part is damaged.
    pub fn load(&self) -> Result<TextToImage, Error> {
        self.check()?;
        let Scheduler { config, warnings } = self.resolve_scheduler()?;
        let (latents, width) = (self.latents()?, self.width()?);
        // Reading a vocabulary keeps one core as busy as reading weights keeps the memory.
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| self.fitting_tokenizer());
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
                tokenizer: tokenizer
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            })
        })
    }

    /// Generates with one network in memory at a time: each is loaded when its turn comes and freed afterwards. Peak
    /// memory is that of the largest network instead of all, and every call loads again.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`TextToImage::generate_with`].
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
        let start = denoising.start(request, batch, || self.decoder(), noise)?;
        let conditioning = {
            let (tokenizer, text_encoder) = (self.fitting_tokenizer()?, self.text_encoder()?);
            encode_request(&tokenizer, &text_encoder, request, &self.device)?
        };
        let latents = {
            let unet = self.unet()?;
            denoising.run(&unet, request, &conditioning, start, noise, &mut watcher)?
        };
        let decoder = self.decoder()?;
        let images = decoder.decode_watched(latents.clone(), &mut watcher)?;
        let warnings = denoising.warnings(request);
        Ok(Generation::new(images, latents, conditioning, warnings))
    }

    /// Checks everything that can be checked without reading weights: the options, the adapters' strengths, and that
    /// the parts fit together, which those from different models may not.
    ///
    /// # Errors
    ///
    /// If a part is missing or not supported, or parts or options contradict each other.
    pub fn check(&self) -> Result<(), Error> {
        self.options.check()?;
        check_strengths(self.adapters.iter().map(|(_, strength)| *strength))?;
        self.check_is_whole()?;
        let unet = self.unet_config()?;
        let text = TextConfig::from_model(&self.model, "text_encoder")?;
        let latents = match self.options.decoder {
            DecoderKind::Kl => AutoencoderKlConfig::from_model(&self.model, "vae")?.latent_channels,
            DecoderKind::Tiny => {
                AutoencoderTinyConfig::from_model(&self.model, "taesd")?.latent_channels
            }
        };
        let (channels, outputs) = (unet.in_channels, unet.out_channels);
        if channels != outputs {
            return Err(self.contradiction(format!(
                "the denoiser reads {channels} channels and predicts {outputs}: models for inpainting or with depth are not supported"
            )));
        }
        if channels != latents {
            return Err(self.contradiction(format!(
                "the denoiser reads latents of {channels} channels, the autoencoder has {latents}"
            )));
        }
        let (context, states) = (unet.cross_attention_dim, text.hidden_size);
        if context != states {
            return Err(self.contradiction(format!(
                "the denoiser reads text states of width {context}, the text encoder gives {states}"
            )));
        }
        Ok(())
    }

    /// Checks a request before anything is loaded, as [`TextToImage::check`] does afterwards.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), or if the request contradicts itself or the model.
    pub fn check_request(&self, request: &Request) -> Result<(), Error> {
        self.check()?;
        let config = self.scheduler()?;
        self.denoising(&config)?
            .check(request, request.prompts.len())
    }

    /// An estimate of the bytes that the activations of a request take at their peak, in the decoder; weights are not
    /// counted.
    ///
    /// # Errors
    ///
    /// If a configuration cannot be used.
    pub fn memory(&self, request: &Request) -> Result<u64, Error> {
        let config = self.scheduler()?;
        let denoising = self.denoising(&config)?;
        let batch = request.prompts.len();
        let size = match self.options.tiling {
            Some(Tiling { side, .. }) => denoising
                .size(request)
                .map(|pixels| pixels.min(side.saturating_mul(denoising.scale))),
            None => denoising.size(request),
        };
        Ok(limits::decoding_memory(size, batch, denoising.width))
    }

    /// Deviations from the model's files, such as a substituted scheduler.
    ///
    /// # Errors
    ///
    /// As [`scheduler`](Self::scheduler).
    pub fn warnings(&self) -> Result<Vec<Warning>, Error> {
        Ok(self.resolve_scheduler()?.warnings)
    }

    /// The default method of the model's scheduler; see [`Method::of_scheduler`].
    ///
    /// # Errors
    ///
    /// As [`scheduler`](Self::scheduler), or if its class is unknown.
    pub fn default_method(&self) -> Result<Method, Error> {
        Method::of_scheduler(&self.scheduler()?)
    }

    /// Loads the tokenizer alone.
    ///
    /// # Errors
    ///
    /// If it is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Ok(Tokenizer::from_model(&self.model, "tokenizer")?)
    }

    /// Loads the text encoder alone.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn text_encoder(&self) -> Result<TextEncoder, Error> {
        let dtype = Some(self.options.dtype);
        let mut network =
            TextEncoder::from_model(&self.model, "text_encoder", dtype, &self.device)?;
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.text_encoder, *strength)?;
        }
        Ok(network)
    }

    /// Loads the denoiser alone.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn unet(&self) -> Result<UNet, Error> {
        let options = &self.options;
        let is_as_stored =
            options.weights_as_stored && options.dtype == DType::F32 && self.adapters.is_empty();
        let dtype = options.storage.or((!is_as_stored).then_some(options.dtype));
        let mut network = UNet::from_model(&self.model, &options.denoiser, dtype, &self.device)?;
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.unet, *strength)?;
        }
        Ok(network)
    }

    /// Loads the autoencoder alone.
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

    /// The scheduler's configuration: the model's file, or that of the single file's family, with the prediction type
    /// that the denoiser's own files name.
    ///
    /// # Errors
    ///
    /// If it is missing or not supported, a single file does not tell its family, or the family contradicts the file.
    pub fn scheduler(&self) -> Result<SchedulerConfig, Error> {
        Ok(self.resolve_scheduler()?.config)
    }

    fn resolve_scheduler(&self) -> Result<Scheduler, Error> {
        let path = self.model.path(SCHEDULER).filter(|path| path.is_file());
        let predicts = self.header_prediction()?;
        let family = self.checked_family(predicts)?;
        let (mut config, mut warnings) = match &path {
            None => (
                self.guessed_family(family, predicts)?.scheduler(),
                Vec::new(),
            ),
            Some(path) => {
                let mut config = read_scheduler(path)?;
                let corrected = config.correct_for_stable_diffusion().into_iter();
                let mut warnings = Warning::of_scheduler(&config);
                warnings.extend(corrected.map(Warning::SchedulerCorrected));
                (config, warnings)
            }
        };
        // What the weights' own files say goes before the model's scheduler, whose weights may be others.
        let own = match predicts {
            Some(predicts) => Some((self.weights_path(), predicts, None)),
            None => self.neighbouring_scheduler(path.as_deref())?,
        };
        if let Some((source, predicts, zero_snr)) = own {
            if predicts != config.prediction_type && path.is_some() {
                warnings.push(Warning::PredictionType {
                    source: source.display().to_string(),
                    prediction_type: format!("{predicts:?}"),
                });
            }
            let zero_snr = zero_snr
                .unwrap_or(config.rescale_betas_zero_snr && predicts != PredictionType::Epsilon);
            config = config
                .with_prediction_type(predicts)
                .with_zero_snr(zero_snr);
        }
        Ok(Scheduler { config, warnings })
    }

    /// The prediction type in the header of the denoiser's weights.
    fn header_prediction(&self) -> Result<Option<PredictionType>, Error> {
        let Ok(weights) = self.model.weights(&self.options.denoiser) else {
            return Ok(None);
        };
        match weights.metadata().get(PREDICTS).map(String::as_str) {
            None => Ok(None),
            Some("epsilon") => Ok(Some(PredictionType::Epsilon)),
            Some("v" | "v_prediction") => Ok(Some(PredictionType::VPrediction)),
            Some(other) => Err(Error::Model {
                path: self.weights_path(),
                reason: format!(
                    "unsupported `{PREDICTS}` {other:?}; expected \"epsilon\" or \"v\""
                ),
            }),
        }
    }

    /// Prediction type and zero-SNR rescaling of the scheduler beside a denoiser that comes from another model folder.
    #[allow(clippy::type_complexity, reason = "taken apart where it is called")]
    fn neighbouring_scheduler(
        &self,
        own: Option<&Path>,
    ) -> Result<Option<(PathBuf, PredictionType, Option<bool>)>, Error> {
        // The folder of the weights is a denoiser's if its configuration lies there too.
        let beside = self
            .weights_path()
            .parent()
            .filter(|folder| folder.join("config.json").is_file())
            .and_then(Path::parent)
            .map(|root| root.join(SCHEDULER))
            .filter(|beside| beside.is_file() && Some(beside.as_path()) != own);
        let Some(beside) = beside else {
            return Ok(None);
        };
        let config = read_scheduler(&beside)?;
        let zero_snr = Some(config.rescale_betas_zero_snr);
        Ok(Some((beside, config.prediction_type, zero_snr)))
    }

    /// The family that the caller names, checked against the file.
    fn checked_family(&self, predicts: Option<PredictionType>) -> Result<Option<Family>, Error> {
        let Some(family) = self.options.family else {
            return Ok(None);
        };
        let width = self.unet_config()?.cross_attention_dim;
        match family.contradiction(width, predicts) {
            None => Ok(Some(family)),
            Some(reason) => {
                Err(self.contradiction(format!("this is not {}: {reason}", family.name())))
            }
        }
    }

    /// The family of a model without a scheduler's configuration.
    fn guessed_family(
        &self,
        family: Option<Family>,
        predicts: Option<PredictionType>,
    ) -> Result<Family, Error> {
        if let Some(family) = family {
            return Ok(family);
        }
        if self.model.single_file().is_none() {
            return Err(self.contradiction(format!(
                "{SCHEDULER} is missing; copy it from the model that this one was made from, or name the family"
            )));
        }
        let width = self.unet_config()?.cross_attention_dim;
        Family::guess(width, predicts).ok_or_else(|| {
            self.contradiction(
                "the file does not say whether it is sd2.1-base, sd2.1 or sd-turbo: name the family, or a folder with its configurations"
                    .to_owned(),
            )
        })
    }

    /// Recognises a denoiser that is given as if it were a whole model.
    fn check_is_whole(&self) -> Result<(), Error> {
        let root = self.model.root();
        let is_denoiser = match self.model.single_file() {
            None => root.join("config.json").is_file() && !root.join(SCHEDULER).exists(),
            Some(_) => !self.model.has("text_encoder") && !self.model.has("vae"),
        };
        match is_denoiser && !self.model.has("text_encoder") {
            false => Ok(()),
            true => Err(self.contradiction(
                "a single network and not a whole model; to use it as the denoiser of another model, give it as that model's component `unet` (--unet)"
                    .to_owned(),
            )),
        }
    }

    /// Path of the denoiser's weights, or of the model.
    fn weights_path(&self) -> PathBuf {
        let files = self.model.weight_files(&self.options.denoiser);
        let first = files.into_iter().next();
        first.unwrap_or_else(|| self.model.root().to_owned())
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

    /// The tokenizer, if the text encoder has all its tokens and positions.
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

    /// Channels and side of the latents.
    fn latents(&self) -> Result<(usize, usize), Error> {
        let config = self.unet_config()?;
        let side = match self.model.config(&self.options.denoiser)? {
            Some(_) => config.sample_size,
            None => {
                let predicts = self.header_prediction()?;
                let family = self.guessed_family(self.checked_family(predicts)?, predicts)?;
                family.sample_size()
            }
        };
        Ok((config.in_channels, side))
    }
}

fn read_scheduler(path: &Path) -> Result<SchedulerConfig, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| swiftbrush_checkpoint::Error::read(path, error))?;
    SchedulerConfig::from_json(&text).map_err(|source| Error::Scheduler {
        path: path.to_owned(),
        source,
    })
}
