use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::weights::Weights;

/// Where the parts of a model are.
///
/// A model is a folder in the layout of diffusers, with a sub-folder of `config.json` and weights for each
/// component, or one file that holds the weights of all in the layout of the original training code
/// (`v1-5-pruned.ckpt`, `sd_turbo.safetensors`). Components can come from elsewhere than the rest.
#[derive(Clone, Debug)]
pub struct Model {
    root: PathBuf,
    /// The weights of a model in one file.
    file: Option<Weights>,
    /// Where the configurations of a single file are.
    configs: Option<PathBuf>,
    /// Components that come from elsewhere, a folder or a file of weights.
    replaced: BTreeMap<String, PathBuf>,
    variant: Option<String>,
}

/// What the tensors of each component begin with in a single file.
const PREFIXES: [(&str, &str); 6] = [
    ("unet", "model.diffusion_model."),
    ("vae", "first_stage_model."),
    ("text_encoder", "cond_stage_model.transformer."),
    ("text_encoder", "cond_stage_model.model."),
    ("text_encoder", "conditioner.embedders.0.transformer."),
    ("text_encoder", "conditioner.embedders.0.model."),
];

/// Names of files of weights, without what they end with.
const STEMS: [&str; 5] = [
    "diffusion_pytorch_model",
    "model",
    "pytorch_model",
    "open_clip_model",
    "open_clip_pytorch_model",
];
/// What they end with, the best first.
const ENDS: [&str; 4] = [
    "safetensors",
    "safetensors.index.json",
    "bin",
    "bin.index.json",
];
/// Lower precisions that are looked for when there is no other.
const HALF: &str = "fp16";

impl Model {
    /// A folder or a file that exists.
    ///
    /// # Errors
    ///
    /// If it does not, or is a damaged file.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        let metadata = std::fs::metadata(&root).map_err(|error| Error::read(&root, error))?;
        let file = match metadata.is_dir() {
            true => None,
            false => Some(Weights::open(&root)?),
        };
        Ok(Self {
            root,
            file,
            configs: None,
            replaced: BTreeMap::new(),
            variant: None,
        })
    }

    /// The same, with a component from elsewhere: from a folder (which may have a `config.json` of its own;
    /// otherwise that of the model holds), or a file of weights.
    pub fn with_component(mut self, component: &str, path: impl Into<PathBuf>) -> Self {
        self.replaced.insert(component.to_owned(), path.into());
        self
    }

    /// The same single file, with the configurations, tokenizer and scheduler of a folder in the layout of
    /// diffusers; its weights, if it has any, are not read.
    pub fn with_configs(mut self, folder: impl Into<PathBuf>) -> Self {
        self.configs = Some(folder.into());
        self
    }

    /// The same, with weights whose files have this in their names, `fp16` for
    /// `model.fp16.safetensors`, wherever a component has such a file.
    pub fn with_variant(mut self, variant: &str) -> Self {
        self.variant = Some(variant.to_owned());
        self
    }

    /// The folder or file itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All weights of a model in one file, as they are named there.
    pub fn single_file(&self) -> Option<&Weights> {
        self.file.as_ref()
    }

    /// Path of a file or sub-folder of the model; none if a single file has no configurations beside it.
    pub fn path(&self, relative: &str) -> Option<PathBuf> {
        let component = relative.split('/').next().unwrap_or(relative);
        if let Some(folder) = self.replaced.get(component) {
            let rest = relative[component.len()..].trim_start_matches('/');
            let path = folder.join(rest);
            if path.exists() {
                return Some(path);
            }
        }
        let folder = match &self.file {
            None => Some(&self.root),
            Some(_) => self.configs.as_ref(),
        };
        folder.map(|folder| folder.join(relative))
    }

    /// The files that the weights of a component are in; none if it has no such component.
    pub fn weight_files(&self, component: &str) -> Vec<PathBuf> {
        self.weights(component)
            .map(|weights| weights.files())
            .unwrap_or_default()
    }

    /// Whether it has weights of a component of this name.
    pub fn has(&self, component: &str) -> bool {
        self.weights(component).is_ok()
    }

    /// Path of a component's `config.json`; none if a single file has no configurations beside it.
    ///
    /// # Errors
    ///
    /// If there should be one and is not.
    pub fn config(&self, component: &str) -> Result<Option<PathBuf>, Error> {
        let relative = format!("{component}/config.json");
        match self.path(&relative) {
            None => Ok(None),
            Some(path) if path.is_file() => Ok(Some(path)),
            Some(_) => Err(self.missing(&relative)),
        }
    }

    /// Opens the weights of a component: those of the variant that was asked for, else of full precision, else
    /// `fp16`; safetensors before what `torch.save` wrote.
    ///
    /// # Errors
    ///
    /// If there are none, or the file is damaged.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        if let Some(path) = self.replaced.get(component) {
            if path.is_file() {
                return Ok(part(&Weights::open(path)?, component).unwrap_or(Weights::open(path)?));
            }
            return self.weights_in(path);
        }
        match &self.file {
            None => self.weights_in(&self.root.join(component)),
            Some(all) => part(all, component).ok_or_else(|| {
                let prefixes = PREFIXES.iter().filter(|(name, _)| *name == component);
                let prefixes: Vec<_> = prefixes.map(|(_, prefix)| *prefix).collect();
                self.missing(&format!("{component}: no tensor begins with {prefixes:?}"))
            }),
        }
    }

    fn weights_in(&self, folder: &Path) -> Result<Weights, Error> {
        let names = weight_names(self.variant.as_deref());
        match names.into_iter().find(|name| folder.join(name).is_file()) {
            Some(name) => Weights::open(folder.join(name)),
            None => Err(Error::MissingFile {
                folder: folder.to_owned(),
                wanted: format!(
                    "weights ({}.safetensors, {}.safetensors or the like)",
                    STEMS[0], STEMS[1]
                ),
            }),
        }
    }

    fn missing(&self, wanted: &str) -> Error {
        Error::MissingFile {
            folder: self.root.clone(),
            wanted: wanted.to_owned(),
        }
    }
}

