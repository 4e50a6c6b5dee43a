//! Matrices as views of slices, and the only product left to the crate `gemm`: that of a convolution's weight gradient.
#![allow(unsafe_code, reason = "`gemm` takes pointers")]

/// A row-major matrix whose rows are `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
}

impl<'a> Matrix<'a> {
    /// Creates a matrix of all values, without gaps between rows.
    pub(crate) fn new(values: &'a [f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        Self::strided(values, rows, columns, columns)
    }

    /// Creates a matrix whose rows are `stride` apart.
    ///
    /// # Panics
    ///
    /// If the matrix is longer than the values.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            rows * columns == 0 || (rows - 1) * stride + columns <= values.len(),
            "the matrix is longer than its values"
        );
        Self {
            values,
            rows,
            columns,
            stride,
        }
    }
}

/// `target += left·rightᵀ`
///
/// # Panics
///
/// If the sizes do not match.
pub(crate) fn add_product_with_transposed(target: &mut [f32], left: Matrix<'_>, right: Matrix<'_>) {
    assert_eq!(left.columns, right.columns, "the matrices do not match");
    let (rows, columns) = (left.rows, right.rows);
    assert_eq!(
        target.len(),
        rows * columns,
        "the target has the wrong size"
    );
    // SAFETY: matrices are no longer than their values, and the target has exactly the elements of the product.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            left.columns,
            target.as_mut_ptr(),
            1,
            columns as isize,
            true,
            left.values.as_ptr(),
            1,
            left.stride as isize,
            right.values.as_ptr(),
            right.stride as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
