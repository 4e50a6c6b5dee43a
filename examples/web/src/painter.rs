//! A model that generates one image per request, the same in a browser and natively.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use swiftbrush_checkpoint::{FileSource, Model, sha256_of};
use swiftbrush_pipeline::edit::Edit;
use swiftbrush_pipeline::unet::UNet;
use swiftbrush_pipeline::vae::AutoencoderKlConfig;
use swiftbrush_pipeline::{
    EditRecord, FileRecord, InterpolationRecord, Loader, Method, NegativeMethod, Picture, Record,
    Request, Rng, Seeds, Source, TextToImage,
};
use swiftbrush_weight_interp::interpolate;

/// Errors of loading a model or generating an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model or the request.
    #[error(transparent)]
    Pipeline(#[from] swiftbrush_pipeline::Error),
    /// The two denoisers.
    #[error(transparent)]
    Interpolation(#[from] swiftbrush_weight_interp::Error),
    /// The model does not fit into the memory of a page.
    #[error(
        "this model needs about {needed} MB of memory, and a page has at most {limit} MB on the CPU: choose a smaller model, or one in int8"
    )]
    TooLarge {
        /// Estimated need in MB.
        needed: u64,
        /// Limit in MB.
        limit: u64,
    },
    /// A tensor does not fit into a buffer of the GPU.
    #[error(
        "{tensor} needs a buffer of {needed} MB, and this GPU binds at most {limit} MB: choose a smaller model, or compute on the CPU"
    )]
    Buffer {
        /// What the buffer holds.
        tensor: String,
        /// Its size in MB.
        needed: u64,
        /// Limit in MB.
        limit: u64,
    },
    /// The GPU cannot be used, or failed while computing.
    #[error("{0}")]
    Gpu(String),
}

impl From<swiftbrush_checkpoint::Error> for Error {
    fn from(error: swiftbrush_checkpoint::Error) -> Self {
        Self::Pipeline(error.into())
    }
}

/// An image, and how it was generated.
#[derive(Clone, Debug)]
pub struct Painting {
    /// The image.
    pub picture: Picture,
    /// Its record.
    pub record: Record,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl Painting {
    /// Reads an image of [`png`](Self::png).
    ///
    /// # Errors
    ///
    /// If the bytes are not a PNG file in RGB, or have no valid record.
    pub fn of_png(bytes: &[u8], file: &str) -> Result<Self, Error> {
        Ok(Self {
            picture: Picture::of_png(bytes)?,
            record: Record::of_png(std::io::Cursor::new(bytes), file)?,
            warnings: Vec::new(),
        })
    }

    /// Encodes the image as a PNG file with its record.
    pub fn png(&self) -> Vec<u8> {
        self.picture.to_png(Some(&self.record))
    }
}

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty for none.
    pub negative_prompt: String,
    /// The seed of the noise.
    pub seed: u64,
}

/// The second denoiser, and its share.
struct Other {
    /// The first denoiser, which the model's own replaces while both are averaged.
    first: UNet,
    second: UNet,
    path: PathBuf,
    record: InterpolationRecord,
}

/// A device and its limits.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// Its name in records.
    pub name: &'static str,
    /// The limits.
    pub limit: Limit,
}

/// The memory of a device.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Bytes for all weights and activations.
    Total(u64),
    /// Bytes in one buffer; the total is unknown.
    Buffer(u64),
}

impl Place {
    /// The CPU, with memory for `limit` bytes of weights and activations.
    #[cfg(feature = "cpu")]
    pub fn cpu(limit: u64) -> Self {
        Self {
            device: Device::flex(),
            name: "flex",
            limit: Limit::Total(limit),
        }
    }
}

