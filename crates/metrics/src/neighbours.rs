use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use crate::{Error, Features};

/// Number of distances in a block: a quarter of a gigabyte of f32.
const BLOCK: usize = 1 << 26;
/// Rounding error of a squared distance in f32, relative to the squared lengths it is computed from.
const ROUNDING: f32 = 1e-5;

/// Overlap of two sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of generated images within the real ones: quality.
    pub precision: f64,
    /// Share of real images within the generated ones: diversity.
    pub recall: f64,
}

/// Overlap of two sets, less sensitive to outliers than [`PrecisionRecall`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DensityCoverage {
    /// Mean number of real neighbourhoods that contain a generated image, over `k`; about 1 for equal distributions.
    pub density: f64,
    /// Share of real images with a generated one in their neighbourhood.
    pub coverage: f64,
}

/// Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2): an image is within a set if it is no
/// farther from one of its images than the `k`-th neighbour of that image, usually with k = 3.
///
/// Distances are computed in f32, a block at a time; those within rounding error of a radius are recomputed in f64. Memory stays
/// small, and the result is the same as in f64.
///
/// # Errors
///
/// If the widths differ, or a set has no more than `k` rows.
pub fn precision_recall(
    real: &Features,
    generated: &Features,
    k: usize,
) -> Result<PrecisionRecall, Error> {
    let (real, generated) = clouds(real, generated, k)?;
    let share = |counts: &[usize]| {
        let among = counts.iter().filter(|count| **count > 0).count();
        among as f64 / counts.len() as f64
    };
    Ok(PrecisionRecall {
        precision: share(&real.counts(&real.radii(k), &generated).0),
        recall: share(&generated.counts(&generated.radii(k), &real).0),
    })
}

/// Density and coverage (Naeem et al., arXiv 2002.09797, equations 3 and 4); usually k = 5. As exact as
/// [`precision_recall`].
///
/// # Errors
///
/// If the widths differ, or a set has no more than `k` rows.
pub fn density_coverage(
    real: &Features,
    generated: &Features,
    k: usize,
) -> Result<DensityCoverage, Error> {
    let (real, generated) = clouds(real, generated, k)?;
    let (counts, covered) = real.counts(&real.radii(k), &generated);
    let balls: usize = counts.iter().sum();
    let covered = covered.iter().filter(|covered| **covered).count();
    Ok(DensityCoverage {
        density: balls as f64 / (k * generated.rows.nrows()) as f64,
        coverage: covered as f64 / real.rows.nrows() as f64,
    })
}

/// Finds the nearest row of another set for each row, and its distance: a measure of memorisation if the other is the training
/// set. Among equally near rows, the first is used.
///
/// # Errors
///
/// If the widths differ, or the other set is empty.
pub fn nearest(of: &Features, among: &Features) -> Result<Vec<(usize, f64)>, Error> {
    of.same_width(among)?;
    if among.is_empty() {
        return Err(Error::TooFew {
            what: "a nearest neighbour",
            needed: 1,
            found: 0,
        });
    }
    let centre = centre(of, among);
    let (of, among) = (Cloud::new(of, &centre), Cloud::new(among, &centre));
    let mut found = Vec::with_capacity(of.rows.nrows());
    for (start, count) in among.blocks(&of) {
        let distances = among.distances(&of, start, count);
        let of_row = |j: usize| {
            let length = of.lengths[start + j];
            let all = 0..among.rows.nrows();
            // Candidates are all rows that may be the nearest in f64, given rounding.
            let farthest = |i: usize| distances[(i, j)] + among.rounding(i, length);
            let bound = all.clone().map(farthest).fold(f32::INFINITY, f32::min);
            all.filter(|&i| distances[(i, j)] - among.rounding(i, length) <= bound)
                .map(|i| (i, among.exact(i, &of, start + j)))
                .fold((0, f64::INFINITY), |best, next| match next.1 < best.1 {
                    true => next,
                    false => best,
                })
        };
        found.par_extend((0..count).into_par_iter().map(of_row));
    }
    let root = |(row, squared): (usize, f64)| (row, squared.sqrt());
    Ok(found.into_iter().map(root).collect())
}

/// Prepares both sets, shifted by the same vector, without which all distances between them would be wrong.
fn clouds<'a>(
    first: &'a Features,
    second: &'a Features,
    k: usize,
) -> Result<(Cloud<'a>, Cloud<'a>), Error> {
    first.same_width(second)?;
    for features in [first, second] {
        if features.len() <= k {
            return Err(Error::TooFew {
                what: "a neighbourhood radius",
                needed: k + 1,
                found: features.len(),
            });
        }
    }
    let centre = centre(first, second);
    Ok((Cloud::new(first, &centre), Cloud::new(second, &centre)))
}

/// A set prepared for distances in f32.
struct Cloud<'a> {
    features: &'a Features,
    /// The rows minus the mean of both sets, which shortens them and reduces rounding errors in f32.
    rows: Mat<f32>,
    /// Squared lengths of the rows.
    lengths: Vec<f32>,
}

