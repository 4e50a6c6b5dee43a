//! Records of how an image was generated, written to its file.

mod changed;

use std::collections::BTreeMap;
#[cfg(feature = "png")]
use std::io::{BufRead, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swiftbrush_scheduler::{Sampler, SamplerKind, SchedulerConfig, TimestepSpacing};

use crate::{Error, Method, NegativeMethod, Request, Rng, Source, TextToImage, limits};

pub use changed::{BetweenRecord, EditRecord, FileRecord, InterpolationRecord};

/// An image that generation started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// The file.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Share of the image that was replaced with noise, 0 to 1.
    pub strength: f64,
    /// The mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<FileRecord>,
}

/// The size limit of a file that an image is made from, in bytes.
const MAX_FILE: u64 = 1 << 28;

impl StartRecord {
    /// Hashes the file of an image.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not a regular file, or is larger than 256 MiB.
    pub fn of_file(file: impl AsRef<Path>, strength: f64) -> Result<Self, Error> {
        let FileRecord { file, sha256 } = FileRecord::of_file(file)?;
        Ok(Self {
            file,
            sha256,
            strength,
            mask: None,
        })
    }

    /// Checks that the files are still the ones that generation started from.
    ///
    /// # Errors
    ///
    /// If one is not; otherwise same as [`of_file`](Self::of_file).
    pub fn check_file(&self) -> Result<(), Error> {
        let (file, sha256) = (self.file.clone(), self.sha256.clone());
        let image = FileRecord { file, sha256 };
        let files = std::iter::once(&image).chain(&self.mask);
        files.into_iter().try_for_each(FileRecord::check_file)
    }
}

/// The settings of an image: everything needed to reproduce it, and to know whether that can succeed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Program and version.
    pub software: String,
    /// The model, with names instead of paths by default.
    pub source: Source,
    /// SHA-256 of the model's files; may be empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
    /// Device used for generation; the last bits differ between devices.
    pub device: String,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative_prompt: String,
    /// The method that applied the negative prompt in cross-attention; `None` for guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_method: Option<NegativeMethod>,
    /// The method of generation.
    pub method: Method,
    /// Spacing of the sampler's timesteps, if it differs from the scheduler's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<TimestepSpacing>,
    /// Scale of classifier-free guidance.
    pub guidance: f64,
    /// Height and width of the generated image in pixels.
    pub size: [usize; 2],
    /// Seed of the noise.
    pub seed: u64,
    /// Random number generator of the seed.
    pub rng: Rng,
    /// The image that generation started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartRecord>,
    /// The edit that produced the image from another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditRecord>,
    /// The other end of an animation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<BetweenRecord>,
    /// The denoiser that the source's own was interpolated with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<InterpolationRecord>,
    /// The scheduler's configuration.
    pub scheduler: SchedulerConfig,
    /// Factor by which the image was enlarged afterwards, 1 to 64.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub enlarged: u32,
    /// Index in its batch and size of the batch, which affect the last bits.
    #[serde(default = "alone", skip_serializing_if = "is_alone")]
    pub batch: [usize; 2],
}

fn alone() -> [usize; 2] {
    [0, 1]
}

fn is_alone(batch: &[usize; 2]) -> bool {
    *batch == alone()
}

fn one() -> u32 {
    1
}

fn is_one(factor: &u32) -> bool {
    *factor == 1
}

/// The largest factor of enlargement.
const MAX_ENLARGED: u32 = 64;
/// Keyword of the record in a PNG file.
#[cfg(feature = "png")]
const RECORD: &str = "swiftbrush";
/// Keyword of AUTOMATIC1111's text.
#[cfg(feature = "png")]
const PARAMETERS: &str = "parameters";
/// The size limit of a record, in bytes.
#[cfg(feature = "png")]
const MAX_RECORD: usize = 1 << 20;

impl Record {
    /// The largest batch that a record can describe.
    pub const MAX_BATCH: usize = 256;

    /// The record of image `index` of a request whose images a pipeline generates in one batch, this one with the noise of
    /// `rng` and `seed`. The caller adds hashes, the start image and the device's name.
    ///
    /// # Panics
    ///
    /// If the request has no prompt `index`.
    #[track_caller]
    pub fn of(
        source: &Source,
        request: &Request,
        index: usize,
        rng: Rng,
        seed: u64,
        pipeline: &TextToImage,
    ) -> Self {
        let size = pipeline.size(request);
        let scheduler = pipeline.scheduler.clone();
        let record = Self::with_parts(source, request, size, scheduler);
        Self {
            rng,
            batch: [index, request.prompts.len()],
            ..record.with_image(&request.prompts[index], seed)
        }
    }

