//! The command-line arguments of programs that generate images: the model, and the method.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Device};
use clap::Args;
use swiftbrush_pipeline::scheduler::{SamplerKind, TimestepSpacing};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    DecoderKind, Error, Family, LoadOptions, Loader, Method, NegativeMethod, Request, Rng, Source,
};

use crate::{Wanted, adapter, find, miniature, named};

/// The model and the device.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Model: a folder in diffusers' layout, a single file (.safetensors, .ckpt), or a name on the Hugging Face
    /// hub such as stabilityai/sd-turbo [default: the miniature].
    #[arg(long)]
    pub model: Option<String>,
    /// Folder with the configurations, tokenizer and scheduler for a single-file model.
    #[arg(long)]
    pub configs: Option<PathBuf>,
    /// Family of a single-file model that does not identify it: sd1.5, sd2.1-base, sd2.1 or sd-turbo.
    #[arg(long, value_parser = named::<Family>)]
    pub family: Option<Family>,
    /// Denoiser: a component of the model such as "teacher", or a file, a folder, or a name on the hub.
    #[arg(long, default_value = "unet")]
    pub unet: String,
    /// Replaces a component, such as vae=DIR or taesd=madebyollin/taesd; repeatable.
    #[arg(long, value_name = "NAME=PATH")]
    pub component: Vec<String>,
    /// Preferred variant of the weight files, such as fp16.
    #[arg(long)]
    pub variant: Option<String>,
    /// Autoencoder: kl (component vae), or tiny (component taesd).
    #[arg(long, default_value = "kl", value_parser = named::<DecoderKind>)]
    pub vae: DecoderKind,
    /// Encodes and decodes in tiles of 512 pixels, which needs less memory for large images.
    #[arg(long)]
    pub tiled: bool,
    /// Adapter file (PEFT, diffusers, kohya), local or on the hub (owner/name/file), as FILE or FILE=WEIGHT;
    /// repeatable.
    #[arg(long)]
    pub lora: Vec<String>,
    /// Device to compute on.
    #[arg(long, default_value = crate::DEVICES[0])]
    pub device: String,
    /// Element type of the arithmetic: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// Element type in which the denoiser's weights are stored [default: that of the file on the CPU, that of the
    /// arithmetic elsewhere].
    #[arg(long, value_parser = dtype)]
    pub storage: Option<DType>,
    /// Precision of the denoiser's and the text encoder's weights: int8 quantises them while loading, on the CPU
    /// [default: that of the file].
    #[arg(long, value_parser = precision)]
    pub precision: Option<Precision>,
}

/// A precision of weights, besides element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Eight bits, and a scale for each output of a layer.
    Int8,
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "int8" => Ok(Precision::Int8),
        _ => Err("expected int8; --dtype and --storage select element types".to_owned()),
    }
}

impl ModelArgs {
    /// The device, which must support the element types.
    pub fn device(&self) -> Result<Device> {
        let device = crate::device(&self.device)?;
        for dtype in [self.dtype, self.storage.unwrap_or(self.dtype)] {
            ensure!(
                device.supports_dtype(dtype),
                "--device {} does not support {dtype:?}",
                self.device
            );
        }
        Ok(device)
    }

    /// The loader of a source, with the fastest storage type for the device.
    pub fn loader(source: &Source, device: &Device) -> Result<Loader> {
        let loader = source.loader(device)?;
        #[cfg(feature = "flex")]
        if *device == Device::flex() {
            return Ok(loader.with_weights_as_stored());
        }
        Ok(loader)
    }

    /// The options of the loader.
    pub fn options(&self) -> Result<LoadOptions> {
        let mut options = LoadOptions::default();
        options.dtype = self.dtype;
        options.storage = self.storage;
        options.int8 = self.precision == Some(Precision::Int8);
        options.decoder = self.vae;
        options.family = self.family;
        options.tiling = self.tiled.then(Tiling::default);
        options.check()?;
        Ok(options)
    }

