use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::{Error, Features};

/// Mean and standard deviation of [`squared_mmd`] over subsets of both sets (Bińkowski et al., arXiv 1801.01401, §3). On
/// Inception's features it is KID, usually over 100 subsets of 1000 rows. The caller draws the subsets.
///
/// # Errors
///
/// If the widths differ, or a subset has fewer than two rows.
///
/// # Panics
///
/// If a row is out of range.
#[track_caller]
pub fn kernel_distance(
    first: &Features,
    second: &Features,
    subsets: &[(Vec<usize>, Vec<usize>)],
) -> Result<(f64, f64), Error> {
    let values = subsets
        .iter()
        .map(|(a, b)| squared_mmd(&first.select(a), &second.select(b)));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / count;
    Ok((mean, variance.sqrt()))
}

/// Unbiased estimate of the squared maximum mean discrepancy under the kernel `(x·y/width + 1)³`; it can be negative.
///
/// # Errors
///
/// If the widths differ, or a set has fewer than two rows.
pub fn squared_mmd(first: &Features, second: &Features) -> Result<f64, Error> {
    first.same_width(second)?;
    for features in [first, second] {
        if features.len() < 2 {
            return Err(Error::TooFew {
                what: "the kernel distance",
                needed: 2,
                found: features.len(),
            });
        }
    }
    let (a, b) = (wide(first), wide(second));
    let width = first.width() as f64;
    let kernel = |left: &Mat<f64>, right: &Mat<f64>| {
        let mut products = Mat::zeros(left.nrows(), right.nrows());
        matmul(
            &mut products,
            Accum::Replace,
            left,
            right.transpose(),
            1.0 / width,
            Par::rayon(0),
        );
        products
    };
    let cube = |x: f64| (x + 1.0).powi(3);
    let total = |products: &Mat<f64>, without_diagonal: bool| -> f64 {
        let columns = 0..products.ncols();
        columns
            .map(|j| {
                let rows = (0..products.nrows()).filter(|&i| !(without_diagonal && i == j));
                rows.map(|i| cube(products[(i, j)])).sum::<f64>()
            })
            .sum()
    };
    let (n, m) = (first.len() as f64, second.len() as f64);
    let within_first = total(&kernel(&a, &a), true) / (n * (n - 1.0));
    let within_second = total(&kernel(&b, &b), true) / (m * (m - 1.0));
    let between = total(&kernel(&a, &b), false) / (n * m);
    Ok(within_first + within_second - 2.0 * between)
}

fn wide(features: &Features) -> Mat<f64> {
    let rows = MatRef::from_row_major_slice(features.values(), features.len(), features.width());
    Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| f64::from(rows[(i, j)]))
}

/// Biased estimate of the squared maximum mean discrepancy under the kernel `exp(−|x − y|²/2σ²)`: each row is also paired with
/// itself. On CLIP's embeddings with σ = 10, times 1000, it is CMMD (Jayasumana et al., arXiv 2401.09603, equation 4), which
/// needs far fewer images than FID does.
///
/// # Errors
///
/// If the widths differ, or a set is empty.
pub fn gaussian_mmd(first: &Features, second: &Features, sigma: f64) -> Result<f64, Error> {
    first.same_width(second)?;
    for features in [first, second] {
        if features.is_empty() {
            return Err(Error::TooFew {
                what: "the kernel distance",
                needed: 1,
                found: 0,
            });
        }
    }
    let (a, b) = (wide(first), wide(second));
    let within = mean_kernel(&a, &a, sigma) + mean_kernel(&b, &b, sigma);
    Ok(within - 2.0 * mean_kernel(&a, &b, sigma))
}

/// Mean of `exp(−|x − y|²/2σ²)` over all pairs.
fn mean_kernel(a: &Mat<f64>, b: &Mat<f64>, sigma: f64) -> f64 {
    /// Number of rows of `b` in a block.
    const ROWS: usize = 512;
    let squares = |rows: &Mat<f64>| -> Vec<f64> {
        let square = |i| (0..rows.ncols()).map(|j| rows[(i, j)] * rows[(i, j)]).sum();
        (0..rows.nrows()).map(square).collect()
    };
    let (of_a, of_b) = (squares(a), squares(b));
    let mut total = 0.0;
    for start in (0..b.nrows()).step_by(ROWS) {
        let rows = b.as_ref().subrows(start, ROWS.min(b.nrows() - start));
        let mut products = Mat::zeros(a.nrows(), rows.nrows());
        matmul(
            &mut products,
            Accum::Replace,
            a,
            rows.transpose(),
            1.0,
            Par::rayon(0),
        );
        for j in 0..rows.nrows() {
            let squared = |i: usize| of_a[i] + of_b[start + j] - 2.0 * products[(i, j)];
            let kernel = |i| (-squared(i) / (2.0 * sigma * sigma)).exp();
            total += (0..a.nrows()).map(kernel).sum::<f64>();
        }
    }
    total / (a.nrows() * b.nrows()) as f64
}
