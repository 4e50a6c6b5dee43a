use std::path::PathBuf;

/// Features or files that nothing can be said of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two sets of features of different networks, or of one differently cut.
    #[error("features of {expected} and of {found} numbers cannot be compared")]
    Width {
        /// Numbers of a row of the first.
        expected: usize,
        /// Numbers of a row of the other.
        found: usize,
    },
    /// Too few rows for what was asked.
    #[error("{what} needs {needed} pictures, there are {found}")]
    TooFew {
        /// What was asked.
        what: &'static str,
        /// Rows that it takes.
        needed: usize,
        /// Rows that there are.
        found: usize,
    },
    /// A NaN or an infinity.
    #[error("row {row} of the features has a NaN or an infinity")]
    NotFinite {
        /// The first row that has one.
        row: usize,
    },
    /// A file that cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds something else than means and a covariance.
    #[error("{path} does not hold a mean and a covariance: {reason}")]
    Statistics {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A decomposition that did not come to an end.
    #[error("the eigenvalues of a covariance cannot be found")]
    Eigenvalues,
}