    /// Like [`of`](Self::of), but before the model is loaded; prompt and seed are set by [`with_image`](Self::with_image).
    pub fn with_parts(
        source: &Source,
        request: &Request,
        size: [usize; 2],
        scheduler: SchedulerConfig,
    ) -> Self {
        Self {
            software: Self::software(),
            source: source.without_paths(),
            hashes: BTreeMap::new(),
            device: String::new(),
            prompt: String::new(),
            negative_prompt: request.negative_prompt.clone(),
            negative_method: request.effective_negative_method(),
            method: request.method,
            spacing: request.spacing,
            guidance: request.guidance,
            size,
            seed: 0,
            rng: Rng::Native,
            start: None,
            edit: None,
            between: None,
            interpolation: None,
            scheduler,
            enlarged: 1,
            batch: alone(),
        }
    }

    /// Sets prompt and seed.
    pub fn with_image(mut self, prompt: &str, seed: u64) -> Self {
        prompt.clone_into(&mut self.prompt);
        self.seed = seed;
        self
    }

    /// Name and version of this library in records.
    pub fn software() -> String {
        format!("swiftbrush {}", env!("CARGO_PKG_VERSION"))
    }

    /// The request for this image, without its start image. It does not reproduce an edit, and for an image of an
    /// animation the other end is needed too ([`Conditioning::interpolate`](crate::Conditioning::interpolate)).
    pub fn request(&self) -> Request {
        let [height, width] = self.size;
        let mut request = Request::new([self.prompt.as_str()])
            .with_negative_prompt(&self.negative_prompt)
            .with_method(self.method)
            .with_guidance(self.guidance)
            .with_size(width, height);
        request.negative_method = self.negative_method;
        request.spacing = self.spacing;
        request
    }

    /// Checks everything that comes from a file: sizes, numbers, the scheduler, the sampler and the loading options.
    ///
    /// # Errors
    ///
    /// If a value is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let check = |holds: bool, text: String| match holds {
            true => Ok(()),
            false => Err(Error::Request(text)),
        };
        limits::check_pixels(self.size).map_err(Error::Request)?;
        check(
            self.size.iter().all(|&side| side > 0),
            "size: a side is 0".to_owned(),
        )?;
        check(
            (1..=MAX_ENLARGED).contains(&self.enlarged),
            format!("enlarged {}; expected 1 to {MAX_ENLARGED}", self.enlarged),
        )?;
        check(
            self.guidance.is_finite(),
            format!("guidance {}; expected a number", self.guidance),
        )?;
        if let Some(method) = self.negative_method {
            method.check().map_err(Error::Request)?;
        }
        let strength = self.start.as_ref().map_or(1.0, |start| start.strength);
        check(
            (0.0..=1.0).contains(&strength),
            format!("strength {strength}; expected 0 to 1"),
        )?;
        let share = self.between.as_ref().map_or(0.0, |between| between.share);
        check(
            (0.0..=1.0).contains(&share),
            format!("share {share} of an animation; expected 0 to 1"),
        )?;
        let lambda = self.interpolation.as_ref().map_or(1.0, |it| it.lambda);
        check(
            lambda.is_finite(),
            format!("lambda {lambda} of an interpolation; expected a number"),
        )?;
        check(
            self.edit.is_none() || (self.start.is_none() && self.between.is_none()),
            "an edit, and also a start image or an animation; expected only one of them".to_owned(),
        )?;
        if let Some(edit) = &self.edit {
            edit.check(self.method)?;
        }
        let [index, batch] = self.batch;
        check(
            index < batch && batch <= Self::MAX_BATCH,
            format!(
                "image {index} of a batch of {batch}; expected at most {}",
                Self::MAX_BATCH
            ),
        )?;
        self.source.check()?;
        if let Method::Sampler(kind, steps) = self.method {
            let scheduler = match self.spacing {
                Some(spacing) => self.scheduler.clone().with_spacing(spacing),
                None => self.scheduler.clone(),
            };
            Sampler::new(kind, &scheduler, steps)?;
        }
        Ok(())
    }

    /// The record in the format that AUTOMATIC1111's web UI writes and many programs read: the prompt, the negative
    /// prompt, and a line of names and values.
    pub fn parameters(&self) -> String {
        let values: Vec<_> = self
            .values()
            .into_iter()
            .map(|(key, value)| format!("{key}: {}", quoted(&value)))
            .collect();
        let mut lines = vec![self.prompt.clone()];
        if !self.negative_prompt.is_empty() {
            lines.push(format!("Negative prompt: {}", self.negative_prompt));
        }
        lines.push(values.join(", "));
        lines.join("\n")
    }

    fn values(&self) -> Vec<(&'static str, String)> {
        let (sampler, steps) = match self.method {
            Method::OneStep => ("SwiftBrush", 1),
            Method::Sampler(kind, steps) => (sampler_name(kind), steps),
        };
        let [height, width] = self.size;
        let mut values = vec![
            ("Steps", steps.to_string()),
            ("Sampler", sampler.to_owned()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{width}x{height}")),
        ];
        let denoiser = &self.source.options.denoiser;
        let is_denoiser = |label: &str| label.split('/').next() == Some(denoiser);
        let mut hashes = self.hashes.iter();
        if let Some((_, hash)) = hashes.find(|(label, _)| is_denoiser(label)) {
            values.push(("Model hash", short(hash)));
        }
        values.push(("Model", stem(&self.source.model)));
        if let Some(start) = &self.start {
            values.push(("Denoising strength", start.strength.to_string()));
        }
        if let Some(edit) = &self.edit {
            values.push(("Edited from", edit.source_prompt.clone()));
        }
        if let Some(interpolation) = &self.interpolation {
            values.push(("Interpolated with", stem(&interpolation.other)));
            values.push(("Lambda", interpolation.lambda.to_string()));
        }
        if let Some(between) = &self.between {
            values.push(("Towards", between.prompt.clone()));
            values.push(("Share", between.share.to_string()));
        }
        let labels = self.source.adapter_labels().into_iter();
        let adapters: Vec<_> = labels
            .zip(&self.source.adapters)
            .filter_map(|(label, (path, _))| {
                let hash = self.hashes.get(&label)?;
                Some(format!("{}: {}", stem(path), short(hash)))
            })
            .collect();
        if !adapters.is_empty() {
            values.push(("Lora hashes", adapters.join(", ")));
        }
        if let Some(method) = self.negative_method {
            values.push(("Negative method", method.to_string()));
        }
        let rng = match self.rng {
            Rng::Native => "swiftbrush",
            Rng::Cpu => "CPU",
            Rng::Cuda => "NV",
        };
        values.push(("RNG", rng.to_owned()));
        values.push(("Version", self.software.clone()));
        values
    }
}

