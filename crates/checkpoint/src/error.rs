use std::fmt;
use std::path::{Path, PathBuf};

/// What can be wrong with a file of weights or a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file breaks the safetensors format.
    #[error("{path} is not a whole safetensors file: {reason}; download or save it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which promise of the format is broken.
        reason: String,
    },
    /// A JSON file cannot be read as what it should be.
    #[error("{path} is not a valid configuration")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A configuration asks for what is not implemented, or contradicts itself.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the field.
        reason: String,
    },
    /// A model folder lacks a file.
    #[error("{folder} has no {wanted}")]
    MissingFile {
        /// The model folder.
        folder: PathBuf,
        /// The file, or the names that would have done.
        wanted: String,
    },
    /// A model of the Hugging Face hub that cannot be had.
    #[error("{id}: {reason}")]
    Hub {
        /// Its name.
        id: String,
        /// Why, and what to try.
        reason: String,
        /// Whether it is not there at all.
        is_missing: bool,
    },
    /// A tensor that was asked for by name is not in the file.
    #[error("{path} has no tensor {name}")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The file does not hold the weights of the module.
    #[error("{path} does not fit the model:{mismatch}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// All that does not fit.
        mismatch: Box<Mismatch>,
    },
}

impl Error {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    }
}

/// Everything in which a file and a module differ.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Mismatch {
    /// Parameters of the module that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the file that the module has no place for.
    pub unused: Vec<String>,
    /// Name, shape expected, shape found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Tensors that hold a NaN or an infinity.
    pub not_finite: Vec<String>,
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unused.is_empty()
            && self.misshapen.is_empty()
            && self.not_finite.is_empty()
    }
}

/// Names shown of each list; the rest is counted.
const SHOWN: usize = 8;

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let misshapen = self.misshapen.iter().map(|(name, expected, found)| {
            format!("{name} (expected {expected:?}, found {found:?})")
        });
        list(f, "missing", self.missing.iter().cloned())?;
        list(f, "unused", self.unused.iter().cloned())?;
        list(f, "of another shape", misshapen)?;
        list(
            f,
            "with a NaN or an infinity",
            self.not_finite.iter().cloned(),
        )
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    items: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    let count = items.len();
    if count == 0 {
        return Ok(());
    }
    write!(
        f,
        "\n  {count} {what}: {}",
        items.take(SHOWN).collect::<Vec<_>>().join(", ")
    )?;
    if count > SHOWN {
        write!(f, " and {} more", count - SHOWN)
    } else {
        Ok(())
    }
}
