use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
use crate::hub::HubError;

/// Errors of weight files and model folders.
///
/// Messages include their causes, so [`source`](std::error::Error::source) is always `None`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The backend of the device to load to has no kernels in this build.
    #[error(transparent)]
    Device(#[from] swiftbrush_kernels::Error),
    /// The operating system failed to read or write.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// The attempted action: "read" or "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        cause: io::Error,
    },
    /// The file violates its format.
    #[error("{path} is damaged: {reason}; download or save it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The violation.
        reason: String,
    },
    /// The file is of a different kind than expected.
    #[error("{path} is {found}")]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// The kind of file found, and what to do.
        found: String,
    },
    /// A tensor has an element type that cannot be represented.
    #[error(
        "{path}: tensor {name} has the unsupported element type {found}; convert the file to F16, BF16 or F32"
    )]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type, as the file names it.
        found: String,
    },
    /// A tensor contains, or would contain, a NaN or an infinity.
    #[error("{path}: tensor {name} {reason}")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value found, and what to do.
        reason: String,
    },
    /// Quantised weights that cannot be used, or weights that cannot be quantised.
    #[error("{path}: {reason}")]
    Quantized {
        /// The file.
        path: PathBuf,
        /// The tensor or the layout, and what is wrong with it.
        reason: String,
    },
    /// A JSON file cannot be parsed into the expected form.
    #[error("{path}: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        cause: serde_json::Error,
    },
    /// A configuration sets an unsupported option, or contradicts itself.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// A model folder lacks a file.
    #[error("{folder} has no {wanted}")]
    MissingFile {
        /// The model folder.
        folder: PathBuf,
        /// The expected file or files.
        wanted: String,
    },
    /// A path that does not exist but looks like a name on the Hugging Face hub.
    #[error(
        "{name}: no such file or folder; to load it by name from the Hugging Face hub, use `Model::find` with the \
        feature `hub`"
    )]
    HubName {
        /// The name.
        name: String,
    },
    /// A model on the Hugging Face hub cannot be used.
    #[cfg(feature = "hub")]
    #[error("{id}: {reason}")]
    Hub {
        /// Name of the model, or of an invalid environment variable.
        id: String,
        /// The reason, and what to do.
        reason: HubError,
    },
    /// The file has no tensor of a given name.
    #[error("{path} has no tensor {name}")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The file does not contain the weights of the module.
    #[error("{path} does not fit the model:{mismatch}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// All differences.
        mismatch: Box<Mismatch>,
    },
}

impl Error {
    /// Wraps an error from reading a file.
    pub fn read(path: impl AsRef<Path>, cause: io::Error) -> Self {
        Self::Io {
            action: "read",
            path: path.as_ref().to_owned(),
            cause,
        }
    }

    /// Wraps an error from writing a file.
    pub fn write(path: impl AsRef<Path>, cause: io::Error) -> Self {
        Self::Io {
            action: "write",
            path: path.as_ref().to_owned(),
            cause,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Differences between a file and a module.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Mismatch {
    /// Parameters of the module that are not in the file.
    pub missing: Vec<String>,
    /// Tensors of the file that match no parameter.
    pub unused: Vec<String>,
    /// Name, expected shape and actual shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Name and element type of parameters that are not stored as floating-point numbers.
    pub not_float: Vec<(String, String)>,
    /// Tensors that contain a NaN or an infinity.
    pub not_finite: Vec<String>,
    /// Name of tensors with values beyond the range of the element type that they are loaded in, and that type.
    pub out_of_range: Vec<(String, String)>,
}

impl Mismatch {
    /// Returns whether there are no differences.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unused.is_empty()
            && self.misshapen.is_empty()
            && self.not_float.is_empty()
            && self.not_finite.is_empty()
            && self.out_of_range.is_empty()
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let misshapen = self.misshapen.iter().map(|(name, expected, found)| {
            format!("{name} (expected {expected:?}, found {found:?})")
        });
        let not_float = self
            .not_float
            .iter()
            .map(|(name, found)| format!("{name} ({found})"));
        line(f, "missing", &self.missing)?;
        line(f, "unused", &self.unused)?;
        line(f, "with the wrong shape", &misshapen.collect::<Vec<_>>())?;
        line(
            f,
            "without floating-point values",
            &not_float.collect::<Vec<_>>(),
        )?;
        line(f, "with a NaN or an infinity", &self.not_finite)?;
        let out_of_range = self
            .out_of_range
            .iter()
            .map(|(name, dtype)| format!("{name} ({dtype})"));
        line(
            f,
            "with values beyond the range of the element type to load",
            &out_of_range.collect::<Vec<_>>(),
        )
    }
}

fn line(f: &mut fmt::Formatter<'_>, kind: &str, items: &[String]) -> fmt::Result {
    match items.len() {
        0 => Ok(()),
        count => write!(f, "\n  {count} {kind}: {}", abridged(items)),
    }
}

/// Joins the items of an error message with commas, truncated after eight: "a, b and 3 more".
pub fn abridged<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    let shown = items[..items.len().min(SHOWN)].join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}
