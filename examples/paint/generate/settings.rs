//! Method, size and start image, checked against a model's configuration before its weights are loaded.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use swiftbrush_images::MAX_PIXELS;
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::vae::AutoencoderKlConfig;
use swiftbrush_pipeline::{DecoderKind, Loader, Method, Record, Request, Source};

use crate::Args;
use crate::inputs::{Input, Purpose};
use crate::jobs::Job;

/// Settings of a run.
pub(crate) struct Settings {
    /// The request without prompts and start image.
    pub(crate) request: Request,
    pub(crate) scheduler: SchedulerConfig,
    /// Height and width in pixels.
    pub(crate) size: [usize; 2],
    /// A picture to start from or to edit, of that size.
    pub(crate) input: Option<Input>,
}

impl Settings {
    /// - input: the picture to start from or to edit, as large as it is
    /// - noise: noise from a file
    pub(crate) fn new(
        args: &Args,
        loader: &Loader,
        source: &Source,
        input: Option<Input>,
        noise: Option<&Tensor<4>>,
        device: &Device,
    ) -> Result<Self> {
        let scheduler = loader.scheduler()?;
        let mut request = args.method.request(loader.default_method(), None)?;
        request.method = with_steps_for_strength(args, request.method)?;
        let strength = args.image.as_ref().map_or(1.0, |_| args.strength);
        request.negative_method = args.method.negative_method(request.method, strength)?;
        check_steps(request.method, &scheduler)?;
        let scale = loader.scale()?;
        let fitted = input.map(|input| input.fitted(args.method.size, scale));
        let input = fitted.transpose()?;
        let size = match (&input, noise, args.method.size) {
            (_, _, Some(size)) => size,
            (Some(input), _, None) => input.size(),
            (None, Some(noise), None) => {
                let [_, _, height, width] = noise.dims();
                [height, width].map(|side| side * scale)
            }
            (None, None, None) => [loader.side()?; 2],
        };
        check_size(size, scale, args.enlarge)?;
        check_memory(size, source, memory())?;
        let [height, width] = size;
        let mut whole = request.clone().with_prompts([""]).with_size(width, height);
        if let Some(input) = &input {
            whole.start = input.start(1, device)?;
            if let Some(edit) = input.edit(&[String::new()], request.method, device)? {
                ensure!(
                    !request.is_guided() && request.negative_prompt.is_empty(),
                    "--edit compares two prompts without guidance: omit --guidance and --negative-prompt"
                );
                loader.check_edit(&edit)?;
            }
        }
        loader.check_request(&whole)?;
        Ok(Self {
            request,
            scheduler,
            size,
            input,
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
        if let Some(input) = &self.input {
            parts.push(self.describe_input(input));
        }
        if let Some(to) = &args.to {
            parts.push(format!("{} frames to {to:?}", jobs.len()));
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
        if options.int8 {
            parts.push("weights in int8".to_owned());
        }
        parts.join(", ")
    }

    fn describe_input(&self, input: &Input) -> String {
        let part = match (&input.mask, &input.purpose) {
            (Some(_), _) => ", within a mask",
            (None, Purpose::Edit(edit)) if edit.automatic_mask.is_some() => {
                ", within an automatic mask"
            }
            (None, _) => "",
        };
        match &input.purpose {
            Purpose::Start(record) => {
                let (file, strength) = (record.file.display(), record.strength);
                let taken = match self.request.method {
                    Method::OneStep => String::new(),
                    Method::Sampler(_, steps) => {
                        format!(" ({} of {steps} steps)", steps_taken(steps, strength))
                    }
                };
                format!("from {file} with strength {strength}{taken}{part}")
            }
            Purpose::Edit(edit) => {
                let (options, file) = (&edit.options, edit.image.file.display());
                let refined = match options.refinement {
                    Some(_) => " and a refinement",
                    None => "",
                };
                format!(
                    "edits {file}, {:?}, with {} samples{refined}{part}",
                    edit.source_prompt,
                    options.n_samples()
                )
            }
        }
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

/// Ensures that at least one step remains from a start image, by increasing the number of steps if it is not given. Models of
/// one step take the one-step rule instead, which accepts any strength.
pub(crate) fn with_steps_for_strength(args: &Args, method: Method) -> Result<Method> {
    let strength = args.strength;
    let (Some(_), Method::Sampler(kind, steps)) = (&args.image, method) else {
        return Ok(method);
    };
    ensure!(
        strength > 0.0,
        "--strength 0 returns the picture unchanged; expected more than 0"
    );
    if steps == 1 && args.method.steps.is_none() && args.method.sampler.is_none() {
        return Ok(Method::OneStep);
    }
    if steps_taken(steps, strength) > 0 {
        return Ok(method);
    }
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

/// Checks the size of pictures, with their enlargement.
pub(crate) fn check_size([height, width]: [usize; 2], scale: usize, enlarge: u32) -> Result<()> {
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

/// The record with names instead of paths, for pictures that are shared.
pub(crate) fn names_only(record: &mut Record) {
    record.source = record.source.without_paths();
    let edit = record.edit.iter_mut();
    let edit = edit.flat_map(|edit| std::iter::once(&mut edit.image).chain(&mut edit.mask));
    let start = record.start.iter_mut();
    let start = start.flat_map(|start| {
        let mask = start.mask.iter_mut().map(|mask| &mut mask.file);
        std::iter::once(&mut start.file).chain(mask)
    });
    for path in edit.map(|file| &mut file.file).chain(start) {
        if let Some(name) = path.file_name() {
            *path = PathBuf::from(name);
        }
    }
}
