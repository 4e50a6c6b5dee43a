use std::path::PathBuf;

use swiftbrush_checkpoint::{Error as FileError, abridged};

/// Errors of weight interpolation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written, or a tensor contains, or would contain, a NaN or an infinity.
    #[error(transparent)]
    File(#[from] FileError),
    /// λ is not a finite number.
    #[error("lambda is {0}, expected a finite number")]
    Lambda(f64),
    /// A folder of a whole model instead of one of its components.
    #[error("{folder} has several components; name one of {}", abridged(.components))]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Its components.
        components: Vec<String>,
    },
    /// The files belong to different models.
    #[error("{a} and {b} are not the same model: {}", abridged(.differences))]
    Different {
        /// The first file.
        a: PathBuf,
        /// The second file.
        b: PathBuf,
        /// The differences, one per tensor or header entry.
        differences: Vec<String>,
    },
    /// The modules differ in the names or shapes of their parameters.
    #[error("the modules are not the same model: {}", abridged(.0))]
    Modules(Vec<String>),
}
