use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::{Error, Features};

/// Number of rows in a block.
const BLOCK: usize = 256;

/// Streaming mean and covariance of features, in f64. Moments of parts, even from several machines, can be merged.
#[derive(Clone, Debug)]
pub struct Moments {
    count: usize,
    mean: Vec<f64>,
    /// Sum of the outer products of deviations from the mean.
    scatter: Mat<f64>,
}

impl Moments {
    /// Creates the moments of an empty set of rows of this width.
    pub fn new(width: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; width],
            scatter: Mat::zeros(width, width),
        }
    }

    /// Computes the moments of a set.
    pub fn of(features: &Features) -> Self {
        let mut moments = Self::new(features.width());
        let added = moments.add(features);
        added.expect("the widths are equal");
        moments
    }

    /// The number of rows added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of values in a row.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The normal distribution with this mean and unbiased covariance (divided by the count minus one).
    ///
    /// # Errors
    ///
    /// If there are fewer than two rows.
    pub fn gaussian(&self) -> Result<Gaussian, Error> {
        if self.count < 2 {
            return Err(Error::TooFew {
                what: "a covariance",
                needed: 2,
                found: self.count,
            });
        }
        let divisor = (self.count - 1) as f64;
        let width = self.width();
        Ok(Gaussian {
            mean: self.mean.clone(),
            covariance: Mat::from_fn(width, width, |i, j| self.scatter[(i, j)] / divisor),
        })
    }

    /// Adds the rows of a set.
    ///
    /// # Errors
    ///
    /// If the widths differ.
    pub fn add(&mut self, features: &Features) -> Result<(), Error> {
        if features.width() != self.width() {
            return Err(Error::Width {
                expected: self.width(),
                found: features.width(),
            });
        }
        for block in features.values().chunks(BLOCK * features.width()) {
            let rows = block.len() / features.width();
            let block = MatRef::from_row_major_slice(block, rows, features.width());
            let mean: Vec<_> = (0..features.width())
                .map(|j| (0..rows).map(|i| f64::from(block[(i, j)])).sum::<f64>() / rows as f64)
                .collect();
            let centred = Mat::from_fn(rows, features.width(), |i, j| {
                f64::from(block[(i, j)]) - mean[j]
            });
            let mut scatter = Mat::zeros(features.width(), features.width());
            matmul(
                &mut scatter,
                Accum::Replace,
                centred.transpose(),
                &centred,
                1.0,
                Par::rayon(0),
            );
            self.merge(&Self {
                count: rows,
                mean,
                scatter,
            })?;
        }
        Ok(())
    }

    /// Adds the moments of another set (Chan et al., Updating formulae, 1979, equation 2.1).
    ///
    /// # Errors
    ///
    /// If the widths differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if other.width() != self.width() {
            return Err(Error::Width {
                expected: self.width(),
                found: other.width(),
            });
        }
        let (ours, theirs) = (self.count as f64, other.count as f64);
        let all = ours + theirs;
        if theirs == 0.0 {
            return Ok(());
        }
        let apart: Vec<_> = other
            .mean
            .iter()
            .zip(&self.mean)
            .map(|(b, a)| b - a)
            .collect();
        let weight = ours * theirs / all;
        for j in 0..self.width() {
            for i in 0..self.width() {
                self.scatter[(i, j)] += other.scatter[(i, j)] + weight * apart[i] * apart[j];
            }
        }
        for (mean, apart) in self.mean.iter_mut().zip(&apart) {
            *mean += apart * theirs / all;
        }
        self.count += other.count;
        Ok(())
    }
}

/// Mean and covariance of a set: all that the Fréchet distance needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// The mean of each feature.
    pub mean: Vec<f64>,
    /// The covariance, a symmetric matrix.
    pub covariance: Mat<f64>,
}
