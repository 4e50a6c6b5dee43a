//! How a picture was made, written into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Model, sha256};
use swiftbrush_lora::AdapterFile;
use swiftbrush_scheduler::{SamplerKind, SchedulerConfig};
use swiftbrush_vae::Tiling;

use crate::{DecoderKind, Error, Family, Loader, Method, Request, Rng};

/// Which files a model is made of and how they are loaded: everything that a [`Loader`] is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Folder or file of the model.
    pub model: PathBuf,
    /// Folder with the configurations of a single file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configs: Option<PathBuf>,
    /// Components from elsewhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, PathBuf>,
    /// What is in the names of files of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Which model a single file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Component that denoises.
    pub denoiser: String,
    /// Element type of the arithmetic.
    pub dtype: DType,
    /// Element type of the denoiser's weights, if another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<DType>,
    /// Which autoencoder decodes.
    pub decoder: DecoderKind,
    /// Whether it decodes in tiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
    /// Adapters and their strengths, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<(PathBuf, f64)>,
}

impl Source {
    /// A model in f32, with its full autoencoder.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            configs: None,
            components: BTreeMap::new(),
            variant: None,
            family: None,
            denoiser: "unet".to_owned(),
            dtype: DType::F32,
            storage: None,
            decoder: DecoderKind::Kl,
            tiling: None,
            adapters: Vec::new(),
        }
    }

    /// The model.
    ///
    /// # Errors
    ///
    /// If it is missing or damaged.
    pub fn model(&self) -> Result<Model, Error> {
        let mut model = Model::open(&self.model)?;
        for (component, path) in &self.components {
            model = model.with_component(component, path);
        }
        if let Some(configs) = &self.configs {
            model = model.with_configs(configs);
        }
        if let Some(variant) = &self.variant {
            model = model.with_variant(variant);
        }
        Ok(model)
    }

    /// The loader.
    ///
    /// # Errors
    ///
    /// If the model or an adapter is missing or damaged.
    pub fn loader(&self, device: &Device) -> Result<Loader, Error> {
        let mut loader = Loader::new(self.model()?, device)
            .with_denoiser(&self.denoiser)
            .with_dtype(self.dtype)
            .with_decoder(self.decoder);
        if let Some(storage) = self.storage {
            loader = loader.with_storage(storage);
        }
        if let Some(tiling) = self.tiling {
            loader = loader.with_tiling(tiling);
        }
        if let Some(family) = self.family {
            loader = loader.with_family(family);
        }
        for (path, strength) in &self.adapters {
            loader = loader.with_adapters(AdapterFile::open(path)?, *strength);
        }
        Ok(loader)
    }

    /// SHA-256 of every file that weights or words come from, by what it is for and its name:
    /// `unet/diffusion_pytorch_model.safetensors`.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>, Error> {
        let model = self.model()?;
        let decoder = match self.decoder {
            DecoderKind::Kl => "vae",
            DecoderKind::Tiny => "taesd",
        };
        let components = ["text_encoder", self.denoiser.as_str(), decoder];
        let weights = components.into_iter().flat_map(|component| {
            let files = model.weight_files(component).into_iter();
            files.map(move |path| (component, path))
        });
        let tokenizer = ["vocab.json", "merges.txt", "tokenizer.json"]
            .into_iter()
            .filter_map(|file| model.path(&format!("tokenizer/{file}")))
            .filter(|path| path.is_file())
            .map(|path| ("tokenizer", path));
        let adapters = self
            .adapters
            .iter()
            .map(|(path, _)| (ADAPTER, path.clone()));
        // A single file is the weights of several components.
        let mut known: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut hashes = BTreeMap::new();
        for (role, path) in weights.chain(tokenizer).chain(adapters) {
            let hash = match known.get(&path) {
                Some(hash) => hash.clone(),
                None => sha256(&path)?,
            };
            hashes.insert(label(role, &path), hash.clone());
            known.insert(path, hash);
        }
        Ok(hashes)
    }
}

/// What adapters are called among the files of a model.
const ADAPTER: &str = "lora";

fn label(role: &str, path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("{role}/{}", name.to_string_lossy())
}

/// A picture that another began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// The file.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// How much of it was lost in noise.
    pub strength: f64,
}

/// How a picture was made: all that is needed to make it again, and to know whether it can be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Program and version.
    pub software: String,
    /// What was loaded.
    pub source: Source,
    /// SHA-256 of its files; empty if nobody asked for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
    /// Where it was computed: the last bits differ from device to device.
    pub device: String,
    /// The prompt.
    pub prompt: String,
    /// What was painted the opposite of.
    pub negative_prompt: String,
    /// How latents were made of noise.
    pub method: Method,
    /// Scale of classifier-free guidance.
    pub guidance: f64,
    /// Height and width.
    pub size: [usize; 2],
    /// Seed of the noise.
    pub seed: u64,
    /// Whose numbers the seed stands for.
    pub rng: Rng,
    /// The picture that it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartRecord>,
    /// The noise schedule.
    pub scheduler: SchedulerConfig,
    /// Side of the square that each pixel was enlarged to afterwards.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub enlarged: u32,
    /// Index in its batch and size of that batch, on which the last bits depend.
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

