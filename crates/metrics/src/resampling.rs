use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Features, Gaussian, Moments, frechet_distance};

/// Consecutive groups of rows of equal size that are drawn together, such as the images of one prompt.
///
/// Images of one prompt resemble each other; resampling them individually would make every interval too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    count: usize,
    size: usize,
}

impl Groups {
    /// Divides `rows` into groups of `size`.
    ///
    /// # Errors
    ///
    /// If `size` is zero or does not divide `rows`.
    pub fn new(rows: usize, size: usize) -> Result<Self, Error> {
        match size > 0 && rows.is_multiple_of(size) {
            true => Ok(Self {
                count: rows / size,
                size,
            }),
            false => Err(Error::TooFew {
                what: "a group of rows",
                needed: size.max(1),
                found: rows.checked_rem(size).unwrap_or(0),
            }),
        }
    }

    /// Makes each row its own group.
    pub fn single(rows: usize) -> Self {
        Self {
            count: rows,
            size: 1,
        }
    }

    /// The number of groups.
    pub fn count(self) -> usize {
        self.count
    }

    fn rows(self, group: usize) -> std::ops::Range<usize> {
        group * self.size..(group + 1) * self.size
    }

    /// Draws the same number of groups with replacement.
    fn resample(self, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let draw = |_| self.rows(rng.random_range(0..self.count));
        (0..self.count).flat_map(draw).collect()
    }

    /// Draws the rows of `count` different groups, in random order of groups.
    ///
    /// # Panics
    ///
    /// If there are fewer groups.
    #[track_caller]
    pub fn subset(self, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let groups = subset(self.count, count, rng).into_iter();
        groups.flat_map(|group| self.rows(group)).collect()
    }
}

/// Bootstrap standard error of a statistic (Efron, 1979): its standard deviation over `resamples` sets of the same number of
/// groups, drawn with replacement. `statistic` takes the rows of a set.
///
/// Resampled sets have fewer distinct images, which increases a Fréchet distance: use the deviation, not the mean. A 95 %
/// interval is the value on the whole set ± 1.96 standard errors.
///
/// # Errors
///
/// If there are fewer than two resamples or no rows, or the statistic fails.
pub fn standard_error(
    groups: Groups,
    resamples: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Result<f64, Error>,
) -> Result<f64, Error> {
    check(groups.count, 1, resamples)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..resamples).map(|_| statistic(&groups.resample(&mut rng)));
    Ok(deviation(&values.collect::<Result<Vec<_>, _>>()?))
}

/// Standard errors of statistics of two sets, over random halves of both: the delete-half jackknife, whose variance estimate is
/// that of the halves. `statistics` takes rows of the first and the second set.
///
/// Use it for nearest-neighbour statistics, which the bootstrap breaks: a row drawn twice is its own neighbour at distance zero.
/// Radii grow when rows are left out, so the errors are 10 to 40 % too large for a few hundred rows; the binomial error of a
/// share, which assumes fixed radii and a fixed other set, is up to 60 % too small.
///
/// # Errors
///
/// If there are fewer than two resamples or groups, or the statistics fail.
///
/// # References
///
/// Shao and Wu, A general theory for jackknife variance estimation, 1989.
pub fn half_sample_errors<const N: usize>(
    first: Groups,
    second: Groups,
    resamples: usize,
    seed: u64,
    mut statistics: impl FnMut(&[usize], &[usize]) -> Result<[f64; N], Error>,
) -> Result<[f64; N], Error> {
    check(first.count.min(second.count), 2, resamples)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut half = |groups: Groups| groups.subset(groups.count / 2, &mut rng);
    let values = (0..resamples).map(|_| statistics(&half(first), &half(second)));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    Ok(std::array::from_fn(|index| {
        deviation(&values.iter().map(|value| value[index]).collect::<Vec<_>>())
    }))
}

fn check(groups: usize, needed: usize, resamples: usize) -> Result<(), Error> {
    for (what, needed, found) in [
        ("a resample", needed, groups),
        ("a standard deviation", 2, resamples),
    ] {
        if found < needed {
            return Err(Error::TooFew {
                what,
                needed,
                found,
            });
        }
    }
    Ok(())
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Draws `count` different rows of `from`, in random order.
///
/// # Panics
///
/// If `count` exceeds `from`.
#[track_caller]
pub fn subset(from: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    assert!(count <= from, "expected at most {from} rows, found {count}");
    let mut rows: Vec<_> = (0..from).collect();
    rows.partial_shuffle(rng, count).0.to_vec()
}

/// Fréchet distance extrapolated to infinitely many images, FID∞ on Inception's features (Chong & Forsyth, arXiv 1911.07023, §4):
/// the intercept of a straight line through the distances of `points` subsets, whose sizes grow in equal steps from `smallest`
/// to all images, over the inverse of their sizes.
///
/// # Errors
///
/// If there are no more than `smallest` images, the widths differ, or the eigenvalue decomposition fails.
///
/// # Panics
///
/// If there are fewer than two points, or `smallest` is less than two.
#[track_caller]
pub fn frechet_infinity(
    reference: &Gaussian,
    features: &Features,
    smallest: usize,
    points: usize,
    seed: u64,
) -> Result<f64, Error> {
    assert!(
        points > 1 && smallest > 1,
        "a line needs two points, a covariance two rows"
    );
    let count = features.len();
    if count <= smallest {
        return Err(Error::TooFew {
            what: "the extrapolated Fréchet distance",
            needed: smallest + 1,
            found: count,
        });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let line = (0..points).map(|point| {
        let size = smallest + point * (count - smallest) / (points - 1);
        let chosen = features.select(&subset(count, size, &mut rng));
        let gaussian = Moments::of(&chosen).gaussian()?;
        Ok((size, frechet_distance(reference, &gaussian)?))
    });
    Ok(at_infinity(&line.collect::<Result<Vec<_>, Error>>()?))
}

/// Intercept of the least-squares line through values over the inverse of their sample sizes.
///
/// # Panics
///
/// If all sizes are equal.
#[track_caller]
pub fn at_infinity(points: &[(usize, f64)]) -> f64 {
    let count = points.len() as f64;
    let inverse = |size: usize| 1.0 / size as f64;
    let x = points.iter().map(|(size, _)| inverse(*size)).sum::<f64>() / count;
    let y = points.iter().map(|(_, value)| value).sum::<f64>() / count;
    let (mut products, mut squares) = (0.0, 0.0);
    for (size, value) in points {
        products += (inverse(*size) - x) * (value - y);
        squares += (inverse(*size) - x).powi(2);
    }
    assert!(squares > 0.0, "expected sets of different sizes");
    y - products / squares * x
}
