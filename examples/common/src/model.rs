//! What programs that paint are told of models and methods on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Device};
use clap::Args;
use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{DecoderKind, Family, Loader, Method, Rng, Source};

use crate::{Wanted, find, miniature, named};

/// A model and where it computes.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A model: a folder in the layout of diffusers, one file (.safetensors, .ckpt), or a name on the Hugging Face hub
    /// (stabilityai/sd-turbo) [default: the miniature].
    #[arg(long)]
    pub model: Option<String>,
    /// For a model in one file: a folder with the configurations, tokenizer and scheduler of its like.
    #[arg(long)]
    pub configs: Option<PathBuf>,
    /// For a model in one file that does not say it: sd1.5, sd2.1-base, sd2.1 or sd-turbo.
    #[arg(long, value_parser = named::<Family>)]
    pub family: Option<Family>,
    /// Another denoiser: a component of the model such as "teacher", or a file, a folder, or a name on the hub.
    #[arg(long, default_value = "unet")]
    pub unet: String,
    /// A component from elsewhere, such as vae=DIR or taesd=madebyollin/taesd; can be given again.
    #[arg(long, value_name = "NAME=PATH")]
    pub component: Vec<String>,
    /// Prefers weights with this in their file names, such as fp16.
    #[arg(long)]
    pub variant: Option<String>,
    /// Which decoder makes the picture: kl, or tiny, which is the component taesd.
    #[arg(long, default_value = "kl", value_parser = named::<DecoderKind>)]
    pub vae: DecoderKind,
    /// Decodes in tiles, for large pictures.
    #[arg(long)]
    pub tiled: bool,
    /// A file of adapters (PEFT, diffusers, kohya), here or on the hub (owner/name/file), FILE or FILE=weight; can be
    /// given again.
    #[arg(long)]
    pub lora: Vec<String>,
    /// Where to compute.
    #[arg(long, default_value = crate::DEVICES[0])]
    pub device: String,
    /// Precision of the arithmetic: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// Precision in which the denoiser's weights are kept [default: on the CPU that of the file, elsewhere that of the
    /// arithmetic].
    #[arg(long, value_parser = dtype)]
    pub storage: Option<DType>,
}

impl ModelArgs {
    /// The device, which can compute in the types that are asked for.
    pub fn device(&self) -> Result<Device> {
        let device = crate::device(&self.device)?;
        for dtype in [self.dtype, self.storage.unwrap_or(self.dtype)] {
            ensure!(
                device.supports_dtype(dtype),
                "--device {} cannot compute in {dtype:?}",
                self.device
            );
        }
        Ok(device)
    }

    /// What loads a source on a device of this build, in the way that is best there.
    pub fn loader(source: &Source, device: &Device) -> Result<Loader> {
        let loader = source.loader(device)?;
        #[cfg(feature = "flex")]
        if *device == Device::flex() {
            return Ok(loader.with_weights_as_stored());
        }
        Ok(loader)
    }

