//! Convolution on the CPU as matrix products over unfolded rows of the images.
//!
//! Output rows are counted over the whole batch and taken a block at a time: the patches under a block are laid out as the
//! columns of a matrix that stays in cache, and its product with the weights gives the block. Blocks go to the threads, or,
//! if there are too few, the outputs of each; no sum depends on which, so results are the same on every machine size.
#![allow(
    unsafe_code,
    reason = "threads write rows of their own into one output, which holds nothing before that"
)]

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::Window;
use crate::cpu::epilogue::Epilogue;
use crate::cpu::multiply::multiply;
use crate::cpu::product::{Matrix, add_product_with_transposed};
use crate::cpu::ran::Kernel;
use crate::cpu::scratch::{Scratch, with_scratch};
use crate::cpu::stored::{Stored, Weight};
use crate::cpu::target::Target;
use crate::cpu::winograd;
use crate::cpu::{Contiguous, tensor};

/// Columns of the patch matrix aimed at: as many as a strip of [`multiply`] has, where more rows take them together.
const COLUMNS: usize = 64;
/// The same for the gradient of the weights, where more pay.
const GRAD_COLUMNS: usize = 512;
/// Rows of the patch matrix whose products are summed before the next are read.
const INNER: usize = 512;
/// Outputs that a thread takes at a time.
const GROUP: usize = 48;
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
        let out_height = window.output(height, rows);
        let out_width = window.output(width, columns);
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
    fn rows_per_block(&self, columns: usize) -> usize {
        (columns / self.out_width.max(1)).clamp(1, self.rows().max(1))
    }

    /// Lays a channel's patches under some output rows out as columns, `[taps, rows·out_width]`.
    fn unfold(&self, input: &[f32], channel: usize, layout: &Framed, patches: &mut [f32]) {
        with_scratch(|[framed]| {
            let framed = framed.numbers(layout.height * layout.width);
            framed.fill(0.0);
            for &(to, image, y) in &layout.filled {
                let from = ((image * self.inputs + channel) * self.height + y) * self.width;
                let to = to * layout.width + self.window.padding.0;
                framed[to..to + self.width].copy_from_slice(&input[from..from + self.width]);
            }
            let columns = layout.starts.len() * self.out_width;
            let mut lines = patches.chunks_mut(columns);
            for ky in 0..self.kernel.0 {
                for kx in 0..self.kernel.1 {
                    let line = lines.next().expect("there is a line for each weight");
                    let starts = layout.starts.iter();
                    let starts = starts.map(|row| (row + ky) * layout.width + kx);
                    copy_lines(line, self.out_width, framed, starts, self.window.stride);
                }
            }
        });
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
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
    weight: &Weight,
    epilogue: Epilogue<'_>,
    window: Window,
) -> FlexTensor {
    let shapes = (&input.shape(), &weight.shape());
    convolve(input.values(), weight.stored(), epilogue, shapes, window)
}

/// Of what is doubled, if there is a way that is better than doubling it.
pub(crate) fn forward_doubled(
    input: &Contiguous,
    weight: &Weight,
    epilogue: Epilogue<'_>,
    window: Window,
) -> Option<FlexTensor> {
    let shapes = (&input.shape(), &weight.shape());
    winograd::suits(shapes.0, shapes.1, window, true).then(|| {
        let ([batch, _, height, width], [outputs, _, _, _]) = (shapes.0.dims(), shapes.1.dims());
        let (input, weight) = (input.values(), weight.stored());
        let values = winograd::convolve(input, weight, epilogue, shapes, window, true);
        let out = |size: usize| window.output(2 * size, 3);
        tensor(
            values,
            Shape::new([batch, outputs, out(height), out(width)]),
        )
    })
}

fn convolve(
    input: &[f32],
    weight: Stored<'_>,
    epilogue: Epilogue<'_>,
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
    let values = match winograd::suits(shapes.0, shapes.1, window, false) {
        true => winograd::convolve(input, weight, epilogue, shapes, window, false),
        false => Unfolded::new(geometry, input, weight, epilogue).convolve(),
    };
    tensor(values, shape)
}

/// A convolution as products of the weights and unfolded patches.
struct Unfolded<'a> {
    geometry: Geometry,
    input: &'a [f32],
    weight: Stored<'a>,
    epilogue: Epilogue<'a>,
}

impl<'a> Unfolded<'a> {
    fn new(
        geometry: Geometry,
        input: &'a [f32],
        weight: Stored<'a>,
        epilogue: Epilogue<'a>,
    ) -> Self {
        Self {
            geometry,
            input,
            weight,
            epilogue,
        }
    }