/// Names of files that the weights of a component may be in, the best first: those of the variant, then of full
/// precision, then `fp16`.
pub(crate) fn weight_names(variant: Option<&str>) -> Vec<String> {
    let variants = [variant, None, Some(HALF)];
    let names = variants.into_iter().skip(usize::from(variant.is_none()));
    let names = names.flat_map(|variant| {
        ENDS.into_iter().flat_map(move |end| {
            STEMS.map(|stem| match variant {
                None => format!("{stem}.{end}"),
                // The variant of an index stands behind it: `model.safetensors.index.fp16.json`.
                Some(variant) if end.ends_with("index.json") => {
                    format!("{stem}.{}.{variant}.json", end.trim_end_matches(".json"))
                }
                Some(variant) => format!("{stem}.{variant}.{end}"),
            })
        })
    });
    names.collect()
}

/// The tensors of a component out of a file of many, if there are any.
fn part(all: &Weights, component: &str) -> Option<Weights> {
    let mut prefixes = PREFIXES.iter().filter(|(name, _)| *name == component);
    let (_, prefix) =
        prefixes.find(|(_, prefix)| all.names().any(|name| name.starts_with(prefix)))?;
    Some(all.strip_prefix(prefix))
}

/// Reads a JSON file.
///
/// # Errors
///
/// If it cannot be read or is not of that form; the error names the file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, error))?;
    serde_json::from_str(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}

/// Reads a component's `config.json` into `T`; what it does not say is as in `defaults`.
///
/// Options that `T` does not have are refused by name, unless the value is null or one that `accepted`
/// lists (options at which the component works as if they were not there). Keys that begin with an underscore are
/// notes and pass.
///
/// # Errors
///
/// If the file cannot be read or sets an option that is not supported.
pub fn read_config<T>(path: &Path, defaults: &T, accepted: &[(&str, Value)]) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize,
{
    let config: Map<String, Value> = read_json(path)?;
    let json = |source| Error::Json {
        path: path.to_owned(),
        source,
    };
    let Value::Object(mut all) = serde_json::to_value(defaults).map_err(json)? else {
        unreachable!("a configuration is a struct with names")
    };
    for (name, value) in config {
        if let Some(field) = all.get_mut(&name) {
            *field = value;
            continue;
        }
        let passes = name.starts_with('_')
            || value.is_null()
            || accepted
                .iter()
                .any(|(option, accepted)| *option == name && same(accepted, &value));
        if !passes {
            let expected: Vec<_> = accepted
                .iter()
                .filter(|(option, _)| *option == name)
                .map(|(_, value)| value)
                .collect();
            let expected = match expected.as_slice() {
                [] => "this option is not known".to_owned(),
                [value] => format!("expected {value}"),
                values => format!("expected one of {values:?}"),
            };
            let reason = format!("{name} = {value} is not supported; {expected}");
            return Err(Error::Config {
                path: path.to_owned(),
                reason,
            });
        }
    }
    serde_json::from_value(Value::Object(all)).map_err(json)
}

/// Equality of JSON values that takes 1 and 1.0 for the same number.
fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}
