//! Convolution on the CPU as matrix products over unfolded rows of the images.
//!
//! Output rows are counted over the whole batch and taken a block at a time: the patches under a
//! block are laid out as the columns of a matrix that stays in cache, and one product with the
//! weights gives the block. Blocks go to the threads; within one, everything is sequential, and the
//! split does not depend on the number of threads, so results are the same on every machine size.
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::flex::{Contiguous, tensor};
use crate::product::{Matrix, Transposed, product_into};
use crate::{Window, winograd};

/// Columns of the patch matrix aimed at: enough to pay for packing the weights.
const COLUMNS: usize = 512;
/// Parts at most that the sum over a batch is split into for the gradient of the weights.
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
    fn unfold(&self, input: &[f32], rows: Range<usize>, scratch: &mut Scratch) {
        let columns = rows.len() * self.out_width;
        let layout = Framed::new(self, rows);
        // Every number of the patches is written below; the frame stays zero for all channels.
        scratch.patches.resize(self.patch() * columns, 0.0);
        scratch.framed.clear();
        scratch.framed.resize(layout.height * layout.width, 0.0);
        let mut lines = scratch.patches.chunks_mut(columns);
        for channel in 0..self.inputs {
            for &(to, image, y) in &layout.filled {
                let from = ((image * self.inputs + channel) * self.height + y) * self.width;
                let to = to * layout.width + self.window.padding.0;
                scratch.framed[to..to + self.width]
                    .copy_from_slice(&input[from..from + self.width]);
            }
            for ky in 0..self.kernel.0 {
                for kx in 0..self.kernel.1 {
                    let line = lines.next().expect("there is a line for each weight");
                    let starts = layout
                        .starts
                        .iter()
                        .map(|row| (row + ky) * layout.width + kx);
                    copy_lines(
                        line,
                        self.out_width,
                        &scratch.framed,
                        starts,
                        self.window.stride,
                    );
                }
            }
        }
    }
}

/// What one block after another is laid out in.
#[derive(Default)]
struct Scratch {
    patches: Vec<f32>,
    framed: Vec<f32>,
}

/// Where the input rows under a block of output rows lie when they are set in a frame of zeros.
struct Framed {
    height: usize,
    width: usize,
    /// Row in the frame, image, and row of that image.
    filled: Vec<(usize, usize, usize)>,
    /// For each output row the row in the frame under the first row of the kernel.
    starts: Vec<usize>,
}

impl Framed {
    fn new(geometry: &Geometry, rows: Range<usize>) -> Self {
        let (before, after) = geometry.window.padding;
        let mut framed = Self {
            height: 0,
            width: geometry.width + before + after,
            filled: Vec::new(),
            starts: Vec::with_capacity(rows.len()),
        };
        let mut row = rows.start;
        while row < rows.end {
            let (image, first) = (row / geometry.out_height, row % geometry.out_height);
            let count = (geometry.out_height - first).min(rows.end - row);
            let stride = geometry.window.stride;
            let height = (count - 1) * stride + geometry.kernel.0;
            let inside = (0..height)
                .filter_map(|i| Some((i, (first * stride + i).checked_sub(before)?)))
                .filter(|&(_, y)| y < geometry.height);
            let top = framed.height;
            framed
                .filled
                .extend(inside.map(|(i, y)| (top + i, image, y)));
            framed.starts.extend((0..count).map(|i| top + i * stride));
            framed.height += height;
            row += count;
        }
        framed
    }
}

/// Copies a line of `width` numbers, `stride` apart, from each start.
fn copy_lines(
    to: &mut [f32],
    width: usize,
    from: &[f32],
    starts: impl Iterator<Item = usize>,
    stride: usize,
) {
    // Short lines are the rule in a U-Net; of a length known beforehand they are a load and a store.
    fn fixed<const N: usize>(to: &mut [f32], from: &[f32], starts: impl Iterator<Item = usize>) {
        let (lines, _) = to.as_chunks_mut::<N>();
        for (line, start) in lines.iter_mut().zip(starts) {
            line.copy_from_slice(&from[start..start + N]);
        }
    }
    match (stride, width) {
        (1, 4) => fixed::<4>(to, from, starts),
        (1, 8) => fixed::<8>(to, from, starts),
        (1, 16) => fixed::<16>(to, from, starts),
        (1, 32) => fixed::<32>(to, from, starts),
        _ => {
            for (line, start) in to.chunks_mut(width).zip(starts) {
                let source = from[start..].iter().step_by(stride);
                line.iter_mut()
                    .zip(source)
                    .for_each(|(to, from)| *to = *from);
            }
        }
    }
}