/// A loaded model.
pub struct Painter {
    model: Model,
    pipeline: TextToImage,
    record: Record,
    device: Device,
    loader: Loader,
    other: Option<Other>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Painter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Painter")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl Painter {
    /// Loads the model in the folder `root` of a source. It computes in f32, or in int8 if its files are; on the CPU the
    /// denoiser's weights stay as they are stored.
    ///
    /// # Errors
    ///
    /// If a file is missing or damaged, or the model is too large for the device.
    pub fn open(root: &str, files: Arc<dyn FileSource>, place: Place) -> Result<Self, Error> {
        let model = Model::from_source(root, files)?;
        let source = Source::new(root);
        let mut loader = Loader::new(model.clone(), &place.device);
        if let Limit::Total(_) = place.limit {
            loader = loader.with_weights_as_stored();
        }
        loader.check()?;
        check_size(&model, &loader, place.limit)?;
        let pipeline = loader.load()?;
        let request = Request::new([""]).with_method(loader.default_method()?);
        let mut record = Record::of(&source, &request, 0, Rng::Native, 0, &pipeline);
        record.hashes = source.hashes_in(&model)?;
        place.name.clone_into(&mut record.device);
        let warnings = pipeline.warnings().iter().map(ToString::to_string);
        Ok(Self {
            warnings: warnings.collect(),
            model,
            pipeline,
            record,
            device: place.device,
            loader,
            other: None,
        })
    }

    /// Side of the images in pixels.
    ///
    /// # Errors
    ///
    /// If a configuration cannot be used.
    pub fn side(&self) -> Result<usize, Error> {
        Ok(self.loader.side()?)
    }

    /// Returns whether the model generates in one network call.
    pub fn is_one_step(&self) -> bool {
        self.record.method.is_one_call(1.0)
    }

    /// Uses the average `λ·A + (1−λ)·B` of the model's own denoiser A and of B, the folder or file `other` of the same source.
    /// B is loaded on the first call.
    ///
    /// # Errors
    ///
    /// If B is missing or damaged or has another architecture, or λ is not finite.
    pub fn interpolate(&mut self, other: &str, lambda: f64) -> Result<(), Error> {
        let path = PathBuf::from(other);
        if self.other.as_ref().is_none_or(|known| known.path != path) {
            self.load_other(path)?;
        }
        let Some(other) = &mut self.other else {
            return Ok(());
        };
        self.pipeline.unet = interpolate(other.first.clone(), &other.second, lambda)?;
        other.record.lambda = lambda;
        // λ = 1 is A itself.
        self.record.interpolation = (lambda != 1.0).then(|| other.record.clone());
        Ok(())
    }

    fn load_other(&mut self, path: PathBuf) -> Result<(), Error> {
        let denoiser = &self.loader.options().denoiser;
        let model = self.model.clone().with_component(denoiser, &path);
        let mut hashes = std::collections::BTreeMap::new();
        for file in model.weight_files(denoiser) {
            hashes.insert(name(&file), model.sha256(&file)?);
        }
        let second = Loader::new(model, &self.device).unet()?;
        // In f32, so that averages are not rounded to the element type of the file.
        let first = match self.other.take() {
            Some(other) => other.first,
            None => Loader::new(self.model.clone(), &self.device).unet()?,
        };
        let record = InterpolationRecord {
            lambda: 1.0,
            other: PathBuf::from(name(&path)),
            hashes,
        };
        self.other = Some(Other {
            first,
            second,
            path,
            record,
        });
        Ok(())
    }

    /// Generates an image.
    ///
    /// # Errors
    ///
    /// If the request contradicts the model, or a network gives a NaN.
    pub async fn paint(&self, wish: &Wish) -> Result<Painting, Error> {
        let mut record = self.record.clone().with_image(&wish.prompt, wish.seed);
        record.negative_prompt.clone_from(&wish.negative_prompt);
        let is_negative = !wish.negative_prompt.is_empty() && record.method.is_one_call(1.0);
        record.negative_method = is_negative.then_some(NegativeMethod::NASA);
        let mut noise = Seeds::new(record.rng, [record.seed]);
        let generation = self.pipeline.generate_async(&record.request(), &mut noise);
        self.painting(generation.await?, record).await
    }

