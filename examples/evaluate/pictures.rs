//! The pictures to measure: files of a folder, or a model's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use swiftbrush_evaluator::Protocol;
use swiftbrush_images::{Folder, Orient, decode, read_file};
use swiftbrush_pipeline::{Picture, Request, Rng, Seeds, TextToImage};

use crate::store::hash_of;
use crate::{Args, Plan};
use examples_common::{image, shortened};

/// Pictures by index, the same each time.
pub(crate) enum Pictures {
    Folder(Files),
    Generated(Box<Generator>),
}

/// The pictures of a folder.
pub(crate) struct Files {
    folder: PathBuf,
    listed: Folder,
    /// One for each picture, if there are any.
    prompts: Option<Vec<String>>,
    orientation: Orient,
}

/// A model and its prompts.
pub(crate) struct Generator {
    pipeline: TextToImage,
    request: Request,
    /// One for each picture.
    prompts: Vec<String>,
    rng: Rng,
    seed: u64,
    name: String,
    record: Json,
}

/// A picture to measure.
pub(crate) struct Subject {
    pub(crate) image: RgbImage,
    /// Hash of its file, or of the bytes of its pixels.
    pub(crate) hash: String,
    pub(crate) changes: Changes,
}

/// Counts of pictures that differ from what their files store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Pictures with an Exif orientation other than upright.
    pub(crate) oriented: usize,
    /// Pictures whose transparency was dropped.
    pub(crate) transparent: usize,
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.oriented += other.oriented;
        self.transparent += other.transparent;
    }
}

impl Changes {
    /// A note for each kind of change to `count` pictures.
    pub(crate) fn notes(self, count: usize, orientation: Orient) -> Vec<String> {
        let treatment = match orientation {
            Orient::Upright => {
                "were turned upright; pytorch-fid and clean-fid measure them as stored"
            }
            Orient::AsStored => "were measured as stored, as the protocol's own program does",
        };
        let notes = [
            (
                self.oriented,
                format!("have an Exif orientation and {treatment}"),
            ),
            (
                self.transparent,
                "are transparent; transparency was dropped and colours kept, as pytorch-fid and clean-fid do"
                    .to_owned(),
            ),
        ];
        let notes = notes.into_iter().filter(|(changed, _)| *changed > 0);
        notes
            .map(|(changed, note)| format!("{changed} of {count} pictures {note}"))
            .collect()
    }
}

impl Pictures {
    pub(crate) fn new(args: &Args, plan: &Plan) -> Result<Self> {
        let repeat = |prompts: &Vec<String>| -> Vec<String> {
            let repeat = |prompt: &String| vec![prompt.clone(); args.per_prompt];
            prompts.iter().flat_map(repeat).collect()
        };
        let prompts = plan.prompts.as_ref().map(repeat);
        match &args.pictures {
            Some(folder) => Self::folder(folder, prompts, &plan.protocol),
            None => {
                let prompts = prompts.context("a model needs prompts: give --prompts FILE")?;
                let generator = Generator::new(args, plan, prompts)?;
                Ok(Self::Generated(Box::new(generator)))
            }
        }
    }

    /// All pictures of a folder, in natural order of their names: 2.png before 10.png.
    pub(crate) fn folder(
        folder: &Path,
        prompts: Option<Vec<String>>,
        protocol: &Protocol,
    ) -> Result<Self> {
        let listed = Folder::list(folder)?;
        if let Some(prompts) = &prompts {
            pair(folder, &listed, prompts)?;
        }
        Ok(Self::Folder(Files {
            folder: folder.to_owned(),
            listed,
            prompts,
            orientation: protocol.orientation,
        }))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Folder(files) => files.listed.pictures.len(),
            Self::Generated(generator) => generator.prompts.len(),
        }
    }

    pub(crate) fn prompts(&self) -> Option<&[String]> {
        match self {
            Self::Folder(files) => files.prompts.as_deref(),
            Self::Generated(generator) => Some(&generator.prompts),
        }
    }

    /// Default name of the result.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder(Files { folder, .. }) => {
                let name = folder.file_name().unwrap_or(folder.as_os_str());
                name.to_string_lossy().into_owned()
            }
            Self::Generated(generator) => generator.name.clone(),
        }
    }

    /// Everything that generated pictures depend on, except prompts; nothing for a folder, whose files are hashed.
    pub(crate) fn record(&self) -> Json {
        match self {
            Self::Folder(_) => Json::Null,
            Self::Generated(generator) => generator.record.clone(),
        }
    }

    /// Notes on files that are not measured, or that other programs would not measure.
    pub(crate) fn notes(&self, protocol: &Protocol) -> Vec<String> {
        let Self::Folder(Files { folder, listed, .. }) = self else {
            return Vec::new();
        };
        let mut notes = Vec::new();
        if !listed.skipped.is_empty() {
            let names: Vec<_> = listed
                .skipped
                .iter()
                .map(|path| name(path, folder))
                .collect();
            notes.push(format!(
                "skipped {} files of {} that are no pictures: {}",
                names.len(),
                folder.display(),
                shortened(&names)
            ));
        }
        let is_below = |path: &&PathBuf| path.parent() != Some(folder);
        let below = listed.pictures.iter().filter(is_below).count();
        if below > 0 && protocol.networks().contains("inception/pytorch-fid") {
            let count = listed.pictures.len();
            notes.push(format!(
                "{below} of {count} pictures lie in sub-folders, which pytorch-fid does not read"
            ));
        }
        notes
    }

    /// The pictures with these indices.
    pub(crate) fn get(&self, indices: &[usize]) -> Result<Vec<Subject>> {
        match self {
            Self::Folder(files) => indices.iter().map(|&index| files.read(index)).collect(),
            Self::Generated(generator) => generator.generate(indices),
        }
    }

    /// Hashes of files as they are now; none of a model's pictures.
    pub(crate) fn hashes(&self, indices: &[usize]) -> Result<Option<Vec<String>>> {
        let Self::Folder(files) = self else {
            return Ok(None);
        };
        let hash = |&index: &usize| Ok(hash_of(&read_file(&files.listed.pictures[index])?));
        indices.iter().map(hash).collect::<Result<_>>().map(Some)
    }

    /// Name of a picture, for messages.
    pub(crate) fn label(&self, index: usize) -> String {
        match self {
            Self::Folder(files) => name(&files.listed.pictures[index], &files.folder),
            Self::Generated(_) => format!("picture {index}"),
        }
    }
}

