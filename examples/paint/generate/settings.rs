//! Method, size and start image, checked against a model's configuration before its weights are loaded.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Tensor};
use image::RgbImage;
use swiftbrush_checkpoint::sha256;
use swiftbrush_images::{MAX_PIXELS, fit, round_down};
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::vae::AutoencoderKlConfig;
use swiftbrush_pipeline::{DecoderKind, Loader, Method, Request, Source, StartRecord};

use crate::Args;
use crate::jobs::Job;

/// Settings of a run.
pub(crate) struct Settings {
    /// The request without prompts and start image.
    pub(crate) request: Request,
    pub(crate) scheduler: SchedulerConfig,
    /// Height and width in pixels.
    pub(crate) size: [usize; 2],
    pub(crate) start: Option<StartImage>,
}

/// A start image of the right size.
pub(crate) struct StartImage {
    pub(crate) image: RgbImage,
    pub(crate) record: StartRecord,
}

impl Settings {
    /// - image: the original start image
    /// - noise: noise from a file
    pub(crate) fn new(
        args: &Args,
        loader: &Loader,
        source: &Source,
        image: Option<RgbImage>,
        noise: Option<&Tensor<4>>,
    ) -> Result<Self> {
        let scheduler = loader.scheduler()?;
        let mut request = args.method.request(loader.default_method(), None)?;
        request.method = with_steps_for_strength(args, request.method)?;
        let strength = args.image.as_ref().map_or(1.0, |_| args.strength);
        request.negative_method = args.method.negative_method(request.method, strength)?;
        check_steps(request.method, &scheduler)?;
        let scale = loader.scale()?;
        let start = match (image, &args.image) {
            (Some(image), Some(file)) => Some(StartImage {
                image: fitted(&image, args.method.size, scale)?,
                record: StartRecord {
                    file: file.clone(),
                    sha256: sha256(file)?,
                    strength: args.strength,
                },
            }),
            _ => None,
        };
        let size = match (&start, noise, args.method.size) {
            (_, _, Some(size)) => size,
            (Some(start), _, None) => {
                [start.image.height(), start.image.width()].map(|side| side as usize)
            }
            (None, Some(noise), None) => {
                let [_, _, height, width] = noise.dims();
                [height, width].map(|side| side * scale)
            }
            (None, None, None) => [loader.side()?; 2],
        };
        check_size(size, scale, args.enlarge)?;
        check_memory(size, source, memory())?;
        let [height, width] = size;
        let whole = request.clone().with_prompts([""]).with_size(width, height);
        loader.check_request(&whole)?;
        Ok(Self {
            request,
            scheduler,
            size,
            start,
        })
    }

    /// Describes everything that determines the pictures, in one line.
    pub(crate) fn describe(&self, args: &Args, source: &Source, jobs: &[Job]) -> String {
        let options = &source.options;
        let mut parts = Vec::new();
        match self.request.method {
            Method::OneStep => parts.push("sampler one-step, 1 step".to_owned()),
            Method::Sampler(kind, steps) => {
                let name = name(kind);
                let plural = if steps == 1 { "" } else { "s" };
                parts.push(format!("sampler {name}, {steps} step{plural}"));
                parts.push(format!("{} spacing", name_of_spacing(self.spacing(kind))));
            }
        }
        if let Some(StartImage { record, .. }) = &self.start {
            let taken = match self.request.method {
                Method::OneStep => String::new(),
                Method::Sampler(_, steps) => {
                    format!(
                        " ({} of {steps} steps)",
                        steps_taken(steps, record.strength)
                    )
                }
            };
            let (file, strength) = (record.file.display(), record.strength);
            parts.push(format!("from {file} with strength {strength}{taken}"));
        }
        parts.push(format!("guidance {}", args.method.guidance));
        if let Some(method) = self.request.negative_method {
            parts.push(format!("negative prompt by {method}"));
        }
        let [height, width] = self.size;
        parts.push(format!("{width}x{height}"));
        parts.push(match (&args.noise, jobs) {
            (Some(noise), _) => format!("noise of {}", noise.display()),
            (None, [job]) => format!("seed {}", job.seed),
            (None, [first, .., last]) => format!("seeds {} to {}", first.seed, last.seed),
            (None, []) => "no pictures".to_owned(),
        });
        if args.noise.is_none() {
            parts.push(format!("{} noise", name(args.method.rng)));
        }
        parts.push(format!(
            "on {} in {}",
            args.model.device,
            options.dtype.name()
        ));
        if let Some(storage) = options.storage.filter(|storage| *storage != options.dtype) {
            parts.push(format!("weights in {}", storage.name()));
        }
        parts.join(", ")
    }

    /// The spacing of timesteps that a sampler uses.
    fn spacing(&self, kind: SamplerKind) -> TimestepSpacing {
        let own = self.scheduler.for_sampler(kind);
        let own = own.map_or(self.scheduler.timestep_spacing, |config| {
            config.timestep_spacing
        });
        self.request.spacing.unwrap_or(own)
    }
}

