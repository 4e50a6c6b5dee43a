use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Model, sha256};
use swiftbrush_lora::AdapterFile;

use crate::{Error, LoadOptions, Loader};

/// The files of a model and the options of its loader: everything needed to build a [`Loader`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Source {
    /// Folder or file of the model.
    pub model: PathBuf,
    /// Folder with the configurations of a single file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configs: Option<PathBuf>,
    /// Replaced components.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, PathBuf>,
    /// Part of the names of weight files, such as `fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The options of the loader.
    #[serde(flatten)]
    pub options: LoadOptions,
    /// Adapters and their strengths, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<(PathBuf, f64)>,
}

/// The role of adapters among the files of a model.
const ADAPTER: &str = "lora";

impl Source {
    /// Creates a source of a model in f32, with its full autoencoder.
    pub fn new(model: impl AsRef<Path>) -> Self {
        Self {
            model: model.as_ref().to_owned(),
            configs: None,
            components: BTreeMap::new(),
            variant: None,
            options: LoadOptions::default(),
            adapters: Vec::new(),
        }
    }

    /// Opens the model.
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

    /// Creates the loader of the model.
    ///
    /// # Errors
    ///
    /// If the model or an adapter is missing or damaged.
    pub fn loader(&self, device: &Device) -> Result<Loader, Error> {
        let mut loader = Loader::new(self.model()?, device).with_options(self.options.clone());
        for (path, strength) in &self.adapters {
            loader = loader.with_adapter(AdapterFile::open(path)?, *strength);
        }
        Ok(loader)
    }

    /// SHA-256 of every file with weights or the vocabulary, by role and name:
    /// `unet/diffusion_pytorch_model.safetensors`.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is not a regular file.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>, Error> {
        self.hashes_in(&self.model()?)
    }

    /// Like [`hashes`](Self::hashes), of a model that is already open, such as one of another source than the operating
    /// system.
    ///
    /// # Errors
    ///
    /// Same as there.
    pub fn hashes_in(&self, model: &Model) -> Result<BTreeMap<String, String>, Error> {
        let decoder = self.options.decoder.component();
        let components = ["text_encoder", self.options.denoiser.as_str(), decoder];
        let weights = components.into_iter().flat_map(|component| {
            let files = model.weight_files(component).into_iter();
            files.map(move |path| (component, label(component, &path), path))
        });
        let tokenizer = ["vocab.json", "merges.txt", "tokenizer.json"]
            .into_iter()
            .filter_map(|file| model.path(&format!("tokenizer/{file}")))
            .filter(|path| model.is_file(path))
            .map(|path| ("tokenizer", label("tokenizer", &path), path));
        let adapters = self.adapter_labels().into_iter().zip(&self.adapters);
        let adapters = adapters.map(|(label, (path, _))| (ADAPTER, label, path.clone()));
        // A single file contains the weights of several components.
        let mut known: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut hashes = BTreeMap::new();
        for (role, label, path) in weights.chain(tokenizer).chain(adapters) {
            let hash = match known.get(&path) {
                Some(hash) => hash.clone(),
                None if role == ADAPTER => hash_of(&path, u64::MAX)?,
                None => model.sha256(&path)?,
            };
            hashes.insert(label, hash.clone());
            known.insert(path, hash);
        }
        Ok(hashes)
    }

    /// The keys of the adapters in [`hashes`](Self::hashes). PEFT gives every file the same name, so repeated ones are numbered:
    /// `lora/adapter_model.safetensors`, `lora/adapter_model.safetensors (2)`.
    pub(crate) fn adapter_labels(&self) -> Vec<String> {
        let mut counts = BTreeMap::<_, usize>::new();
        let labels = self.adapters.iter().map(|(path, _)| {
            let label = label(ADAPTER, path);
            let count = counts.entry(label.clone()).or_default();
            *count += 1;
            match count {
                1 => label,
                count => format!("{label} ({count})"),
            }
        });
        labels.collect()
    }

    /// The source with names instead of paths: that of the hub (`owner/name@revision`) for a model in its cache, else
    /// the name of the file or folder. Paths would reveal details of the machine.
    pub fn without_paths(&self) -> Self {
        Self {
            model: name_of(&self.model),
            configs: self.configs.as_deref().map(name_of),
            components: self
                .components
                .iter()
                .map(|(component, path)| (component.clone(), name_of(path)))
                .collect(),
            adapters: self
                .adapters
                .iter()
                .map(|(path, strength)| (name_of(path), *strength))
                .collect(),
            ..self.clone()
        }
    }

    /// The source with every path that does not exist replaced by its place in `folder`, if it exists there.
    pub fn found_in(&self, folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        let find = |path: &Path| match folder.join(path) {
            found if !path.exists() && found.exists() => found,
            _ => path.to_owned(),
        };
        Self {
            model: find(&self.model),
            configs: self.configs.as_deref().map(find),
            components: self
                .components
                .iter()
                .map(|(component, path)| (component.clone(), find(path)))
                .collect(),
            adapters: self
                .adapters
                .iter()
                .map(|(path, strength)| (find(path), *strength))
                .collect(),
            ..self.clone()
        }
    }

    /// Checks values that come from a file.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.options.check()?;
        check_strengths(self.adapters.iter().map(|(_, strength)| *strength))
    }
}