impl<'a> Cloud<'a> {
    fn new(features: &'a Features, centre: &[f32]) -> Self {
        let all = MatRef::from_row_major_slice(features.values(), features.len(), features.width());
        let rows = Mat::from_fn(all.nrows(), all.ncols(), |i, j| all[(i, j)] - centre[j]);
        let square = |i, j| f64::from(rows[(i, j)]).powi(2);
        let length = |i| (0..rows.ncols()).map(|j| square(i, j)).sum::<f64>() as f32;
        let lengths = (0..rows.nrows()).map(length).collect();
        Self {
            features,
            rows,
            lengths,
        }
    }

    /// Squared distances of `count` rows of another set to all rows of this one, one column per row of the other set.
    fn distances(&self, other: &Self, start: usize, count: usize) -> Mat<f32> {
        let some = other.rows.as_ref().subrows(start, count);
        let mut distances = Mat::zeros(self.rows.nrows(), count);
        matmul(
            &mut distances,
            Accum::Replace,
            &self.rows,
            some.transpose(),
            -2.0,
            Par::rayon(0),
        );
        let columns: Vec<_> = distances.col_iter_mut().enumerate().collect();
        columns.into_par_iter().for_each(|(j, column)| {
            let length = other.lengths[start + j];
            let column = column.try_as_col_major_mut();
            let column = column.expect("columns are contiguous").as_slice_mut();
            for (distance, own) in column.iter_mut().zip(&self.lengths) {
                *distance += own + length;
            }
        });
        distances
    }

    /// Squared distance of two rows in f64, without the shift.
    fn exact(&self, row: usize, other: &Self, of_other: usize) -> f64 {
        let pairs = self
            .features
            .row(row)
            .iter()
            .zip(other.features.row(of_other));
        pairs
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum()
    }

    /// Rounding error of the squared distance of two rows.
    fn rounding(&self, row: usize, length: f32) -> f32 {
        ROUNDING * (self.lengths[row] + length)
    }

    fn blocks(&self, other: &Self) -> impl Iterator<Item = (usize, usize)> {
        let (all, size) = (other.rows.nrows(), (BLOCK / self.rows.nrows()).max(1));
        (0..all)
            .step_by(size)
            .map(move |start| (start, size.min(all - start)))
    }

    /// Squared distance of each row to its k-th neighbour in this set, not counting itself.
    fn radii(&self, k: usize) -> Vec<f64> {
        let mut radii = Vec::with_capacity(self.rows.nrows());
        for (start, count) in self.blocks(self) {
            let distances = self.distances(self, start, count);
            let of_row = |j: usize| {
                let row = start + j;
                let length = self.lengths[row];
                let others = (0..self.rows.nrows()).filter(|&i| i != row);
                // Candidates are all rows that may be the k-th in f64, given rounding.
                let mut least: Vec<f32> = others
                    .clone()
                    .map(|i| distances[(i, j)] + self.rounding(i, length))
                    .collect();
                let (_, bound, _) = least.select_nth_unstable_by(k - 1, f32::total_cmp);
                let bound = *bound;
                let near =
                    others.filter(|&i| distances[(i, j)] - self.rounding(i, length) <= bound);
                let mut near: Vec<f64> = near.map(|i| self.exact(row, self, i)).collect();
                let (_, radius, _) = near.select_nth_unstable_by(k - 1, f64::total_cmp);
                *radius
            };
            radii.par_extend((0..count).into_par_iter().map(of_row));
        }
        radii
    }

    /// The number of balls around rows of this set that contain each row of another set, and which balls contain any. Radii are
    /// squared.
    fn counts(&self, radii: &[f64], other: &Self) -> (Vec<usize>, Vec<bool>) {
        let mut counts = Vec::with_capacity(other.rows.nrows());
        let mut covered = vec![false; self.rows.nrows()];
        for (start, count) in self.blocks(other) {
            let distances = self.distances(other, start, count);
            let is_in = |i: usize, j: usize| {
                let (distance, rounding) = (
                    distances[(i, j)],
                    self.rounding(i, other.lengths[start + j]),
                );
                if f64::from(distance - rounding) > radii[i] {
                    false
                } else if f64::from(distance + rounding) < radii[i] {
                    true
                } else {
                    self.exact(i, other, start + j) <= radii[i]
                }
            };
            let of_row = |j: usize| -> Vec<usize> {
                (0..self.rows.nrows()).filter(|&i| is_in(i, j)).collect()
            };
            let balls: Vec<_> = (0..count).into_par_iter().map(of_row).collect();
            for balls in balls {
                for &ball in &balls {
                    covered[ball] = true;
                }
                counts.push(balls.len());
            }
        }
        (counts, covered)
    }
}

/// Mean of both sets, independent of their order.
fn centre(first: &Features, second: &Features) -> Vec<f32> {
    let mut sum = vec![0.0f64; first.width()];
    for row in first.rows().chain(second.rows()) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let count = (first.len() + second.len()) as f64;
    sum.into_iter().map(|sum| (sum / count) as f32).collect()
}
