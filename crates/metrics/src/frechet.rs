use faer::{Mat, Side};

use crate::{Error, Gaussian};

/// Squared Fréchet distance of two normal distributions: `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·√(Σ₁Σ₂))` (Heusel et al.,
/// arXiv 1706.08500, equation 6). On Inception's features it is FID.
///
/// The trace of the root is computed as that of `√(√Σ₁·Σ₂·√Σ₁)`, a positive semi-definite matrix whose eigenvalues below
/// rounding are set to zero, so covariances may be singular (fewer images than features). The estimate is biased upwards for
/// few images (arXiv 1911.07023): compare only values for the same number of images.
///
/// # Errors
///
/// If the widths differ, or an eigenvalue decomposition fails.
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
    // For equal distributions only rounding errors remain, of either sign.
    Ok(distance.max(0.0))
}

/// Symmetric square root of a covariance.
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

/// Sets eigenvalues that are mere rounding errors to zero, because thousands of their square roots would add up.
fn positive(values: Vec<f64>) -> Vec<f64> {
    let largest = values.iter().fold(0.0f64, |max, value| max.max(*value));
    let rounding = largest * values.len() as f64 * f64::EPSILON;
    let cut = |value: f64| if value > rounding { value } else { 0.0 };
    values.into_iter().map(cut).collect()
}