    /// Changes an image as far as the two prompts differ, and leaves the rest: the PNG file `png`, whose name in the record is
    /// `file`.
    ///
    /// # Errors
    ///
    /// Same as [`paint`](Self::paint) and [`Painting::of_png`], or if the model needs more than one call.
    pub async fn edit(&self, png: &[u8], file: &str, wish: &Wish) -> Result<Painting, Error> {
        let painting = Painting::of_png(png, file)?;
        let source_prompt = painting.record.prompt.clone();
        let mut record = self.record.clone().with_image(&wish.prompt, wish.seed);
        let edit = Edit::of_picture(
            &painting.picture,
            &source_prompt,
            &wish.prompt,
            &self.device,
        )?;
        record.edit = Some(EditRecord {
            image: FileRecord {
                file: PathBuf::from(file),
                sha256: sha256_of(png),
            },
            source_prompt,
            options: edit.options,
            automatic_mask: None,
            mask: None,
        });
        let mut noise = Seeds::new(record.rng, [record.seed]);
        let generation = self.pipeline.edit_async(&edit, &mut noise);
        self.painting(generation.await?, record).await
    }

    async fn painting(
        &self,
        generation: swiftbrush_pipeline::Generation,
        record: Record,
    ) -> Result<Painting, Error> {
        let own = generation.warnings.iter().map(ToString::to_string);
        let warnings = self.warnings.iter().cloned().chain(own).collect();
        let picture = generation.pictures_async().await?.into_iter().next();
        let picture = picture.ok_or(swiftbrush_pipeline::Error::Cancelled)?;
        Ok(Painting {
            picture,
            record,
            warnings,
        })
    }
}

/// Compares the memory that a model needs with a limit.
fn check_size(model: &Model, loader: &Loader, limit: Limit) -> Result<(), Error> {
    match limit {
        Limit::Total(limit) => check_total(model, loader, limit),
        Limit::Buffer(limit) => check_buffers(model, loader, limit),
    }
}

const MEGABYTE: u64 = 1_000_000;

/// Compares an estimate of the peak memory with a limit: activations, the denoiser's weights as they are stored, those of the text
/// encoder's layers in f32 or int8, and all others in f32.
fn check_total(model: &Model, loader: &Loader, limit: u64) -> Result<(), Error> {
    let mut needed = loader.memory(&Request::new([""]).with_method(Method::OneStep))?;
    for component in ["unet", "text_encoder", "vae"] {
        for (name, count, size) in tensors(model, component)? {
            let is_as_stored = match component {
                "unet" => true,
                "text_encoder" => size == 1 && !name.ends_with("token_embedding.weight"),
                _ => false,
            };
            needed += count * if is_as_stored { size } else { 4 };
        }
    }
    match needed <= limit {
        true => Ok(()),
        false => Err(Error::TooLarge {
            needed: needed.div_ceil(MEGABYTE),
            limit: limit / MEGABYTE,
        }),
    }
}

/// Compares the largest weight, and the decoder's largest activation, with the size of a buffer. All are in f32.
fn check_buffers(model: &Model, loader: &Loader, limit: u64) -> Result<(), Error> {
    let mut buffers = Vec::new();
    for component in ["unet", "text_encoder", "vae"] {
        let weights = tensors(model, component)?.into_iter();
        buffers.extend(weights.map(|(name, count, _)| (format!("{component}: {name}"), 4 * count)));
    }
    // The last upsampling has the channels of the second level.
    let widths = AutoencoderKlConfig::from_model(model, "vae")?.block_out_channels;
    let width = widths.get(1).or(widths.first()).copied().unwrap_or(0);
    let pixels = (loader.side()? as u64).pow(2);
    buffers.push(("the decoder".to_owned(), 4 * width as u64 * pixels));
    let largest = buffers.into_iter().max_by_key(|(_, bytes)| *bytes);
    match largest {
        Some((tensor, needed)) if needed > limit => Err(Error::Buffer {
            tensor,
            needed: needed.div_ceil(MEGABYTE),
            limit: limit / MEGABYTE,
        }),
        _ => Ok(()),
    }
}

/// The name of each tensor of a component, the number of its elements, and the size of one in bytes.
fn tensors(model: &Model, component: &str) -> Result<Vec<(String, u64, u64)>, Error> {
    let weights = model.weights(component)?;
    let mut tensors = Vec::new();
    for name in weights.names() {
        let count: usize = weights.shape(name).unwrap_or_default().iter().product();
        let size = weights.dtype(name)?.size();
        tensors.push((name.to_string(), count as u64, size as u64));
    }
    Ok(tensors)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
