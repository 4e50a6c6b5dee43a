//! Convolution on the CPU as matrix products over unfolded rows of the images.
//!
//! Output rows are counted over the whole batch and taken a block at a time: the patches under a
//! block are laid out as the columns of a matrix that stays in cache, and one product with the
//! weights gives the block. Blocks go to the threads; within one, everything is sequential, and the
//! split does not depend on the number of threads, so results are the same on every machine size.
#![allow(unsafe_code, reason = "calls of gemm, which takes pointers")]

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::Window;
use crate::flex::{Contiguous, tensor};

/// Columns of the patch matrix aimed at: enough to pay for packing the weights.
const COLUMNS: usize = 512;
/// Parts that the sum over a batch is split into for the gradient of the weights.
const PARTS: usize = 8;

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: (usize, usize),
    out_height: usize,
    out_width: usize,
    window: Window,
}

impl Geometry {
    fn new(input: &Shape, weight: &Shape, window: Window) -> Self {
        let [batch, inputs, height, width] = input.dims::<4>();
        let [outputs, _, rows, columns] = weight.dims::<4>();
        let padding = window.padding.0 + window.padding.1;
        let out = |size: usize, kernel: usize| (size + padding - kernel) / window.stride + 1;
        let (out_height, out_width) = (out(height, rows), out(width, columns));
        let kernel = (rows, columns);
        Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            kernel,
            out_height,
            out_width,
            window,
        }
    }

    /// Rows of the patch matrix.
    fn patch(&self) -> usize {
        self.inputs * self.kernel.0 * self.kernel.1
    }

    /// Output rows over the whole batch.
    fn rows(&self) -> usize {
        self.batch * self.out_height
    }

    /// Output rows in a block.
    fn rows_per_block(&self) -> usize {
        (COLUMNS / self.out_width.max(1)).clamp(1, self.rows().max(1))
    }

    fn plane(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Lays the patches under some output rows out as columns, `[patch, rows·out_width]`.
    fn unfold(&self, input: &[f32], rows: std::ops::Range<usize>, patches: &mut Vec<f32>) {
        let columns = rows.len() * self.out_width;
        patches.clear();
        patches.resize(self.patch() * columns, 0.0);
        let (stride, before) = (self.window.stride, self.window.padding.0);
        let mut lines = patches.chunks_mut(columns);
        for channel in 0..self.inputs {
            for ky in 0..self.kernel.0 {
                for kx in 0..self.kernel.1 {
                    let line = lines.next().expect("there is a line for each weight");
                    for (row, line) in rows.clone().zip(line.chunks_mut(self.out_width)) {
                        let (image, out_y) = (row / self.out_height, row % self.out_height);
                        let Some(y) = (out_y * stride + ky).checked_sub(before) else {
                            continue;
                        };
                        if y >= self.height {
                            continue;
                        }
                        let start =
                            ((image * self.inputs + channel) * self.height + y) * self.width;
                        let source = &input[start..start + self.width];
                        self.copy_line(line, source, kx);
                    }
                }
            }
        }
    }

    /// `line[x] = source[x·stride + kx − padding]` where that exists.
    fn copy_line(&self, line: &mut [f32], source: &[f32], kx: usize) {
        let (stride, before) = (self.window.stride, self.window.padding.0);
        let first = before.saturating_sub(kx).div_ceil(stride);
        let end = (self.width + before)
            .saturating_sub(kx)
            .div_ceil(stride)
            .min(self.out_width);
        if first >= end {
            return;
        }
        let from = first * stride + kx - before;
        if stride == 1 {
            line[first..end].copy_from_slice(&source[from..from + end - first]);
        } else {
            for (value, source) in line[first..end]
                .iter_mut()
                .zip(source[from..].iter().step_by(stride))
            {
                *value = *source;
            }
        }
    }
}

pub(crate) fn forward(input: &Contiguous, weight: &Contiguous, window: Window) -> FlexTensor {
    let geometry = Geometry::new(&input.shape(), &weight.shape(), window);
    let shape = Shape::new([
        geometry.batch,
        geometry.outputs,
        geometry.out_height,
        geometry.out_width,
    ]);
    tensor(convolve(&geometry, input.values(), weight.values()), shape)
}

fn convolve(geometry: &Geometry, input: &[f32], weight: &[f32]) -> Vec<f32> {
    let Geometry {
        outputs,
        out_height,
        out_width,
        ..
    } = *geometry;
    let rows_per_block = geometry.rows_per_block();
    let blocks: Vec<_> = (0..geometry.rows()).step_by(rows_per_block).collect();
    let results: Vec<(usize, Vec<f32>)> = blocks
        .into_par_iter()
        .map_init(Vec::new, |patches, start| {
            let rows = start..(start + rows_per_block).min(geometry.rows());
            let columns = rows.len() * out_width;
            geometry.unfold(input, rows, patches);
            let mut result = vec![0.0; outputs * columns];
            let weight = Matrix {
                values: weight,
                columns: geometry.patch(),
            };
            product(
                &mut result,
                columns,
                weight,
                Matrix {
                    values: patches,
                    columns,
                },
                false,
            );
            (start, result)
        })
        .collect();

    let mut output = vec![0.0; geometry.batch * outputs * geometry.plane()];
    for (start, result) in &results {
        let columns = result.len() / outputs;
        for (channel, line) in result.chunks(columns).enumerate() {
            for (row, line) in (*start..).zip(line.chunks(out_width)) {
                let (image, y) = (row / out_height, row % out_height);
                let at = ((image * outputs + channel) * out_height + y) * out_width;
                output[at..at + out_width].copy_from_slice(line);
            }
        }
    }
    output
}

