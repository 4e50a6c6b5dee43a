//! Checks before anything is loaded.

use swiftbrush_clip::TextConfig;
use swiftbrush_vae::{AutoencoderKlConfig, AutoencoderTinyConfig, Tiling};

use super::Loader;
use super::scheduler::SCHEDULER;
use crate::edit::{self, Edit};
use crate::source::check_strengths;
use crate::{DecoderKind, Error, Request, limits};

impl Loader {
    /// Components that [`Model::with_component`](swiftbrush_checkpoint::Model::with_component) can replace, besides the
    /// denoiser that the options name.
    pub const COMPONENTS: [&str; 6] = [
        "scheduler",
        "taesd",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ];

    /// Checks everything that does not need weights: the options, the device's kernels, the strengths of adapters, and
    /// that the parts match, since they can come from different models.
    ///
    /// # Errors
    ///
    /// If a part is missing or not supported, or parts or options contradict each other.
    pub fn check(&self) -> Result<(), Error> {
        self.options.check()?;
        swiftbrush_kernels::supports(&self.device)?;
        check_strengths(self.adapters.iter().map(|(_, strength)| *strength))?;
        self.check_replaced()?;
        self.check_is_whole()?;
        self.check_int8()?;
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

    /// Checks an edit before anything is loaded, like [`TextToImage::check_edit`](crate::TextToImage::check_edit)
    /// afterwards.
    ///
    /// # Errors
    ///
    /// Same as [`check`](Self::check), or if the edit contradicts itself or the model.
    pub fn check_edit(&self, edit: &Edit) -> Result<(), Error> {
        self.check()?;
        edit::check(edit, self.scale()?, self.width()?, || self.default_method())
    }

    /// Checks a request before anything is loaded, like [`TextToImage::check`](crate::TextToImage::check) afterwards.
    ///
    /// # Errors
    ///
    /// Same as [`check`](Self::check), or if the request contradicts itself or the model.
    pub fn check_request(&self, request: &Request) -> Result<(), Error> {
        self.check()?;
        let config = self.scheduler()?;
        self.denoising(&config)?
            .check(request, request.prompts.len())
    }

    /// Estimates the peak memory of the activations for a request in bytes, which occurs in the decoder. Weights are not
    /// included.
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

    /// Rejects a replacement for a component that no model has, which is a typing error.
    fn check_replaced(&self) -> Result<(), Error> {
        let is_known =
            |name: &str| name == self.options.denoiser || Self::COMPONENTS.contains(&name);
        match self.model.replaced().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(Error::Options(format!(
                "unknown component {name:?}; expected one of {}",
                Self::COMPONENTS.join(", ")
            ))),
        }
    }

    /// Rejects a denoiser that is passed as if it were a complete model.
    pub(super) fn check_is_whole(&self) -> Result<(), Error> {
        let root = self.model.root();
        let is_denoiser = match self.model.single_file() {
            None => {
                let model = &self.model;
                model.is_file(root.join("config.json")) && !model.exists(root.join(SCHEDULER))
            }
            Some(_) => !self.model.has("text_encoder") && !self.model.has("vae"),
        };
        match is_denoiser && !self.model.has("text_encoder") {
            false => Ok(()),
            true => Err(self.contradiction(
                "a single network and not a whole model; to use it as the denoiser of another model, give it as that model's component `unet`"
                    .to_owned(),
            )),
        }
    }
}