/// Checks the strengths of adapters.
pub(crate) fn check_strengths(strengths: impl IntoIterator<Item = f64>) -> Result<(), Error> {
    match strengths.into_iter().find(|strength| !strength.is_finite()) {
        Some(strength) => Err(Error::Options(format!(
            "the strength of an adapter is {strength}; expected a number"
        ))),
        None => Ok(()),
    }
}

/// The name of a file or folder without its path.
pub(crate) fn name_of(path: &Path) -> PathBuf {
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    let in_cache = names.iter().enumerate().find_map(|(index, name)| {
        let (owner, name) = name.strip_prefix("models--")?.split_once("--")?;
        let [snapshots, revision, rest @ ..] = names.get(index + 1..)? else {
            return None;
        };
        let name = [format!("{owner}/{name}@{revision}")]
            .into_iter()
            .chain(rest.iter().map(|name| name.to_string()))
            .collect::<PathBuf>();
        (snapshots == "snapshots").then_some(name)
    });
    in_cache.unwrap_or_else(|| PathBuf::from(path.file_name().unwrap_or(path.as_os_str())))
}

fn label(role: &str, path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("{role}/{}", name.to_string_lossy())
}

/// SHA-256 of a regular file of at most `limit` bytes, because a path in a record may be that of an endless device.
pub(crate) fn hash_of(path: &Path, limit: u64) -> Result<String, Error> {
    let refuse = |reason: String| Error::Picture {
        path: path.to_owned(),
        reason,
    };
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refuse("expected a regular file".to_owned()));
    }
    if metadata.len() > limit {
        return Err(refuse(format!(
            "{} bytes; expected at most {limit}",
            metadata.len()
        )));
    }
    Ok(sha256(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names() {
        for (path, name) in [
            ("/home/me/models/v1-5.safetensors", "v1-5.safetensors"),
            ("models/sd-turbo/", "sd-turbo"),
            (
                "/home/me/.cache/huggingface/hub/models--stabilityai--sd-turbo/snapshots/b261bac6",
                "stabilityai/sd-turbo@b261bac6",
            ),
            (
                "/c/hub/models--a--b--c/snapshots/1/unet/x.safetensors",
                "a/b--c@1/unet/x.safetensors",
            ),
        ] {
            assert_eq!(name_of(Path::new(path)), PathBuf::from(name));
        }
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_hashed() {
        let folder = tempfile::tempdir().expect("a writable folder");
        let file = folder.path().join("a.png");
        std::fs::write(&file, "abc").expect("a writable folder");
        assert!(hash_of(&file, 3).is_ok());
        for (path, limit) in [
            (file.as_path(), 2),
            (folder.path(), 9),
            (Path::new("/dev/zero"), 9),
        ] {
            assert!(hash_of(path, limit).is_err(), "{}", path.display());
        }
    }
}