#[cfg(feature = "png")]
impl Record {
    /// The texts of a PNG file with their keywords.
    pub(crate) fn texts(&self) -> [(&'static str, String); 2] {
        let json = serde_json::to_string(self).expect("a record is plain data");
        [(PARAMETERS, self.parameters()), (RECORD, json)]
    }

    /// Reads and [checks](Self::check) the record of a PNG file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not a PNG file, or has no valid record.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(|error| Error::Picture {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Self::of_png(std::io::BufReader::new(file), path)
    }

    /// Reads and [checks](Self::check) the record of a PNG file that is already open; errors name `path`.
    ///
    /// # Errors
    ///
    /// Same as [`read`](Self::read).
    pub fn of_png(file: impl BufRead + Seek, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bad = |reason: String| Error::Picture {
            path: path.to_owned(),
            reason,
        };
        let text = record_text(file).map_err(bad)?;
        let record: Self = serde_json::from_str(&text)
            .map_err(|error| bad(format!("the swiftbrush record is damaged: {error}")))?;
        record
            .check()
            .map_err(|error| bad(format!("the swiftbrush record is not valid: {error}")))?;
        Ok(record)
    }
}

/// The text of the record in a PNG file.
#[cfg(feature = "png")]
fn record_text(file: impl BufRead + Seek) -> Result<String, String> {
    let mut reader = png::Decoder::new(file)
        .read_info()
        .map_err(|error| error.to_string())?;
    // Texts may come after the pixels.
    reader.finish().map_err(|error| error.to_string())?;
    let info = reader.info();
    let mut latin = info.uncompressed_latin1_text.iter();
    if let Some(chunk) = latin.find(|chunk| chunk.keyword == RECORD) {
        return Ok(chunk.text.clone());
    }
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == RECORD);
    let Some(mut chunk) = utf8.cloned() else {
        return Err("no swiftbrush record: the file does not say how it was generated".to_owned());
    };
    chunk
        .decompress_text_with_limit(MAX_RECORD)
        .and_then(|()| chunk.get_text())
        .map_err(|error| error.to_string())
}

fn short(hash: &str) -> String {
    hash.chars().take(10).collect()
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

/// The name of a sampler in AUTOMATIC1111's web UI.
fn sampler_name(kind: SamplerKind) -> &'static str {
    match kind {
        SamplerKind::Ddim => "DDIM",
        SamplerKind::Euler => "Euler",
        SamplerKind::EulerAncestral => "Euler a",
        SamplerKind::DpmSolver => "DPM++ 2M",
        SamplerKind::Pndm => "PLMS",
        SamplerKind::Lcm => "LCM",
    }
}

/// Writes values that a reader would split as JSON strings.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}
