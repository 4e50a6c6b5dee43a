//! Products of matrices on one thread, by gemm.
#![allow(unsafe_code, reason = "calls of gemm, which takes pointers")]

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

/// A matrix read with rows for columns.
#[derive(Clone, Copy)]
pub(crate) struct Transposed<'a>(pub(crate) Matrix<'a>);

/// Rows, columns, and the distance in memory between two of each.
pub(crate) trait Strided {
    fn layout(&self) -> (&[f32], usize, usize, isize, isize);
}

impl Strided for Matrix<'_> {
    fn layout(&self) -> (&[f32], usize, usize, isize, isize) {
        (
            self.values,
            self.rows,
            self.columns,
            self.stride as isize,
            1,
        )
    }
}

impl Strided for Transposed<'_> {
    fn layout(&self) -> (&[f32], usize, usize, isize, isize) {
        let (values, rows, columns, row_stride, column_stride) = self.0.layout();
        (values, columns, rows, column_stride, row_stride)
    }
}

/// `target (+)= left·right`, for a target of just as many elements.
///
/// # Panics
///
/// If the sizes do not agree.
pub(crate) fn product_into(
    target: &mut [f32],
    target_columns: usize,
    left: Matrix<'_>,
    right: impl Strided,
    add: bool,
) {
    let (rows, columns) = (left.rows, right.layout().2);
    assert_eq!(
        (columns, rows * columns),
        (target_columns, target.len()),
        "the target has another size"
    );
    // SAFETY: the target has exactly the elements of the product, and nobody else's.
    unsafe { product(target.as_mut_ptr(), target_columns, left, right, add) };
}

/// `target (+)= left·right`, for a target whose rows begin `target_row` apart.
///
/// # Safety
///
/// Elements `i·target_row + j` of the target, for each row i and column j of the product, can be written, and no other
/// thread touches them meanwhile.
///
/// # Panics
///
/// If the sizes do not agree.
pub(crate) unsafe fn product(
    target: *mut f32,
    target_row: usize,
    left: Matrix<'_>,
    right: impl Strided,
    add: bool,
) {
    let (left, rows, inner, left_row, left_column) = left.layout();
    let (right, right_rows, columns, right_row, right_column) = right.layout();
    assert_eq!(inner, right_rows, "the matrices do not match");
    // SAFETY: matrices are no longer than their values; the target can be written, as the caller has promised.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            target,
            1,
            target_row as isize,
            add,
            left.as_ptr(),
            left_column,
            left_row,
            right.as_ptr(),
            right_column,
            right_row,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
