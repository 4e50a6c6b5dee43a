use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::archive::Archive;
use crate::error::Error;

/// A model folder in the layout of diffusers: a sub-folder with `config.json` and weights for each
/// component.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// A folder that exists.
    ///
    /// # Errors
    ///
    /// If it does not, or is a file.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        let entries = std::fs::read_dir(&root);
        entries.map_err(|error| Error::read(&root, error))?;
        Ok(Self { root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a file inside it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Whether it has a component of this name.
    pub fn has(&self, component: &str) -> bool {
        self.path(component).is_dir()
    }

    /// Reads a JSON file.
    ///
    /// # Errors
    ///
    /// If it is missing or not of that form.
    pub fn json<T: DeserializeOwned>(&self, relative: &str) -> Result<T, Error> {
        let path = self.path(relative);
        if !path.is_file() {
            return Err(self.missing(relative));
        }
        read_json(&path)
    }

    /// Opens the weights of a component: `diffusion_pytorch_model` or `model`, full precision before
    /// `fp16`, always safetensors.
    ///
    /// # Errors
    ///
    /// If there are none, or the file is damaged.
    pub fn weights(&self, component: &str) -> Result<Archive, Error> {
        const NAMES: [&str; 4] = [
            "diffusion_pytorch_model.safetensors",
            "model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
            "model.fp16.safetensors",
        ];
        let paths = NAMES.map(|name| self.root.join(component).join(name));
        match paths.into_iter().find(|path| path.is_file()) {
            Some(path) => Archive::open(path),
            None => Err(self.missing(&format!("{component}/ with one of {}", NAMES.join(", ")))),
        }
    }

    fn missing(&self, wanted: &str) -> Error {
        Error::MissingFile {
            folder: self.root.clone(),
            wanted: wanted.to_owned(),
        }
    }
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

/// Reads a component's `config.json` into `T`, refusing by name every option that `T` does not have,
/// unless its value is null or one that `accepted` lists for it (options at which the component works
/// as if they were not there). Keys that begin with an underscore are notes and pass.
///
/// # Errors
///
/// If the file cannot be read or sets an option that is not supported.
pub fn read_config<T>(path: &Path, accepted: &[(&str, Value)]) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize + Default,
{
    let config: Map<String, Value> = read_json(path)?;
    let json = |source| Error::Json {
        path: path.to_owned(),
        source,
    };
    let known = serde_json::to_value(T::default()).map_err(json)?;
    for (name, value) in &config {
        let passes = known.get(name).is_some()
            || name.starts_with('_')
            || value.is_null()
            || accepted
                .iter()
                .any(|(option, accepted)| option == name && same(accepted, value));
        if !passes {
            let expected: Vec<_> = accepted
                .iter()
                .filter(|(option, _)| option == name)
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
    serde_json::from_value(Value::Object(config)).map_err(json)
}

/// Equality of JSON values that takes 1 and 1.0 for the same number.
fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}
