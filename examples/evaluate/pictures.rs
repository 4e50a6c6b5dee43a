//! Where the pictures come from: a folder, or a model that paints them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde_json::{Value as Json, json};
use swiftbrush_pipeline::{Method, Picture, Request, Rng, Seeds, TextToImage};

use examples_common::image;
use crate::store::hash_of;
use crate::{Args, Plan};

/// Pictures by number, each the same whenever it is asked for.
pub(crate) enum Pictures {
    Folder {
        folder: PathBuf,
        files: Vec<PathBuf>,
        /// One for each picture, if there are any.
        prompts: Option<Vec<String>>,
    },
    Painted(Box<Painter>),
}

/// A model and what it is to paint.
pub(crate) struct Painter {
    pipeline: TextToImage,
    request: Request,
    /// One for each picture.
    prompts: Vec<String>,
    rng: Rng,
    seed: u64,
    name: String,
    record: Json,
}

impl Pictures {
    pub(crate) fn new(args: &Args, plan: &Plan) -> Result<Self> {
        let repeat = |prompts: &Vec<String>| -> Vec<String> {
            let repeat = |prompt: &String| vec![prompt.clone(); args.per_prompt];
            prompts.iter().flat_map(repeat).collect()
        };
        let prompts = plan.prompts.as_ref().map(repeat);
        match &args.pictures {
            Some(folder) => Self::folder(folder, prompts),
            None => {
                let prompts =
                    prompts.context("a model needs something to paint: give --prompts")?;
                Ok(Self::Painted(Box::new(Painter::new(args, plan, prompts)?)))
            }
        }
    }

    /// All pictures of a folder.
    pub(crate) fn folder(folder: &Path, prompts: Option<Vec<String>>) -> Result<Self> {
        let files = swiftbrush_images::list(folder)?;
        if let Some(prompts) = &prompts {
            ensure!(
                prompts.len() == files.len(),
                "{} has {} pictures, for {} prompts",
                folder.display(),
                files.len(),
                prompts.len()
            );
        }
        Ok(Self::Folder {
            folder: folder.to_owned(),
            files,
            prompts,
        })
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Folder { files, .. } => files.len(),
            Self::Painted(painter) => painter.prompts.len(),
        }
    }

    pub(crate) fn prompts(&self) -> Option<&[String]> {
        match self {
            Self::Folder { prompts, .. } => prompts.as_deref(),
            Self::Painted(painter) => Some(&painter.prompts),
        }
    }

    /// What they are called if nobody says it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder { folder, .. } => {
                let name = folder.file_name().unwrap_or(folder.as_os_str());
                name.to_string_lossy().into_owned()
            }
            Self::Painted(painter) => painter.name.clone(),
        }
    }

    /// All that the pictures depend on, but prompts; of a folder the names and sizes of its files.
    pub(crate) fn record(&self) -> Json {
        match self {
            Self::Folder { files, .. } => {
                let size = |file: &PathBuf| std::fs::metadata(file).map_or(0, |file| file.len());
                let name = |file: &PathBuf| {
                    file.file_name()
                        .map(|name| name.to_string_lossy().into_owned())
                };
                let files = files
                    .iter()
                    .map(|file| format!("{} {}\n", name(file).unwrap_or_default(), size(file)));
                json!({ "files": hash_of(files.collect::<String>().as_bytes()) })
            }
            Self::Painted(painter) => painter.record.clone(),
        }
    }

    /// Pictures with these numbers, and the hash of each: of its file, or of the bytes of its pixels.
    pub(crate) fn get(&self, numbers: &[usize]) -> Result<Vec<(RgbImage, String)>> {
        match self {
            Self::Folder { files, .. } => {
                let read = |&number: &usize| {
                    let path = &files[number];
                    let bytes = std::fs::read(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    Ok((swiftbrush_images::decode(&bytes, path)?, hash_of(&bytes)))
                };
                numbers.iter().map(read).collect()
            }
            Self::Painted(painter) => painter.paint(numbers),
        }
    }
}

impl Painter {
    fn new(args: &Args, plan: &Plan, prompts: Vec<String>) -> Result<Self> {
        let source = args.model.source()?;
        let loader = crate::ModelArgs::loader(&source, &plan.device)?;
        let scheduler = loader.scheduler()?;
        let method = args.method.method(Method::of_scheduler(&scheduler))?;
        let request = Request {
            negative_prompt: args.method.negative_prompt.clone(),
            method,
            guidance: args.method.guidance,
            size: args.method.size,
            ..Request::new(Vec::<String>::new())
        };
        let record = json!({
            "model": source.hashes()?,
            "scheduler": scheduler,
            "method": method,
            "guidance": request.guidance,
            "negative prompt": request.negative_prompt,
            "size": request.size,
            "rng": args.method.rng,
            "seed": args.seed,
            "dtype": source.dtype,
            "storage": source.storage,
            "adapters": source.adapters.iter().map(|(_, strength)| strength).collect::<Vec<_>>(),
        });
        let name = match args.model.unet == "unet" {
            true => source
                .model
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
            false => Some(args.model.unet.clone()),
        };
        Ok(Self {
            pipeline: loader.load()?,
            request,
            prompts,
            rng: args.method.rng,
            seed: args.seed,
            name: name.unwrap_or_default(),
            record,
        })
    }

    fn paint(&self, numbers: &[usize]) -> Result<Vec<(RgbImage, String)>> {
        let request = Request {
            prompts: numbers
                .iter()
                .map(|&number| self.prompts[number].clone())
                .collect(),
            ..self.request.clone()
        };
        let seeds = numbers.iter().map(|&number| self.seed + number as u64);
        let painting = self
            .pipeline
            .generate(&request, &mut Seeds::new(self.rng, seeds))?;
        let with_hash = |picture: &Picture| (image(picture), hash_of(&picture.bytes));
        Ok(Picture::of_images(painting.images)
            .iter()
            .map(with_hash)
            .collect())
    }
}
