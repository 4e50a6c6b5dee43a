//! Matrices, and the one product that gemm takes: that of the gradient of a convolution's weights.
#![allow(unsafe_code, reason = "a call of gemm, which takes pointers")]

/// Numbers in rows of equal length, which may lie apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Distance of two rows.
    pub(crate) stride: usize,
}

impl<'a> Matrix<'a> {
    /// All of the values, one row after the other.
    pub(crate) fn new(values: &'a [f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        Self::spaced(values, rows, columns, columns)
    }

    /// Rows that begin `stride` apart.
    ///
    /// # Panics
    ///
    /// If they are longer than the values.
    pub(crate) fn spaced(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
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
/// If the sizes do not agree.
pub(crate) fn add_product_with_transposed(target: &mut [f32], left: Matrix<'_>, right: Matrix<'_>) {
    assert_eq!(left.columns, right.columns, "the matrices do not match");
    let (rows, columns) = (left.rows, right.rows);
    assert_eq!(target.len(), rows * columns, "the target has another size");
    // SAFETY: matrices are no longer than their values, and the target has just the elements of the product.
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