    /// Finds all files, downloading those that are only on the hub.
    pub fn source(&self) -> Result<Source> {
        let options = self.options()?;
        let is_elsewhere = |name: &str| {
            let mut names = self
                .component
                .iter()
                .filter_map(|component| component.split_once('='));
            names.any(|(component, _)| component == name)
        };
        let components: Vec<_> = ["unet", "text_encoder", self.vae.component()]
            .into_iter()
            .filter(|component| !is_elsewhere(component))
            .collect();
        let wanted = Wanted::Model(&components, self.variant.as_deref());
        let mut source = Source::new(match &self.model {
            Some(model) => find(model, wanted)?,
            None => miniature(),
        });
        source.options = options;
        if let Some(variant) = &self.variant {
            adapter::check_variant(&source.model, variant)?;
        }
        source.configs.clone_from(&self.configs);
        source.variant.clone_from(&self.variant);
        for component in &self.component {
            let (name, path) = component
                .split_once('=')
                .with_context(|| format!("--component {component}: expected NAME=PATH"))?;
            adapter::check_component(name, &self.unet)?;
            let path = find(path, Wanted::Component)?;
            source.components.insert(name.to_owned(), path);
        }
        // The name of a component, or a path.
        let denoiser = &mut source.options.denoiser;
        if self.unet == *denoiser || source.model.join(&self.unet).is_dir() {
            denoiser.clone_from(&self.unet);
        } else {
            let path = find(&self.unet, Wanted::Component)?;
            source.components.insert(denoiser.clone(), path);
        }
        for lora in &self.lora {
            let (file, weight) = adapter::with_weight(lora)?;
            let file = adapter::in_folder(find(file, Wanted::Component)?)?;
            source.adapters.push((file, weight));
        }
        Ok(source)
    }
}

/// The method of generation.
#[derive(Debug, Args)]
pub struct MethodArgs {
    /// Random number generator for the seeds: native, or PyTorch's on the cpu (diffusers with a CPU generator, ComfyUI) or
    /// on cuda (AUTOMATIC1111's web UI), which reproduces the images of those programs.
    #[arg(long, default_value = "native", value_parser = named::<Rng>)]
    pub rng: Rng,
    /// Sampler: one-step (SwiftBrush's rule), ddim, euler, euler-ancestral, dpm-solver, pndm or lcm [default: that of
    /// the model's scheduler].
    #[arg(long, value_parser = sampler)]
    pub sampler: Option<SamplerName>,
    /// Number of sampling steps [default: the model's without --sampler, else 25, or 4 for lcm].
    #[arg(long)]
    pub steps: Option<usize>,
    /// Spacing of the sampler's timesteps: leading, linspace or trailing [default: that of the model's scheduler, or of
    /// the sampler's diffusers class if the file does not set it].
    #[arg(long, value_parser = named::<TimestepSpacing>)]
    pub spacing: Option<TimestepSpacing>,
    /// Scale of classifier-free guidance; values up to 1 turn it off, as in diffusers.
    #[arg(long, default_value_t = 1.0)]
    pub guidance: f64,
    /// Negative prompt.
    #[arg(long, default_value = "")]
    pub negative_prompt: String,
    /// Method of the negative prompt: guidance (needs --guidance above 1; twice the network calls), or nasa or nag, which act in
    /// the cross-attention of a single call [default: guidance where it is above 1, else nasa for images of one call].
    #[arg(long, requires = "negative_prompt")]
    pub negative_method: Option<NegativeName>,
    /// Strength of nasa or nag, 0 for none [default: 0.2 for nasa, 2 for nag].
    #[arg(long, requires = "negative_prompt")]
    pub negative_scale: Option<f64>,
    /// Width and height in pixels, such as 768x512 [default: the size that the model was trained on].
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
}

impl MethodArgs {
    /// The request without prompts. `default` is the model's own method, and `strength` that of image to image, which
    /// increases default step counts so that at least one step is taken.
    pub fn request(
        &self,
        default: Result<Method, Error>,
        strength: Option<f64>,
    ) -> Result<Request> {
        let mut method = self.method(default)?;
        if let (Some(strength), None) = (strength, self.steps) {
            method = method.with_a_step_at(strength);
        }
        let mut request = Request::new(Vec::<String>::new())
            .with_negative_prompt(&self.negative_prompt)
            .with_method(method)
            .with_guidance(self.guidance);
        request.negative_method = self.negative_method(method, strength.unwrap_or(1.0))?;
        request.spacing = self.spacing;
        request.size = self.size;
        Ok(request)
    }

