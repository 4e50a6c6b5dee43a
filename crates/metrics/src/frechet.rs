use faer::{Mat, Side};

use crate::{Error, Gaussian};

/// The Fréchet distance of two normal distributions, squared: `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·√(Σ₁Σ₂))` (Heusel et al.,
/// arXiv 1706.08500, equation 6); of Inception's features it is FID.
///
/// The trace of the root is that of `√(√Σ₁·Σ₂·√Σ₁)`, a symmetric matrix, whose eigenvalues are not negative but for
/// rounding, which is cut off: covariances of fewer pictures than features are no trouble. The value is biased upwards
/// when pictures are few (arXiv 1911.07023), and compares only with values of as many.
///
/// # Errors
///
/// If the widths differ, or eigenvalues cannot be found.
pub fn frechet_distance(first: &Gaussian, second: &Gaussian) -> Result<f64, Error> {
    if first.mean.len() != second.mean.len() {
        return Err(Error::Width {
            expected: first.mean.len(),
            found: second.mean.len(),
        });
    }
    let apart: f64 = first
        .mean
        .iter()
        .zip(&second.mean)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let root = root(&first.covariance)?;
    let inner = &root * &second.covariance * &root;
    let shared: f64 = eigenvalues(&inner)?.into_iter().map(f64::sqrt).sum();
    let trace = |matrix: &Mat<f64>| (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>();
    let distance = apart + trace(&first.covariance) + trace(&second.covariance) - 2.0 * shared;
    // Of equal distributions what is left is rounding.
    Ok(distance.max(0.0))
}

/// The symmetric root of a covariance.
fn root(covariance: &Mat<f64>) -> Result<Mat<f64>, Error> {
    let eigen = covariance.self_adjoint_eigen(Side::Lower);
    let eigen = eigen.map_err(|_| Error::Eigenvalues)?;
    let values: Vec<_> = eigen.S().column_vector().iter().copied().collect();
    let values = positive(values);
    let vectors = eigen.U();
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        vectors[(i, j)] * values[j].sqrt()
    });
    Ok(&scaled * vectors.transpose())
}

fn eigenvalues(matrix: &Mat<f64>) -> Result<Vec<f64>, Error> {
    let values = matrix.self_adjoint_eigenvalues(Side::Lower);
    values.map(positive).map_err(|_| Error::Eigenvalues)
}

/// Eigenvalues of a matrix that has no negative ones: those that rounding alone has made are 0, because of a root
/// thousands of them would add up.
fn positive(values: Vec<f64>) -> Vec<f64> {
    let largest = values.iter().fold(0.0f64, |max, value| max.max(*value));
    let rounding = largest * values.len() as f64 * f64::EPSILON;
    let cut = |value: f64| if value > rounding { value } else { 0.0 };
    values.into_iter().map(cut).collect()
}
