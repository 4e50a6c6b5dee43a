use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Features, Gaussian, Moments, frechet_distance};

/// The bootstrap's standard error of a statistic of `count` pictures (Efron, 1979): its deviation over sets of as many,
/// drawn from them with replacement. `statistic` is given the chosen rows.
///
/// Sets so drawn have fewer different pictures, which raises a Fréchet distance; the deviation, not the mean, is what they
/// are good for: an interval is the value on the whole set ± 1.96 of it.
///
/// # Errors
///
/// If there are fewer than two resamples or no pictures, or the statistic fails.
pub fn standard_error(
    count: usize,
    resamples: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Result<f64, Error>,
) -> Result<f64, Error> {
    for (what, needed, found) in [("a resample", 1, count), ("a deviation", 2, resamples)] {
        if found < needed {
            return Err(Error::TooFew {
                what,
                needed,
                found,
            });
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..resamples).map(|_| {
        let rows: Vec<_> = (0..count).map(|_| rng.random_range(0..count)).collect();
        statistic(&rows)
    });
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let mean = values.iter().sum::<f64>() / resamples as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Ok((squares / (resamples - 1) as f64).sqrt())
}

/// `count` different rows out of `from`, in order of chance.
///
/// # Panics
///
/// If there are fewer.
pub fn subset(from: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    assert!(
        count <= from,
        "{count} different rows are not to be had of {from}"
    );
    let mut rows: Vec<_> = (0..from).collect();
    rows.partial_shuffle(rng, count).0.to_vec()
}

/// What the Fréchet distance would be with pictures without end, FID∞ of Inception's features (Chong & Forsyth, arXiv
/// 1911.07023, §4): its value on `points` subsets, from `smallest` pictures to all of them in equal steps, drawn with `seed`,
/// as a straight line of one over their number.
///
/// # Errors
///
/// If there are not more than `smallest` pictures, the widths differ, or eigenvalues cannot be found.
///
/// # Panics
///
/// If there are fewer than two points, or `smallest` is less than two.
pub fn frechet_infinity(
    reference: &Gaussian,
    features: &Features,
    smallest: usize,
    points: usize,
    seed: u64,
) -> Result<f64, Error> {
    assert!(
        points > 1 && smallest > 1,
        "a line has two points, a covariance two rows"
    );
    let count = features.len();
    if count <= smallest {
        return Err(Error::TooFew {
            what: "the distance of pictures without end",
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

/// Where the line of least squares through values over one over their numbers of pictures meets zero.
///
/// # Panics
///
/// If all numbers are the same.
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
    assert!(squares > 0.0, "all sets have as many pictures");
    y - products / squares * x
}
