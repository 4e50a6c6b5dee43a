use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use swiftbrush_kernels::Access;

use crate::error::{Error, abridged};
use crate::files::{FileSource, Files};
use crate::hub::is_hub_name;
use crate::json::{read_config_in, read_json_in};
use crate::select::{HALF, Library, is_of_variant, weight_names};
use crate::weights::Weights;
use crate::write::hexadecimal;

/// The files of a model.
///
/// A model is a folder in diffusers' layout, with a sub-folder for each component that contains `config.json` and
/// weights, or one file with all weights in the layout of the original training code (`v1-5-pruned.ckpt`,
/// `sd_turbo.safetensors`). Individual components can be replaced.
///
/// # Contract
///
/// Weights are memory-mapped, not copied: the files of the model must not be written to in place or truncated while
/// anything loaded from it is in use. Otherwise weights change after validation, and the process may be killed by
/// `SIGBUS`. Renaming another file over a mapped one is safe. [`with_owned_weights`](Self::with_owned_weights) copies
/// instead.
///
/// # Examples
///
/// ```
/// # use std::{collections::HashMap, fs};
/// # use burn::tensor::TensorData;
/// use swiftbrush_checkpoint::{LazyTensor, Model, write_tensors};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let scale = LazyTensor::ready("scale", TensorData::from([1.0f32, 2.0]));
/// let file = folder.path().join("unet/diffusion_pytorch_model.safetensors");
/// write_tensors(&file, vec![scale], HashMap::new())?;
///
/// let model = Model::open(folder.path())?;
/// let weights = model.weights("unet")?;
/// assert_eq!(weights.shape("scale"), Some(&[2][..]));
/// assert!(!model.has("vae"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    files: Files,
    root: PathBuf,
    /// The weights of a single-file model.
    file: Option<Weights>,
    /// The folder with the configurations of a single-file model.
    configs: Option<PathBuf>,
    /// Replaced components: folders or weight files.
    replaced: BTreeMap<String, PathBuf>,
    variant: Option<String>,
    access: Access,
}

/// Prefixes of the tensors of each component in a single file.
const PREFIXES: [(&str, &str); 6] = [
    ("unet", "model.diffusion_model."),
    ("vae", "first_stage_model."),
    ("text_encoder", "cond_stage_model.transformer."),
    ("text_encoder", "cond_stage_model.model."),
    ("text_encoder", "conditioner.embedders.0.transformer."),
    ("text_encoder", "conditioner.embedders.0.model."),
];