/// Key of the record in a PNG file.
const RECORD: &str = "swiftbrush";
/// Key of AUTOMATIC1111's text.
const PARAMETERS: &str = "parameters";

impl Record {
    /// What this library calls itself in records.
    pub fn software() -> String {
        format!("swiftbrush {}", env!("CARGO_PKG_VERSION"))
    }

    /// The request for this one picture; the picture that it began with is to be added.
    pub fn request(&self) -> Request {
        Request {
            negative_prompt: self.negative_prompt.clone(),
            method: self.method,
            guidance: self.guidance,
            size: Some(self.size),
            ..Request::new([self.prompt.as_str()])
        }
    }

    /// The same in the form that AUTOMATIC1111's interface writes and many programs read: the prompt, the negative prompt,
    /// and a line of names and values.
    pub fn parameters(&self) -> String {
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
        let short = |hash: &String| hash.chars().take(10).collect::<String>();
        let is_denoiser = |label: &str| label.split('/').next() == Some(&self.source.denoiser);
        let mut hashes = self.hashes.iter();
        if let Some((_, hash)) = hashes.find(|(label, _)| is_denoiser(label)) {
            values.push(("Model hash", short(hash)));
        }
        let name = |path: &Path| {
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            stem.to_string_lossy().into_owned()
        };
        values.push(("Model", name(&self.source.model)));
        if let Some(start) = &self.start {
            values.push(("Denoising strength", start.strength.to_string()));
        }
        let adapters = self.source.adapters.iter();
        let adapters: Vec<_> = adapters
            .filter_map(|(path, _)| {
                let hash = self.hashes.get(&label(ADAPTER, path))?;
                Some(format!("{}: {}", name(path), short(hash)))
            })
            .collect();
        if !adapters.is_empty() {
            values.push(("Lora hashes", adapters.join(", ")));
        }
        let rng = match self.rng {
            Rng::Native => "swiftbrush",
            Rng::Cpu => "CPU",
            Rng::Cuda => "NV",
        };
        values.push(("RNG", rng.to_owned()));
        values.push(("Version", self.software.clone()));
        let values: Vec<_> = values
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

    /// Reads the record of a PNG file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is no PNG file, or has no record.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Picture {
            path: path.to_owned(),
            reason,
        };
        let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
        let mut reader = png::Decoder::new(std::io::BufReader::new(file))
            .read_info()
            .map_err(|error| bad(error.to_string()))?;
        // Text may stand behind the pixels.
        reader.finish().map_err(|error| bad(error.to_string()))?;
        let info = reader.info();
        let mut latin = info.uncompressed_latin1_text.iter();
        let latin = latin.find(|chunk| chunk.keyword == RECORD);
        let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == RECORD);
        let text = match (latin, utf8) {
            (Some(chunk), _) => chunk.text.clone(),
            (_, Some(chunk)) => chunk.get_text().map_err(|error| bad(error.to_string()))?,
            (None, None) => {
                return Err(bad("it does not say how it was made".to_owned()));
            }
        };
        serde_json::from_str(&text).map_err(|error| bad(format!("its record: {error}")))
    }
}

/// What AUTOMATIC1111's interface calls a sampler.
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

/// Values that would be taken for several are written as JSON strings.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

/// A picture of bytes, row by row, RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `3 · width · height` of them.
    pub bytes: Vec<u8>,
}

impl Picture {
    /// Images of a batch, `[batch, 3, height, width]` in −1…1, rounded as diffusers rounds.
    pub fn of_images(images: Tensor<4>) -> Vec<Self> {
        let [_, channels, height, width] = images.dims();
        let values = images.permute([0, 2, 3, 1]).into_data();
        let byte = |x: f32| ((x + 1.0) * 127.5).round_ties_even().clamp(0.0, 255.0) as u8;
        let bytes: Vec<u8> = values.iter::<f32>().map(byte).collect();
        bytes
            .chunks(channels * height * width)
            .map(|bytes| Self {
                width,
                height,
                bytes: bytes.to_vec(),
            })
            .collect()
    }

    /// The picture as a PNG file, with its record in this library's form and in AUTOMATIC1111's.
    ///
    /// # Panics
    ///
    /// If the bytes are not as many as width and height say.
    pub fn to_png(&self, record: &Record) -> Vec<u8> {
        let mut file = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let json = serde_json::to_string(record).expect("a record is plain data");
        for (key, text) in [(PARAMETERS, record.parameters()), (RECORD, json)] {
            // Latin-1 where it will do, which every reader knows.
            let is_latin = text.chars().all(|c| u32::from(c) < 256);
            let added = match is_latin {
                true => encoder.add_text_chunk(key.to_owned(), text),
                false => encoder.add_itxt_chunk(key.to_owned(), text),
            };
            added.expect("the header is not written yet");
        }
        let written = encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(&self.bytes));
        written.expect("memory takes any number of bytes");
        file
    }
}