    /// The method that applies the negative prompt without guidance, given the method of generation and the strength of the start
    /// image (1 from noise).
    pub fn negative_method(&self, method: Method, strength: f64) -> Result<Option<NegativeMethod>> {
        let is_guided = self.guidance > 1.0;
        let method = match self.negative_method {
            Some(NegativeName::Nasa) => Some(NegativeMethod::NASA),
            Some(NegativeName::Nag) => Some(NegativeMethod::NAG),
            Some(NegativeName::Guidance) => {
                ensure!(
                    is_guided,
                    "--negative-method guidance needs --guidance above 1, found {}",
                    self.guidance
                );
                None
            }
            None if is_guided || self.negative_prompt.is_empty() => None,
            None => method.is_one_call(strength).then_some(NegativeMethod::NASA),
        };
        ensure!(
            method.is_some() || self.negative_scale.is_none(),
            "--negative-scale is the strength of nasa or nag: choose one with --negative-method, or set only --guidance"
        );
        Ok(method.map(|method| match self.negative_scale {
            Some(scale) => method.with_scale(scale),
            None => method,
        }))
    }

    /// The method selected by the arguments; `default` is the model's own.
    fn method(&self, default: Result<Method, Error>) -> Result<Method> {
        let kind = match (self.sampler, self.steps) {
            (Some(SamplerName::OneStep), None | Some(1)) => return Ok(Method::OneStep),
            (Some(SamplerName::OneStep), Some(steps)) => {
                bail!("--sampler one-step takes one step, not {steps}")
            }
            (Some(SamplerName::Kind(kind)), _) => kind,
            (None, None) => return Ok(default?),
            (None, Some(_)) => match default? {
                Method::OneStep => SamplerKind::Ddim,
                Method::Sampler(kind, _) => kind,
            },
        };
        let steps = self.steps.unwrap_or(kind.default_steps());
        Ok(Method::Sampler(kind, steps))
    }
}

/// A method of applying a negative prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NegativeName {
    /// Classifier-free guidance.
    Guidance,
    /// Negative-away steer attention.
    Nasa,
    /// Normalized attention guidance.
    Nag,
}

/// SwiftBrush's rule, or a sampler.
#[derive(Clone, Copy, Debug)]
pub enum SamplerName {
    /// SwiftBrush's rule.
    OneStep,
    /// A sampler.
    Kind(SamplerKind),
}