pub(crate) fn forward(
    input: &Contiguous,
    weight: &Contiguous,
    bias: Option<&Contiguous>,
    window: Window,
) -> FlexTensor {
    let (shapes, bias) = (
        (&input.shape(), &weight.shape()),
        bias.map(Contiguous::values),
    );
    convolve(input.values(), weight.values(), bias, shapes, window)
}

fn convolve(
    input: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    shapes: (&Shape, &Shape),
    window: Window,
) -> FlexTensor {
    let geometry = Geometry::new(shapes.0, shapes.1, window);
    let shape = Shape::new([
        geometry.batch,
        geometry.outputs,
        geometry.out_height,
        geometry.out_width,
    ]);
    let values = match winograd::suits(shapes.0, shapes.1, window) {
        true => winograd::convolve(input, weight, bias, shapes, window),
        false => unfolded(&geometry, input, weight, bias),
    };
    tensor(values, shape)
}

/// As products of the weights and unfolded patches.
fn unfolded(geometry: &Geometry, input: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
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
        .map_init(Scratch::default, |scratch, start| {
            let rows = start..(start + rows_per_block).min(geometry.rows());
            let columns = rows.len() * out_width;
            geometry.unfold(input, rows, scratch);
            let mut result = vec![0.0; outputs * columns];
            let weight = Matrix::new(weight, geometry.patch());
            product_into(
                &mut result,
                columns,
                weight,
                Matrix::new(&scratch.patches, columns),
                false,
            );
            (start, result)
        })
        .collect();

    let mut output = vec![0.0; geometry.batch * outputs * geometry.plane()];
    let planes = output.par_chunks_mut(geometry.plane().max(1));
    planes.enumerate().for_each(|(index, plane)| {
        let (first, channel) = (index / outputs * out_height, index % outputs);
        let mut row = first;
        while row < first + out_height {
            let (start, block) = &results[row / rows_per_block];
            let columns = block.len() / outputs;
            let end = (start + columns / out_width).min(first + out_height);
            let from = channel * columns + (row - start) * out_width;
            let to = (row - first) * out_width;
            let length = (end - row) * out_width;
            plane[to..to + length].copy_from_slice(&block[from..from + length]);
            row = end;
        }
        if let Some(bias) = bias {
            plane.iter_mut().for_each(|x| *x += bias[channel]);
        }
    });
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
    convolve(
        grad.values(),
        &turned,
        None,
        (&grad.shape(), &turned_shape),
        window,
    )
}

pub(crate) fn weight_grad(
    input: &Contiguous,
    grad: &Contiguous,
    shape: Shape,
    window: Window,
) -> FlexTensor {
    let geometry = Geometry::new(&input.shape(), &shape, window);
    let (patch, outputs) = (geometry.patch(), geometry.outputs);
    let rows_per_part = geometry.rows().div_ceil(PARTS);
    let rows_per_part = rows_per_part.max(geometry.rows_per_block());
    let parts: Vec<_> = (0..geometry.rows()).step_by(rows_per_part).collect();
    let sums: Vec<Vec<f32>> = parts
        .into_par_iter()
        .map(|start| {
            let mut sum = vec![0.0; outputs * patch];
            let (mut scratch, mut lines) = (Scratch::default(), Vec::new());
            let end = (start + rows_per_part).min(geometry.rows());
            for start in (start..end).step_by(geometry.rows_per_block()) {
                let rows = start..(start + geometry.rows_per_block()).min(end);
                let columns = rows.len() * geometry.out_width;
                geometry.unfold(input.values(), rows.clone(), &mut scratch);
                gather_rows(&geometry, grad.values(), rows, &mut lines);
                let patches = Transposed(Matrix::new(&scratch.patches, columns));
                product_into(&mut sum, patch, Matrix::new(&lines, columns), patches, true);
            }
            sum
        })
        .collect();
    let mut sums = sums.into_iter();
    let mut total = sums.next().unwrap_or_else(|| vec![0.0; outputs * patch]);
    let rest: Vec<_> = sums.collect();
    let lines = total.par_chunks_mut(patch.max(1)).enumerate();
    lines.for_each(|(output, line)| {
        for sum in &rest {
            let part = &sum[output * patch..][..patch];
            line.iter_mut()
                .zip(part)
                .for_each(|(total, part)| *total += part);
        }
    });
    tensor(total, shape)
}

/// The gradient at some output rows, `[outputs, rows·out_width]`.
fn gather_rows(geometry: &Geometry, grad: &[f32], rows: Range<usize>, lines: &mut Vec<f32>) {
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
