use rayon::prelude::*;

use crate::{Error, Features};

/// Diversity of the images of each prompt: the mean distance between two rows of each group of `size` consecutive rows.
///
/// The mean over groups is the diversity of a model. Between features of length one a distance is `√(2 − 2·cos)`.
///
/// - returns: one mean distance per group
///
/// # Errors
///
/// If `size` is less than two or does not divide the number of rows.
pub fn diversity(features: &Features, size: usize) -> Result<Vec<f64>, Error> {
    if size < 2 || !features.len().is_multiple_of(size) {
        return Err(Error::TooFew {
            what: "the diversity of each prompt's images",
            needed: size.max(2),
            found: if size < 2 {
                size
            } else {
                features.len() % size
            },
        });
    }
    let groups = features.len() / size;
    let of_group = |group: usize| {
        let first = group * size;
        let pairs = (0..size).flat_map(|i| (0..i).map(move |j| (i, j)));
        let total: f64 = pairs
            .map(|(i, j)| distance(features.row(first + i), features.row(first + j)))
            .sum();
        total / (size * (size - 1) / 2) as f64
    };
    Ok((0..groups).into_par_iter().map(of_group).collect())
}

fn distance(first: &[f32], second: &[f32]) -> f64 {
    let pairs = first.iter().zip(second);
    pairs
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>()
        .sqrt()
}