    fn convolve(&self) -> Vec<f32> {
        Kernel::Unfolded.runs();
        let geometry = &self.geometry;
        let (inputs, rows) = (geometry.inputs, geometry.rows());
        let count = rows * geometry.outputs * geometry.out_width;
        let mut output = Vec::with_capacity(count);
        let target = Target::of(&mut output);
        let rows_per_block = geometry.rows_per_block(COLUMNS);
        let blocks = (0..rows).step_by(rows_per_block);
        let blocks = blocks.map(|start| start..(start + rows_per_block).min(rows));
        let of_channel = |rows: usize| geometry.taps() * rows * geometry.out_width;
        if rows.div_ceil(rows_per_block) >= rayon::current_num_threads() {
            let blocks: Vec<_> = blocks.collect();
            blocks.into_par_iter().for_each(|rows| {
                with_scratch(|[patches]| {
                    let layout = Framed::new(geometry, rows.clone());
                    let of_channel = of_channel(rows.len());
                    let patches = patches.numbers(inputs * of_channel);
                    let channels = patches.chunks_mut(of_channel).enumerate();
                    channels.for_each(|(channel, patches)| {
                        geometry.unfold(self.input, channel, &layout, patches);
                    });
                    for first in (0..geometry.outputs).step_by(GROUP) {
                        self.group(first, patches, &rows, target);
                    }
                });
            });
        } else {
            let mut patches = Scratch::default();
            for rows in blocks {
                let layout = Framed::new(geometry, rows.clone());
                let of_channel = of_channel(rows.len());
                let patches = patches.numbers(inputs * of_channel);
                let channels = patches.par_chunks_mut(of_channel).enumerate();
                channels.for_each(|(channel, patches)| {
                    geometry.unfold(self.input, channel, &layout, patches);
                });
                let groups = (0..geometry.outputs).into_par_iter().step_by(GROUP);
                groups.for_each(|first| self.group(first, patches, &rows, target));
            }
        }
        // SAFETY: so many fit, and the groups of all blocks have written every row of every output.
        unsafe { output.set_len(count) };
        output
    }

    /// Some outputs at some output rows.
    fn group(&self, first: usize, patches: &[f32], rows: &Range<usize>, target: Target) {
        let Geometry {
            outputs,
            out_height,
            out_width,
            ..
        } = self.geometry;
        let (patch, columns) = (self.geometry.patch(), rows.len() * out_width);
        let count = GROUP.min(outputs - first);
        with_scratch(|[sums, widened]| {
            let sums = sums.numbers(count * columns);
            for from in (0..patch).step_by(INNER) {
                let inner = INNER.min(patch - from);
                let place = first * patch + from;
                let (left, row) = self.weight.rows(place, patch, [count, inner], widened);
                let left = Matrix::spaced(left, count, inner, row);
                let right = Matrix::new(&patches[from * columns..][..inner * columns], columns);
                // SAFETY: the sums are of just this size, and this thread's.
                unsafe { multiply(sums.as_mut_ptr(), columns, left, right, from > 0) };
            }
            for (output, sums) in (first..).zip(sums.chunks(columns)) {
                for (row, sums) in rows.clone().zip(sums.chunks(out_width)) {
                    let (image, y) = (row / out_height, row % out_height);
                    let plane = image * outputs + output;
                    let at = (plane * out_height + y) * out_width;
                    // SAFETY: the row is of the output, and no other block or group has it.
                    unsafe { self.epilogue.finish(sums, target.at(at), plane, at) };
                }
            }
        });
    }
}

/// Whether the gradient for the input is a convolution with the kernel turned by half a turn.
pub(crate) fn can_turn(weight: &Shape, window: Window) -> bool {
    let [_, _, rows, columns] = weight.dims::<4>();
    let (before, after) = window.padding;
    window.stride == 1 && rows == columns && before < rows && after < rows
}

/// Inputs whose kernels, which lie side by side, are turned together.
const INPUTS_TURNED: usize = 16;

pub(crate) fn input_grad(weight: &Contiguous, grad: &Contiguous, window: Window) -> FlexTensor {
    let [outputs, inputs, rows, columns] = weight.shape().dims::<4>();
    let taps = rows * columns;
    let source = weight.values();
    let mut turned = vec![0.0; source.len()];
    let groups = turned.par_chunks_mut(INPUTS_TURNED * outputs * taps);
    groups.enumerate().for_each(|(group, turned)| {
        for output in 0..outputs {
            let first = output * inputs + group * INPUTS_TURNED;
            let kernels = source[first * taps..].chunks_exact(taps);
            let lines = turned.chunks_exact_mut(outputs * taps);
            for (line, kernel) in lines.zip(kernels) {
                let to = &mut line[output * taps..][..taps];
                let pairs = to.iter_mut().zip(kernel.iter().rev());
                pairs.for_each(|(to, from)| *to = *from);
            }
        }
    });
    let (before, after) = window.padding;
    let window = Window {
        stride: 1,
        padding: (rows - 1 - before, rows - 1 - after),
    };
    let turned_shape = Shape::new([inputs, outputs, rows, columns]);
    convolve(
        grad.values(),
        Stored::F32(&turned),
        Epilogue::default(),
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
    let rows_per_block = geometry.rows_per_block(GRAD_COLUMNS);
    let rows_per_part = rows_per_part.max(rows_per_block);
    let parts: Vec<_> = (0..geometry.rows()).step_by(rows_per_part).collect();
    let sums: Vec<Vec<f32>> = parts
        .into_par_iter()
        .map(|start| {
            let mut sum = vec![0.0; outputs * patch];
            let (mut patches, mut lines) = (Scratch::default(), Vec::new());
            let end = (start + rows_per_part).min(geometry.rows());
            for start in (start..end).step_by(rows_per_block) {
                let rows = start..(start + rows_per_block).min(end);
                let columns = rows.len() * geometry.out_width;
                let layout = Framed::new(&geometry, rows.clone());
                let patches = patches.numbers(patch * columns);
                let channels = patches.chunks_mut(geometry.taps() * columns).enumerate();
                channels.for_each(|(channel, patches)| {
                    geometry.unfold(input.values(), channel, &layout, patches);
                });
                gather_rows(&geometry, grad.values(), rows, &mut lines);
                let (lines, patches) =
                    (Matrix::new(&lines, columns), Matrix::new(patches, columns));
                add_product_with_transposed(&mut sum, lines, patches);
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
