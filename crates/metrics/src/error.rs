use std::path::PathBuf;

/// Errors of comparing features or reading statistics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two sets of features have different widths: they come from different networks.
    #[error(
        "expected features of width {expected}, found {found}: both sets need the same network"
    )]
    Width {
        /// Width of the first set.
        expected: usize,
        /// Width of the other set.
        found: usize,
    },
    /// Too few rows for a measure.
    #[error("{what} needs {needed} images, found {found}")]
    TooFew {
        /// The measure.
        what: &'static str,
        /// Number of rows needed.
        needed: usize,
        /// Number of rows found.
        found: usize,
    },
    /// A feature is NaN or infinite.
    #[error(
        "row {row} of the features has a NaN or an infinity; check the network's weights and precision"
    )]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// A file does not contain a mean and a covariance.
    #[error("{path} does not contain a mean and a covariance: {reason}")]
    Statistics {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// An eigenvalue decomposition did not converge.
    #[error("the eigenvalue decomposition of a covariance did not converge")]
    Eigenvalues,
}
