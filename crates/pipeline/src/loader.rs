use std::ops::ControlFlow;

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{TextConfig, TextEncoder, Tokenizer};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_scheduler::{PredictionType, SchedulerConfig, TimestepSpacing};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::{
    AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig, Tiling,
};

use crate::decoder::Decoder;
use crate::text_to_image::{Brush, condition, paint};
use crate::{Error, Noise, Painting, Progress, Request, TextToImage};

/// Where the scheduler's configuration is in a model folder.
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Which autoencoder a model decodes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderKind {
    /// The full one, component `vae`.
    Kl,
    /// The tiny one, component `taesd`.
    Tiny,
}

/// The models of the family that come as one file, which does not say which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Stable Diffusion 1.x.
    #[serde(rename = "sd1.5")]
    Sd1,
    /// Stable Diffusion 2.x of 512 pixels, which predicts noise.
    #[serde(rename = "sd2.1-base")]
    Sd2Base,
    /// Stable Diffusion 2.x of 768 pixels, which predicts velocity.
    #[serde(rename = "sd2.1")]
    Sd2,
    /// SD-Turbo, which paints in one step.
    #[serde(rename = "sd-turbo")]
    SdTurbo,
}

impl Family {
    /// The scheduler that its folder on the hub names.
    pub fn scheduler(self) -> SchedulerConfig {
        let leading = SchedulerConfig {
            class_name: "PNDMScheduler".to_owned(),
            timestep_spacing: TimestepSpacing::Leading,
            ..SchedulerConfig::default()
        };
        match self {
            Self::Sd1 | Self::Sd2Base => leading,
            Self::Sd2 => SchedulerConfig {
                class_name: "DDIMScheduler".to_owned(),
                prediction_type: PredictionType::VPrediction,
                ..leading
            },
            Self::SdTurbo => SchedulerConfig::default(),
        }
    }

    /// Side of the latents that it was trained on.
    fn sample_size(self) -> usize {
        match self {
            Self::Sd2 => 96,
            Self::Sd1 | Self::Sd2Base | Self::SdTurbo => 64,
        }
    }
}

/// What is loaded of a model, and how.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use burn::tensor::{DType, Device};
/// use swiftbrush_pipeline::{DecoderKind, Loader, Model};
///
/// let pipeline = Loader::new(Model::open("sd-turbo")?, &Device::default())
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
    denoiser: String,
    dtype: DType,
    storage: Option<DType>,
    is_as_stored: bool,
    decoder: DecoderKind,
    tiling: Option<Tiling>,
    family: Option<Family>,
    adapters: Vec<(AdapterFile, f64)>,
}

impl Loader {
    /// All of a model in f32, with its full autoencoder.
    pub fn new(model: Model, device: &Device) -> Self {
        Self {
            model,
            device: device.clone(),
            denoiser: "unet".to_owned(),
            dtype: DType::F32,
            storage: None,
            is_as_stored: false,
            decoder: DecoderKind::Kl,
            tiling: None,
            family: None,
            adapters: Vec::new(),
        }
    }

    /// Computes in this element type. In f16 the full autoencoder still computes in f32, if its configuration says
    /// that half precision is too narrow for it (`force_upcast`).
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Keeps the denoiser's weights in this element type and converts them when they are used: half the memory for
    /// a little time.
    pub fn with_storage(mut self, storage: DType) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Keeps the denoiser's weights as the file has them while computing in f32, unless
    /// [`with_storage`](Self::with_storage) says otherwise: a file in half precision is not converted before the first
    /// picture, and no bit of it is another. On a CPU that costs no time; other backends convert every weight at each
    /// call. Adapters folded in would be rounded, so with any it does nothing.
    pub fn with_weights_as_stored(mut self) -> Self {
        self.is_as_stored = true;
        self
    }

    /// Takes another component than `unet` as the denoiser.
    pub fn with_denoiser(mut self, component: &str) -> Self {
        component.clone_into(&mut self.denoiser);
        self
    }

    /// Decodes with this autoencoder.
    pub fn with_decoder(mut self, decoder: DecoderKind) -> Self {
        self.decoder = decoder;
        self
    }

    /// Decodes in tiles, with the full autoencoder.
    pub fn with_tiling(mut self, tiling: Tiling) -> Self {
        self.tiling = Some(tiling);
        self
    }