/// The name of a value in configuration files.
fn name(value: impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or("?").to_owned()
}

fn name_of_spacing(spacing: TimestepSpacing) -> &'static str {
    match spacing {
        TimestepSpacing::Leading => "leading",
        TimestepSpacing::Trailing => "trailing",
        TimestepSpacing::Linspace => "linspace",
    }
}

/// Number of steps that remain from a start image, counted as in diffusers.
fn steps_taken(steps: usize, strength: f64) -> usize {
    ((steps as f64 * strength) as usize).min(steps)
}

/// Ensures that at least one step remains from a start image, by increasing the number of steps if it is not given.
pub(crate) fn with_steps_for_strength(args: &Args, method: Method) -> Result<Method> {
    let strength = args.strength;
    let (Some(_), Method::Sampler(kind, steps)) = (&args.image, method) else {
        return Ok(method);
    };
    if steps_taken(steps, strength) > 0 {
        return Ok(method);
    }
    ensure!(
        strength > 0.0,
        "--strength 0 returns the picture unchanged; expected more than 0"
    );
    ensure!(
        args.method.steps.is_none(),
        "--strength {strength} of --steps {steps} leaves no step; expected at least {} steps",
        (1.0 / strength).ceil()
    );
    let enough = (steps..).find(|steps| steps_taken(*steps, strength) > 0);
    Ok(Method::Sampler(kind, enough.unwrap_or(steps)))
}

fn check_steps(method: Method, scheduler: &SchedulerConfig) -> Result<()> {
    if let Method::Sampler(kind, steps) = method {
        let most = kind.max_steps(scheduler);
        ensure!(
            (1..=most).contains(&steps),
            "--steps {steps}: expected 1 to {most} for the sampler {}",
            name(kind)
        );
    }
    Ok(())
}

/// Fits the start image as in diffusers: resized and cropped to `--size`, or rounded down to multiples of `scale`.
fn fitted(image: &RgbImage, size: Option<[usize; 2]>, scale: usize) -> Result<RgbImage> {
    if let Some([height, width]) = size {
        check_size([height, width], scale, 1)?;
        return Ok(fit(image, width as u32, height as u32, scale as u32));
    }
    let (width, height) = image.dimensions();
    let fitted = round_down(image, scale as u32).with_context(|| {
        format!("--image of {width}x{height}: expected at least {scale} pixels per side")
    })?;
    if fitted.dimensions() != (width, height) {
        let (new_width, new_height) = fitted.dimensions();
        eprintln!(
            "the start image of {width}x{height} is resized to {new_width}x{new_height}, multiples of {scale}"
        );
    }
    Ok(fitted)
}

fn check_size([height, width]: [usize; 2], scale: usize, enlarge: u32) -> Result<()> {
    let fits = |side: usize| side > 0 && side.is_multiple_of(scale);
    let down = |side: usize| (side - side % scale).max(scale);
    ensure!(
        fits(height) && fits(width),
        "--size {width}x{height}: expected multiples of {scale}, such as {}x{}",
        down(width),
        down(height)
    );
    let pixels = (width as u128) * (height as u128) * u128::from(enlarge).pow(2);
    ensure!(
        pixels <= u128::from(MAX_PIXELS),
        "--size {width}x{height}{}: {pixels} pixels; at most {MAX_PIXELS} are supported",
        if enlarge > 1 {
            format!(" with --enlarge {enlarge}")
        } else {
            String::new()
        }
    );
    Ok(())
}

/// Fails if decoding alone needs more memory than the machine has.
pub(crate) fn check_memory(
    [height, width]: [usize; 2],
    source: &Source,
    memory: Option<u64>,
) -> Result<()> {
    let (Some(memory), DecoderKind::Kl, None) =
        (memory, source.options.decoder, source.options.tiling)
    else {
        return Ok(());
    };
    let config = AutoencoderKlConfig::from_model(&source.model()?, "vae")?;
    // The finest level reads the channels of the next and writes its own, at full size.
    let channels: usize = config.block_out_channels.iter().take(2).sum();
    let element = match (source.options.dtype, config.force_upcast) {
        (DType::F16 | DType::BF16, false) => 2,
        _ => 4,
    };
    let needed = (height * width * channels * element) as u64;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    ensure!(
        needed <= memory,
        "--size {width}x{height}: decoding takes at least {:.1} GiB, this machine has {:.1} GiB; --tiled decodes in parts",
        gib(needed),
        gib(memory)
    );
    Ok(())
}

/// Memory of this machine in bytes, if the system reports it.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The source with names instead of paths, for pictures that are shared.
pub(crate) fn names_only(source: &mut Source, start: &mut Option<StartRecord>) {
    let paths = std::iter::once(&mut source.model)
        .chain(&mut source.configs)
        .chain(source.components.values_mut())
        .chain(source.adapters.iter_mut().map(|(path, _)| path))
        .chain(start.iter_mut().map(|start| &mut start.file));
    for path in paths {
        *path = file_name(path);
    }
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name()
        .map_or_else(|| path.to_owned(), PathBuf::from)
}