    /// Finds everything, on the hub if it is not here.
    pub fn source(&self) -> Result<Source> {
        let is_elsewhere = |name: &str| {
            let mut names = self
                .component
                .iter()
                .filter_map(|component| component.split_once('='));
            names.any(|(component, _)| component == name)
        };
        let decoder = match self.vae {
            DecoderKind::Kl => "vae",
            DecoderKind::Tiny => "taesd",
        };
        let components: Vec<_> = ["unet", "text_encoder", decoder]
            .into_iter()
            .filter(|component| !is_elsewhere(component))
            .collect();
        let wanted = Wanted::Model(&components, self.variant.as_deref());
        let mut source = Source::new(match &self.model {
            Some(model) => find(model, wanted)?,
            None => miniature(),
        });
        source.configs.clone_from(&self.configs);
        source.variant.clone_from(&self.variant);
        source.family = self.family;
        for component in &self.component {
            let (name, path) = component
                .split_once('=')
                .with_context(|| format!("--component {component}: expected NAME=PATH"))?;
            let path = find(path, Wanted::Component)?;
            source.components.insert(name.to_owned(), path);
        }
        // A name of a component, or else of something elsewhere.
        if self.unet == source.denoiser || source.model.join(&self.unet).is_dir() {
            source.denoiser.clone_from(&self.unet);
        } else {
            let path = find(&self.unet, Wanted::Component)?;
            source.components.insert(source.denoiser.clone(), path);
        }
        source.dtype = self.dtype;
        source.storage = self.storage;
        source.decoder = self.vae;
        source.tiling = self.tiled.then(Tiling::default);
        for lora in &self.lora {
            let (file, weight) = match lora.rsplit_once('=') {
                Some((file, weight)) => (
                    file,
                    weight.parse().with_context(|| format!("--lora {lora}"))?,
                ),
                None => (lora.as_str(), 1.0),
            };
            source
                .adapters
                .push((find(file, Wanted::Component)?, weight));
        }
        Ok(source)
    }
}

/// How it paints.
#[derive(Debug, Args)]
pub struct MethodArgs {
    /// Whose numbers a seed stands for: native ones; PyTorch's on the cpu (diffusers with a generator there, ComfyUI) or on
    /// cuda (AUTOMATIC1111's interface), with which pictures of other programs can be painted again.
    #[arg(long, default_value = "native", value_parser = named::<Rng>)]
    pub rng: Rng,
    /// How latents are made of noise: one-step (SwiftBrush's rule), ddim, euler, euler-ancestral, dpm-solver, pndm or lcm
    /// [default: what fits the model].
    #[arg(long, value_parser = sampler)]
    pub sampler: Option<SamplerName>,
    /// Steps of the other samplers.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Scale of classifier-free guidance; 1 is none.
    #[arg(long, default_value_t = 1.0)]
    pub guidance: f64,
    /// What to paint the opposite of, with guidance.
    #[arg(long, default_value = "")]
    pub negative_prompt: String,
    /// Width and height in pixels, such as 768x512 [default: what the model was trained on].
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
}

impl MethodArgs {
    /// What is asked for, or fits the model.
    pub fn method(&self, default: Method) -> Result<Method> {
        const STEPS: usize = 25;
        let kind = match self.sampler {
            Some(SamplerName::OneStep) => None,
            Some(SamplerName::Kind(kind)) => Some(kind),
            None => match (default, self.steps) {
                (method, None) => return Ok(method),
                (Method::OneStep, Some(_)) => Some(SamplerKind::Ddim),
                (Method::Sampler(kind, _), Some(_)) => Some(kind),
            },
        };
        match (kind, self.steps) {
            (None, None | Some(1)) => Ok(Method::OneStep),
            (None, Some(steps)) => bail!("--sampler one-step takes one step, not {steps}"),
            (Some(kind), steps) => Ok(Method::Sampler(kind, steps.unwrap_or(STEPS))),
        }
    }
}

/// SwiftBrush's rule, or a sampler.
#[derive(Clone, Copy, Debug)]
pub enum SamplerName {
    OneStep,
    Kind(SamplerKind),
}

fn sampler(text: &str) -> Result<SamplerName, String> {
    match text {
        "one-step" => Ok(SamplerName::OneStep),
        _ => named(text)
            .map(SamplerName::Kind)
            .map_err(|error| format!("{error}, or `one-step`")),
    }
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32, f16 or bf16".to_owned()),
    }
}

/// Height and width of "WIDTHxHEIGHT".
fn size(text: &str) -> Result<[usize; 2], String> {
    let size = text
        .split_once('x')
        .and_then(|(width, height)| Some([height.parse().ok()?, width.parse().ok()?]));
    size.ok_or_else(|| "expected WIDTHxHEIGHT, such as 768x512".to_owned())
}
