//! Distances between two sets of images, based on their features.
//!
//! A network turns each image into a row of [`Features`]; this crate compares two sets of rows, independently of the network and
//! the images. Distances close to a threshold are recomputed in f64; covariances are f64 throughout.
//!
//! | measure | function | reference |
//! |---|---|---|
//! | Fréchet distance (FID) | [`frechet_distance`] | Heusel et al., arXiv 1706.08500, equation 6 |
//! | kernel distance (KID) | [`kernel_distance`] | Bińkowski et al., arXiv 1801.01401, §3 |
//! | precision and recall | [`precision_recall`] | Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2 |
//! | density and coverage | [`density_coverage`] | Naeem et al., arXiv 2002.09797, equations 3 and 4 |
//! | inception score | [`inception_score`] | Salimans et al., arXiv 1606.03498, §4 |
//! | FID∞ | [`frechet_infinity`] | Chong & Forsyth, arXiv 1911.07023, §4 |
//! | CMMD | [`gaussian_mmd`] | Jayasumana et al., arXiv 2401.09603, equation 4 |
//! | diversity of a prompt's images | [`diversity`] | |
//! | nearest image of a training set | [`nearest`] | |
//! | standard error of any of them | [`standard_error`] | Efron, The bootstrap, 1979 |
//! | standard errors of neighbour statistics | [`half_sample_errors`] | Shao and Wu, Jackknife variance, 1989 |
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod diversity;
mod error;
mod features;
mod file;
mod frechet;
mod kernel;
mod moments;
mod neighbours;
mod resampling;
mod score;

pub use diversity::diversity;
pub use error::Error;
pub use features::Features;
pub use file::Statistics;
pub use frechet::frechet_distance;
pub use kernel::{gaussian_mmd, kernel_distance, squared_mmd};
pub use moments::{Gaussian, Moments};
pub use neighbours::{
    DensityCoverage, PrecisionRecall, density_coverage, nearest, precision_recall,
};
pub use resampling::{
    Groups, at_infinity, frechet_infinity, half_sample_errors, standard_error, subset,
};
pub use score::inception_score;

/// The matrix type of [`Gaussian::covariance`].
pub use faer::Mat;
/// The random number generator of [`subset`] and [`Groups::subset`].
pub use rand_chacha::ChaCha8Rng;