impl Model {
    /// Opens a folder or a file. Only the header of a file is read.
    ///
    /// # Errors
    ///
    /// If it does not exist or is damaged.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, Error> {
        let root = root.as_ref();
        let metadata = fs::metadata(root).map_err(|error| match root.to_str() {
            Some(name) if error.kind() == NotFound && is_hub_name(name) => Error::HubName {
                name: name.to_owned(),
            },
            _ => Error::read(root, error),
        })?;
        let file = match metadata.is_dir() {
            true => None,
            false => Some(Weights::open(root)?),
        };
        Ok(Self::of(Files::System, root, file))
    }

    /// Opens a folder or a file of another source than the operating system. All paths of the model, including those of
    /// replaced components, then refer to that source.
    ///
    /// # Errors
    ///
    /// If there is nothing at `root`, or a file is damaged.
    pub fn from_source(root: impl AsRef<Path>, source: Arc<dyn FileSource>) -> Result<Self, Error> {
        let (root, files) = (root.as_ref(), Files::Source(source));
        let file = match files.is_file(root) {
            true => Some(Weights::open_in(&files, root, Access::Mapped)?),
            false if files.exists(root) => None,
            false => return Err(Error::read(root, NotFound.into())),
        };
        Ok(Self::of(files, root, file))
    }

    fn of(files: Files, root: &Path, file: Option<Weights>) -> Self {
        Self {
            files,
            root: root.to_owned(),
            file,
            configs: None,
            replaced: BTreeMap::new(),
            variant: None,
            access: Access::Mapped,
        }
    }

    /// Copies weights when they are read instead of memory-mapping their files. Later changes to the files then have no
    /// effect, but loading takes more time and memory.
    ///
    /// # Errors
    ///
    /// If a single file cannot be opened again.
    pub fn with_owned_weights(mut self) -> Result<Self, Error> {
        self.access = Access::Owned;
        if self.file.is_some() {
            self.file = Some(Weights::open_in(&self.files, &self.root, self.access)?);
        }
        Ok(self)
    }

    /// Replaces a component with a weight file, or with another folder, whose `config.json` is used if it has one.
    pub fn with_component(mut self, component: &str, path: impl AsRef<Path>) -> Self {
        self.replaced
            .insert(component.to_owned(), path.as_ref().to_owned());
        self
    }

    /// Names of the components that were replaced.
    pub fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.keys().map(String::as_str)
    }

    /// Takes the configurations, tokenizer and scheduler of a single-file model from a folder in diffusers' layout.
    /// Weights in that folder are ignored.
    pub fn with_configs(mut self, folder: impl AsRef<Path>) -> Self {
        self.configs = Some(folder.as_ref().to_owned());
        self
    }

    /// Prefers the weights of a variant, such as `fp16` for `model.fp16.safetensors`, in components that have it. If no
    /// component does, loading weights fails.
    pub fn with_variant(mut self, variant: &str) -> Self {
        self.variant = Some(variant.to_owned());
        self
    }

    /// The folder or file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All weights of a single-file model, under their names in the file.
    pub fn single_file(&self) -> Option<&Weights> {
        self.file.as_ref()
    }

    /// The path of a file or sub-folder of the model; `None` for a single file without configurations.
    pub fn path(&self, relative: &str) -> Option<PathBuf> {
        let component = relative.split('/').next().unwrap_or(relative);
        if let Some(folder) = self.replaced.get(component) {
            let rest = relative[component.len()..].trim_start_matches('/');
            let path = folder.join(rest);
            if self.files.exists(&path) {
                return Some(path);
            }
        }
        let folder = match &self.file {
            None => Some(&self.root),
            Some(_) => self.configs.as_ref(),
        };
        folder.map(|folder| folder.join(relative))
    }

    /// The files with the weights of a component; empty if there is no such component.
    pub fn weight_files(&self, component: &str) -> Vec<PathBuf> {
        self.weights(component)
            .map(|weights| weights.files())
            .unwrap_or_default()
    }

    /// Returns whether the weights of a component can be opened.
    pub fn has(&self, component: &str) -> bool {
        self.weights(component).is_ok()
    }

    /// The path of a component's `config.json`; `None` for a single file without configurations.
    ///
    /// # Errors
    ///
    /// If a folder does not have it.
    pub fn config(&self, component: &str) -> Result<Option<PathBuf>, Error> {
        let relative = format!("{component}/config.json");
        match self.path(&relative) {
            None => Ok(None),
            Some(path) if self.is_file(&path) => Ok(Some(path)),
            Some(_) => Err(self.missing(&relative)),
        }
    }

    /// Returns whether the model's files are the operating system's, and not of [another source](Self::from_source).
    pub fn is_in_file_system(&self) -> bool {
        matches!(self.files, Files::System)
    }

    /// Returns whether there is a file at a path, such as one of [`path`](Self::path).
    pub fn is_file(&self, path: impl AsRef<Path>) -> bool {
        self.files.is_file(path.as_ref())
    }

    /// Returns whether there is a file or folder at a path.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.files.exists(path.as_ref())
    }

    /// Reads a text file of the model, such as `tokenizer/merges.txt`.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is not UTF-8.
    pub fn read_text(&self, path: impl AsRef<Path>) -> Result<String, Error> {
        self.files.read_to_string(path.as_ref())
    }

    /// Reads a JSON file of the model; see [`read_json`](crate::read_json).
    ///
    /// # Errors
    ///
    /// If it cannot be read or does not have the form of `T`.
    pub fn read_json<T: DeserializeOwned>(&self, path: impl AsRef<Path>) -> Result<T, Error> {
        read_json_in(&self.files, path.as_ref())
    }

    /// Reads a configuration of the model; see [`read_config`](crate::read_config).
    ///
    /// # Errors
    ///
    /// Same as there.
    pub fn read_config<T: DeserializeOwned + Serialize>(
        &self,
        path: impl AsRef<Path>,
        defaults: &T,
        accepted: &[(&str, Value)],
    ) -> Result<T, Error> {
        read_config_in(&self.files, path.as_ref(), defaults, accepted)
    }

    /// Opens a weight file of the model that is not the one of a component.
    ///
    /// # Errors
    ///
    /// Same as [`Weights::open`].
    pub fn open_weights(&self, path: impl AsRef<Path>) -> Result<Weights, Error> {
        Weights::open_in(&self.files, path.as_ref(), self.access)
    }

    /// The SHA-256 of a file of the model in hexadecimal; see [`sha256`](crate::sha256).
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn sha256(&self, path: impl AsRef<Path>) -> Result<String, Error> {
        const BLOCK: u64 = 1 << 20;
        let path = path.as_ref();
        if let Files::System = self.files {
            return crate::sha256(path);
        }
        let file = self.files.open(path, self.access)?;
        let mut hasher = Sha256::new();
        for start in (0..file.len()).step_by(BLOCK as usize) {
            let block = file.read(start..file.len().min(start + BLOCK));
            hasher.update(block.map_err(|error| Error::read(path, error))?);
        }
        Ok(hexadecimal(&hasher.finalize()))
    }

    /// Opens the weights of a component. Among several files, it chooses as diffusers does, or as transformers does for
    /// encoders: the variant, then full precision, then `fp16`; safetensors before pickles; and, for diffusers only,
    /// shards before a whole file.
    ///
    /// # Errors
    ///
    /// If there are no weights, no component has the variant, or the file is damaged.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        if let Some(path) = self.replaced.get(component) {
            if !self.is_file(path) {
                return self.weights_in(path, component);
            }
            let all = self.open_weights(path)?;
            return Ok(part(&all, component).unwrap_or(all));
        }
        match &self.file {
            None => self.weights_in(&self.root.join(component), component),
            Some(all) => part(all, component).ok_or_else(|| {
                let prefixes = PREFIXES.iter().filter(|(name, _)| *name == component);
                let prefixes = abridged(prefixes.map(|(_, prefix)| format!("`{prefix}`")));
                self.missing(&match prefixes.is_empty() {
                    true => format!("{component}: single files do not contain one"),
                    false => format!("{component}: no tensor begins with {prefixes}"),
                })
            }),
        }
    }

    fn weights_in(&self, folder: &Path, component: &str) -> Result<Weights, Error> {
        let library = Library::of_folder(&self.files, folder, component);
        let variant = self.variant.as_deref();
        let names = weight_names(library, variant);
        let Some(name) = names
            .into_iter()
            .find(|name| self.is_file(folder.join(name)))
        else {
            return Err(self.no_weights(folder, library));
        };
        match variant {
            Some(variant) if !is_of_variant(&name, variant) => self.check_variant(variant)?,
            _ => {}
        }
        let path = folder.join(&name);
        let weights = self.open_weights(&path)?;
        let is_substitute = is_of_variant(&name, HALF) && variant != Some(HALF);
        Ok(match is_substitute {
            true => weights.with_note(format!(
                "{}: used because the component has no weights in full precision",
                path.display()
            )),
            false => weights,
        })
    }

    fn no_weights(&self, folder: &Path, library: Library) -> Error {
        let expected = match library {
            Library::Diffusers => "diffusion_pytorch_model.safetensors",
            Library::Transformers => "model.safetensors",
        };
        let present = self.files.names(folder);
        Error::MissingFile {
            folder: folder.to_owned(),
            wanted: match present.is_empty() {
                true => format!("weights (expected {expected})"),
                false => format!("weights (expected {expected}, found {})", abridged(present)),
            },
        }
    }

    /// Fails if no component has the variant. As in diffusers, a component without it is loaded as it is if others have it.
    fn check_variant(&self, variant: &str) -> Result<(), Error> {
        let folders = self.files.folders(&self.root).into_iter();
        let folders = folders.chain(self.replaced.values().cloned());
        let files: BTreeSet<_> = folders
            .flat_map(|folder| self.files.names(&folder))
            .collect();
        if self.file.is_some() || files.iter().any(|name| is_of_variant(name, variant)) {
            return Ok(());
        }
        let weights = files.into_iter().filter(|name| {
            [".safetensors", ".bin"]
                .iter()
                .any(|end| name.ends_with(end))
        });
        Err(self.missing(&format!(
            "weights of the variant `{variant}`; it has {}",
            abridged(weights)
        )))
    }

    fn missing(&self, wanted: &str) -> Error {
        Error::MissingFile {
            folder: self.root.clone(),
            wanted: wanted.to_owned(),
        }
    }
}

/// The tensors of one component of a single-file model, if there are any.
fn part(all: &Weights, component: &str) -> Option<Weights> {
    let mut prefixes = PREFIXES.iter().filter(|(name, _)| *name == component);
    let (_, prefix) =
        prefixes.find(|(_, prefix)| all.names().any(|name| name.starts_with(prefix)))?;
    Some(all.strip_prefix(prefix))
}