fn sampler(text: &str) -> Result<SamplerName, String> {
    let kind = SamplerKind::ALL
        .into_iter()
        .find(|kind| kind.name() == text);
    match (text, kind) {
        ("one-step", _) => Ok(SamplerName::OneStep),
        (_, Some(kind)) => Ok(SamplerName::Kind(kind)),
        (_, None) => {
            let names = SamplerKind::ALL.map(SamplerKind::name).join(", ");
            Err(format!("expected one-step, {names}"))
        }
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

/// Parses height and width from "WIDTHxHEIGHT".
fn size(text: &str) -> Result<[usize; 2], String> {
    let size = text
        .split_once('x')
        .and_then(|(width, height)| Some([height.parse().ok()?, width.parse().ok()?]));
    size.ok_or_else(|| "expected WIDTHxHEIGHT, such as 768x512".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        method: MethodArgs,
    }

    fn request(
        arguments: &[&str],
        default: Result<Method, Error>,
        strength: Option<f64>,
    ) -> Result<Request> {
        let arguments = ["program"].iter().chain(arguments);
        let program = Program::try_parse_from(arguments)?;
        program.method.request(default, strength)
    }

    #[test]
    fn the_method_is_the_models_unless_an_argument_says_otherwise() -> Result<()> {
        let turbo = Method::Sampler(SamplerKind::Euler, 1);
        for (arguments, default, expected) in [
            (&[][..], turbo, turbo),
            (
                &["--steps", "4"],
                turbo,
                Method::Sampler(SamplerKind::Euler, 4),
            ),
            (
                &["--steps", "4"],
                Method::OneStep,
                Method::Sampler(SamplerKind::Ddim, 4),
            ),
            (
                &["--sampler", "lcm"],
                turbo,
                Method::Sampler(SamplerKind::Lcm, 4),
            ),
            (
                &["--sampler", "pndm"],
                turbo,
                Method::Sampler(SamplerKind::Pndm, 25),
            ),
            (&["--sampler", "one-step"], turbo, Method::OneStep),
        ] {
            let found = request(arguments, Ok(default), None)?.method;
            assert_eq!(found, expected, "{arguments:?}");
        }
        assert!(request(&["--sampler", "one-step", "--steps", "2"], Ok(turbo), None).is_err());
        let unknown = request(&["--sampler", "heun"], Ok(turbo), None);
        let error = unknown.expect_err("there is none").to_string();
        assert!(error.contains("one-step, ddim, euler"), "{error}");
        Ok(())
    }

    #[test]
    fn image_to_image_takes_a_step_by_default() -> Result<()> {
        let turbo = Method::Sampler(SamplerKind::Euler, 1);
        let steps = |arguments: &[&str]| Ok(request(arguments, Ok(turbo), Some(0.8))?.method);
        let found: Result<_> = steps(&[]);
        assert_eq!(found?, Method::Sampler(SamplerKind::Euler, 2));
        let asked: Result<_> = steps(&["--steps", "1"]);
        assert_eq!(asked?, turbo, "which the library rejects");
        Ok(())
    }

    #[test]
    fn one_call_applies_a_negative_prompt_by_nasa() -> Result<()> {
        let turbo = Method::Sampler(SamplerKind::Euler, 1);
        let negative = |arguments: &[&str], strength| {
            let prompt = [&["--negative-prompt", "blurry"], arguments].concat();
            Ok(request(&prompt, Ok(turbo), strength)?.negative_method)
        };
        let (nasa, nag) = (NegativeMethod::NASA, NegativeMethod::NAG);
        for (arguments, strength, expected) in [
            (&[][..], None, Some(nasa)),
            (&[], Some(0.6), Some(nasa)),
            (
                &["--negative-scale", "0.5"],
                None,
                Some(nasa.with_scale(0.5)),
            ),
            (&["--negative-method", "nag"], None, Some(nag)),
            (
                &[
                    "--negative-method",
                    "nag",
                    "--negative-scale",
                    "3",
                    "--steps",
                    "4",
                ],
                None,
                Some(nag.with_scale(3.0)),
            ),
            (&["--guidance", "2"], None, None),
            (
                &["--guidance", "2", "--negative-method", "guidance"],
                None,
                None,
            ),
            (&["--steps", "4"], None, None),
        ] {
            let found: Result<_> = negative(arguments, strength);
            assert_eq!(found?, expected, "{arguments:?}");
        }
        for (arguments, part) in [
            (&["--negative-method", "guidance"][..], "--guidance above 1"),
            (
                &["--steps", "4", "--negative-scale", "1"],
                "choose one with",
            ),
            (
                &["--guidance", "2", "--negative-scale", "1"],
                "choose one with",
            ),
        ] {
            let found: Result<_> = negative(arguments, None);
            let error = found.expect_err("it is contradictory").to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(request(&[], Ok(turbo), None)?.negative_method, None);
        assert!(request(&["--negative-scale", "1"], Ok(turbo), None).is_err());
        Ok(())
    }

    #[test]
    fn a_model_without_a_default_method_needs_a_sampler() -> Result<()> {
        let unknown = || Err(Error::Request("unknown scheduler class".to_owned()));
        assert!(request(&[], unknown(), None).is_err());
        let method = request(&["--sampler", "ddim"], unknown(), None)?.method;
        assert_eq!(method, Method::Sampler(SamplerKind::Ddim, 25));
        let spaced = request(
            &["--sampler", "ddim", "--spacing", "trailing"],
            unknown(),
            None,
        )?;
        assert_eq!(spaced.spacing, Some(TimestepSpacing::Trailing));
        Ok(())
    }
}