    /// Says which model a single file is that does not say it.
    pub fn with_family(mut self, family: Family) -> Self {
        self.family = Some(family);
        self
    }

    /// Folds adapters in, times a strength; can be said again for more.
    pub fn with_adapters(mut self, adapters: AdapterFile, strength: f64) -> Self {
        self.adapters.push((adapters, strength));
        self
    }

    /// Loads everything.
    ///
    /// # Errors
    ///
    /// If a part is missing, damaged or not supported.
    pub fn load(&self) -> Result<TextToImage, Error> {
        self.check()?;
        let (scheduler, latents) = (self.scheduler()?, self.latents()?);
        // A vocabulary takes a core as long as the weights take the memory.
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| self.fitting_tokenizer());
            Ok(TextToImage {
                text_encoder: self.text_encoder()?,
                unet: self.unet()?,
                decoder: self.decoder()?,
                scheduler,
                latents,
                dtype: self.dtype,
                device: self.device.clone(),
                tokenizer: tokenizer
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            })
        })
    }

    /// Loads the networks one after the other, each when its turn comes, and frees it when it has done its part:
    /// memory is that of the largest and not of all, and every painting loads anew.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`TextToImage::generate_watched`].
    pub fn paint_in_turn(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Painting, Error> {
        self.check()?;
        let scheduler = self.scheduler()?;
        let brush = Brush {
            scheduler: &scheduler,
            latents: self.latents()?,
            scale: self.scale()?,
            dtype: self.dtype,
            device: &self.device,
        };
        brush.check(request)?;
        let start = brush.start(request, || self.decoder(), noise)?;
        let conditioning = {
            let (tokenizer, text_encoder) = (self.fitting_tokenizer()?, self.text_encoder()?);
            condition(&tokenizer, &text_encoder, request, &self.device)?
        };
        let latents = {
            let unet = self.unet()?;
            brush.latents(&unet, request, &conditioning, start, noise, watch)?
        };
        let images = paint(&self.decoder()?, &latents)?;
        Ok(conditioning.painting(latents, images))
    }

    /// The tokenizer alone.
    ///
    /// # Errors
    ///
    /// If it is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Ok(Tokenizer::from_model(&self.model, "tokenizer")?)
    }

    /// The text encoder alone.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn text_encoder(&self) -> Result<TextEncoder, Error> {
        let dtype = Some(self.dtype);
        let mut network =
            TextEncoder::from_model(&self.model, "text_encoder", dtype, &self.device)?;
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.text_encoder, *strength)?;
        }
        Ok(network)
    }

    /// The denoiser alone.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn unet(&self) -> Result<UNet, Error> {
        let is_as_stored =
            self.is_as_stored && self.dtype == DType::F32 && self.adapters.is_empty();
        let dtype = self.storage.or((!is_as_stored).then_some(self.dtype));
        let mut network = UNet::from_model(&self.model, &self.denoiser, dtype, &self.device)?;
        for (file, strength) in &self.adapters {
            network = fuse(network, &file.unet, *strength)?;
        }
        Ok(network)
    }

    /// The autoencoder alone.
    ///
    /// # Errors
    ///
    /// If it is missing, damaged or not supported.
    pub fn decoder(&self) -> Result<Decoder, Error> {
        if self.decoder == DecoderKind::Tiny {
            let dtype = Some(self.dtype);
            let tiny = AutoencoderTiny::from_model(&self.model, "taesd", dtype, &self.device)?;
            return Ok(Decoder::Tiny(tiny));
        }
        let is_narrow = self.dtype == DType::F16
            && AutoencoderKlConfig::from_model(&self.model, "vae")?.force_upcast;
        let dtype = Some(if is_narrow { DType::F32 } else { self.dtype });
        let vae = AutoencoderKl::from_model(&self.model, "vae", dtype, &self.device)?;
        Ok(match self.tiling {
            None => Decoder::Kl(vae),
            Some(tiling) => Decoder::Tiled(vae, tiling),
        })
    }

    /// How many pixels a latent stands for, along each axis; 8 for Stable Diffusion.
    ///
    /// # Errors
    ///
    /// If the autoencoder's configuration cannot be used.
    pub fn scale(&self) -> Result<usize, Error> {
        let levels = match self.decoder {
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

    /// Side in pixels of the pictures that the model was trained on.
    ///
    /// # Errors
    ///
    /// If a configuration cannot be used.
    pub fn side(&self) -> Result<usize, Error> {
        let (_, side) = self.latents()?;
        Ok(side * self.scale()?)
    }

    /// Whether the parts fit one another, which they need not when some come from elsewhere.
    fn check(&self) -> Result<(), Error> {
        let unet = UNetConfig::from_model(&self.model, &self.denoiser)?;
        let text = TextConfig::from_model(&self.model, "text_encoder")?;
        let latents = match self.decoder {
            DecoderKind::Kl => AutoencoderKlConfig::from_model(&self.model, "vae")?.latent_channels,
            DecoderKind::Tiny => {
                AutoencoderTinyConfig::from_model(&self.model, "taesd")?.latent_channels
            }
        };
        let (channels, outputs) = (unet.in_channels, unet.out_channels);
        if channels != outputs {
            return Err(self.contradiction(&format!(
                "the denoiser takes {channels} channels and gives {outputs}: models for inpainting or with depth are not supported"
            )));
        }
        if channels != latents {
            return Err(self.contradiction(&format!(
                "the denoiser has latents of {channels} channels, the autoencoder of {latents}"
            )));
        }
        let (context, states) = (unet.cross_attention_dim, text.hidden_size);
        if context != states {
            return Err(self.contradiction(&format!(
                "the denoiser takes states {context} wide, the text encoder gives {states}"
            )));
        }
        Ok(())
    }

    /// The tokenizer, if the text encoder knows all its tokens.
    fn fitting_tokenizer(&self) -> Result<Tokenizer, Error> {
        let tokenizer = self.tokenizer()?;
        let config = TextConfig::from_model(&self.model, "text_encoder")?;
        let (words, places) = (config.vocab_size, config.max_position_embeddings);
        if tokenizer.vocabulary() > words || tokenizer.length() > places {
            return Err(self.contradiction(&format!(
                "the tokenizer has {} tokens and prompts of {}, the text encoder takes {words} and {places}",
                tokenizer.vocabulary(),
                tokenizer.length()
            )));
        }
        Ok(tokenizer)
    }

    fn contradiction(&self, reason: &str) -> Error {
        Error::Model {
            path: self.model.root().to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Channels and side of the latents.
    fn latents(&self) -> Result<(usize, usize), Error> {
        let config = UNetConfig::from_model(&self.model, &self.denoiser)?;
        let side = match self.model.config(&self.denoiser)? {
            Some(_) => config.sample_size,
            None => self.family()?.sample_size(),
        };
        Ok((config.in_channels, side))
    }

    /// The noise schedule's configuration.
    ///
    /// # Errors
    ///
    /// If it is missing, asks for what is not supported, or a single file does not say which model it is.
    pub fn scheduler(&self) -> Result<SchedulerConfig, Error> {
        let path = self.model.path(SCHEDULER);
        let Some(path) = path.filter(|path| path.is_file()) else {
            return Ok(self.family()?.scheduler());
        };
        let text =
            std::fs::read_to_string(&path).map_err(|source| swiftbrush_checkpoint::Error::Io {
                action: "read",
                path: path.clone(),
                source,
            })?;
        SchedulerConfig::from_json(&text).map_err(|source| Error::Scheduler { path, source })
    }

    /// Which model a single file is: what was said, what its header says, or what its shapes tell.
    fn family(&self) -> Result<Family, Error> {
        const PREDICTS: &str = "modelspec.prediction_type";
        const WIDTH_OF_1: usize = 768;
        if let Some(family) = self.family {
            return Ok(family);
        }
        let config = UNetConfig::from_model(&self.model, &self.denoiser)?;
        if config.cross_attention_dim == WIDTH_OF_1 {
            return Ok(Family::Sd1);
        }
        let header = self
            .model
            .single_file()
            .map(swiftbrush_checkpoint::Weights::metadata);
        match header
            .and_then(|header| header.get(PREDICTS))
            .map(String::as_str)
        {
            Some("v") => Ok(Family::Sd2),
            _ => Err(Error::Request(format!(
                "{} does not say whether it is sd2.1-base, sd2.1 or sd-turbo: name the family, or a folder with its configurations",
                self.model.root().display()
            ))),
        }
    }
}