/// Whether the gradient for the input is a convolution with the kernel turned by half a turn.
pub(crate) fn can_turn(weight: &Shape, window: Window) -> bool {
    let [_, _, rows, columns] = weight.dims::<4>();
    let (before, after) = window.padding;
    window.stride == 1 && rows == columns && before < rows && after < rows
}

pub(crate) fn input_grad(weight: &Contiguous, grad: &Contiguous, window: Window) -> FlexTensor {
    let [outputs, inputs, rows, columns] = weight.shape().dims::<4>();
    let taps = rows * columns;
    let source = weight.values();
    let mut turned = vec![0.0; source.len()];
    for input in 0..inputs {
        for output in 0..outputs {
            let to = &mut turned[(input * outputs + output) * taps..][..taps];
            let from = &source[(output * inputs + input) * taps..][..taps];
            to.iter_mut()
                .zip(from.iter().rev())
                .for_each(|(to, from)| *to = *from);
        }
    }
    let (before, after) = window.padding;
    let window = Window {
        stride: 1,
        padding: (rows - 1 - before, rows - 1 - after),
    };
    let turned_shape = Shape::new([inputs, outputs, rows, columns]);
    let geometry = Geometry::new(&grad.shape(), &turned_shape, window);
    let shape = Shape::new([
        geometry.batch,
        inputs,
        geometry.out_height,
        geometry.out_width,
    ]);
    tensor(convolve(&geometry, grad.values(), &turned), shape)
}

pub(crate) fn weight_grad(
    input: &Contiguous,
    grad: &Contiguous,
    shape: Shape,
    window: Window,
) -> FlexTensor {
    let geometry = Geometry::new(&input.shape(), &shape, window);
    let (patch, outputs) = (geometry.patch(), geometry.outputs);
    let rows_per_part = geometry.rows().div_ceil(PARTS).max(1);
    let parts: Vec<_> = (0..geometry.rows()).step_by(rows_per_part).collect();
    let sums: Vec<Vec<f32>> = parts
        .into_par_iter()
        .map(|start| {
            let mut sum = vec![0.0; outputs * patch];
            let (mut patches, mut lines) = (Vec::new(), Vec::new());
            let end = (start + rows_per_part).min(geometry.rows());
            for start in (start..end).step_by(geometry.rows_per_block()) {
                let rows = start..(start + geometry.rows_per_block()).min(end);
                let columns = rows.len() * geometry.out_width;
                geometry.unfold(input.values(), rows.clone(), &mut patches);
                gather_rows(&geometry, grad.values(), rows, &mut lines);
                let patches = Transposed(Matrix {
                    values: &patches,
                    columns,
                });
                product(
                    &mut sum,
                    patch,
                    Matrix {
                        values: &lines,
                        columns,
                    },
                    patches,
                    true,
                );
            }
            sum
        })
        .collect();
    let mut total = vec![0.0; outputs * patch];
    for sum in &sums {
        total
            .iter_mut()
            .zip(sum)
            .for_each(|(total, part)| *total += part);
    }
    tensor(total, shape)
}

/// The gradient at some output rows, `[outputs, rows·out_width]`.
fn gather_rows(
    geometry: &Geometry,
    grad: &[f32],
    rows: std::ops::Range<usize>,
    lines: &mut Vec<f32>,
) {
    let Geometry {
        outputs,
        out_height,
        out_width,
        ..
    } = *geometry;
    lines.clear();
    for channel in 0..outputs {
        for row in rows.clone() {
            let (image, y) = (row / out_height, row % out_height);
            let at = ((image * outputs + channel) * out_height + y) * out_width;
            lines.extend_from_slice(&grad[at..at + out_width]);
        }
    }
}

/// Numbers in rows of equal length.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    columns: usize,
}

/// A matrix read with rows for columns.
#[derive(Clone, Copy)]
struct Transposed<'a>(Matrix<'a>);

/// Rows, columns, and the distance in memory between two of each.
trait Strided {
    fn layout(&self) -> (&[f32], usize, usize, isize, isize);
}

impl Strided for Matrix<'_> {
    fn layout(&self) -> (&[f32], usize, usize, isize, isize) {
        (
            self.values,
            self.values.len() / self.columns,
            self.columns,
            self.columns as isize,
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

/// `target (+)= left·right` on this thread.
fn product(
    target: &mut [f32],
    target_columns: usize,
    left: Matrix<'_>,
    right: impl Strided,
    add: bool,
) {
    let (left, rows, inner, left_row, left_column) = left.layout();
    let (right, right_rows, columns, right_row, right_column) = right.layout();
    assert_eq!(inner, right_rows, "the matrices do not match");
    assert_eq!(
        (columns, rows * columns),
        (target_columns, target.len()),
        "the target has another size"
    );
    // SAFETY: every index that the sizes and strides allow lies within the three slices, by the
    // assertions above and because each slice is rows·columns long; the target overlaps nothing.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            target.as_mut_ptr(),
            1,
            target_columns as isize,
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