fn name(path: &Path, folder: &Path) -> String {
    let path = path.strip_prefix(folder).unwrap_or(path);
    path.display().to_string()
}

/// Checks that the order of pictures is that of their prompts, and reports the pairs.
fn pair(folder: &Path, listed: &Folder, prompts: &[String]) -> Result<()> {
    let pictures = &listed.pictures;
    ensure!(
        prompts.len() == pictures.len(),
        "{} has {} pictures, for {} prompts",
        folder.display(),
        pictures.len(),
        prompts.len()
    );
    if let Some([first, second]) = listed.tie() {
        let [first, second] = [first, second].map(|path| name(path, folder));
        anyhow::bail!(
            "{}: the order of {first} and {second} is ambiguous, so prompts cannot be paired; number the pictures",
            folder.display()
        );
    }
    let pair = |index: usize| format!("{} – {:?}", name(&pictures[index], folder), prompts[index]);
    eprintln!(
        "pictures and prompts are paired in order: {}, …, {}",
        pair(0),
        pair(pictures.len() - 1)
    );
    Ok(())
}

impl Files {
    fn read(&self, index: usize) -> Result<Subject> {
        let path = &self.listed.pictures[index];
        let bytes = read_file(path)?;
        let decoded = decode(&bytes, path, self.orientation)?;
        Ok(Subject {
            hash: hash_of(&bytes),
            changes: Changes {
                oriented: usize::from(decoded.orientation != 1),
                transparent: usize::from(decoded.had_transparency),
            },
            image: decoded.image,
        })
    }
}

impl Generator {
    fn new(args: &Args, plan: &Plan, prompts: Vec<String>) -> Result<Self> {
        let last = args.seed.checked_add(prompts.len() as u64);
        ensure!(
            last.is_some(),
            "--seed {} is too large: each picture takes the next",
            args.seed
        );
        let source = args.model.source()?;
        let loader = crate::ModelArgs::loader(&source, &plan.device)?;
        let scheduler = loader.scheduler()?;
        let request = args.method.request(loader.default_method(), None)?;
        loader.check_request(&request.clone().with_prompts([""]))?;
        for warning in loader.warnings()? {
            eprintln!("warning: {warning}");
        }
        let record = json!({
            "model": source.hashes()?,
            "scheduler": scheduler,
            "method": request.method,
            "spacing": request.spacing,
            "guidance": request.guidance,
            "negative prompt": request.negative_prompt,
            "size": request.size,
            "rng": args.method.rng,
            "seed": args.seed,
            "dtype": source.options.dtype,
            "storage": source.options.storage,
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

    fn generate(&self, indices: &[usize]) -> Result<Vec<Subject>> {
        let prompts = indices.iter().map(|&index| self.prompts[index].clone());
        let request = self.request.clone().with_prompts(prompts);
        let seeds = indices.iter().map(|&index| self.seed + index as u64);
        let painting = self
            .pipeline
            .generate(&request, &mut Seeds::new(self.rng, seeds))?;
        let subject = |picture: &Picture| Subject {
            image: image(picture),
            hash: hash_of(&picture.bytes),
            changes: Changes::default(),
        };
        for warning in &painting.warnings {
            eprintln!("warning: {warning}");
        }
        Ok(painting.pictures().iter().map(subject).collect())
    }
}
