//! Convolution as matrix products over unfolded image rows (im2col, a block at a time), and its gradients.
//!
//! ```text
//!                                patches: taps × columns         output rows of the whole batch, taken in blocks
//!                                ┌───────────────┐               of about COLUMNS columns
//!                                │ one block,    │
//!                                │ in cache      │
//!   weight: outputs × taps       └───────────────┘
//!   ┌───────────┐  GROUP outputs ┌───────────────┐
//!   ├───────────┤                │ sums of a     │  → epilogue → output rows
//!   │           │                │ group         │
//! ```
//!
//! Threads process blocks or, if there are fewer blocks than threads, the groups of each block. Neither changes any sum, so
//! results do not depend on the number of threads. Most 3×3 convolutions use [`winograd`] instead.
#![allow(unsafe_code, reason = "threads write disjoint rows of one output")]

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::{Added, Epilogue};
use crate::cpu::multiply::multiply;
use crate::cpu::product::{Matrix, add_product_with_transposed};
use crate::cpu::scratch::{Scratch, with_scratch};
use crate::cpu::stored::{Stored, Weight};
use crate::cpu::target::Target;
use crate::cpu::tensor::{F32, tensor, written_in_chunks};
use crate::cpu::unfold::{Framed, Geometry};
use crate::cpu::winograd;
use crate::options::Window;

/// Target number of columns of the patch matrix: the widest strip of [`multiply`], four AVX-512 vectors, which reads the rows of
/// the weight least often.
const COLUMNS: usize = 64;
/// The same for the weight gradient, whose sums run over the columns: `gemm` packs both operands, which pays off for long sums.
const GRAD_COLUMNS: usize = 512;
/// Rows of the patch matrix multiplied at a time: 512 × 64 values are 128 KiB, a quarter of an L2 cache of 512 KiB.
const INNER: usize = 512;
/// Outputs per task: whole tiles of 6, 8, 12 and 16 rows of [`multiply`], and 48 × 64 sums (12 KiB) stay in the L1 cache.
const GROUP: usize = 48;
/// Maximum number of parts that the sum over a batch is split into for the weight gradient; a constant, so that the order of
/// summation does not depend on the number of threads.
const PARTS: usize = 8;

/// `[batch, inputs, height, width]` with weights `[outputs, inputs, rows, columns]` → `[batch, outputs, height', width']`.
pub(crate) fn forward(input: &F32, weight: &Weight, added: &Added, window: Window) -> FlexTensor {
    let shapes = (&input.shape(), &weight.shape());
    let (input, weight, epilogue) = (input.values(), weight.stored(), added.epilogue());
    convolve(input, weight, epilogue, shapes, window)
}

/// Returns whether [`forward_upsampled`] supports this convolution.
pub(crate) fn fuses_upsampling(input: &FlexTensor, weight: &FlexTensor, window: Window) -> bool {
    F32::is_supported(input)
        && Weight::is_supported(weight)
        && winograd::suits(&input.shape(), &weight.shape(), window, true)
}

/// The convolution of the input upsampled by 2, which is never materialised.
///
/// # Panics
///
/// If it does not [fuse](fuses_upsampling).
pub(crate) fn forward_upsampled(
    input: &F32,
    weight: &Weight,
    added: &Added,
    window: Window,
) -> FlexTensor {
    let shapes = (&input.shape(), &weight.shape());
    let ([batch, _, height, width], [outputs, _, _, _]) = (shapes.0.dims(), shapes.1.dims());
    let (input, weight, epilogue) = (input.values(), weight.stored(), added.epilogue());
    let values = winograd::convolve(input, weight, epilogue, shapes, window, true);
    let out = |size: usize| window.output(2 * size, 3);
    tensor(
        values,
        Shape::new([batch, outputs, out(height), out(width)]),
    )
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
    let unfolded = Unfolded {
        geometry,
        input,
        weight,
        epilogue,
    };
    let values = match winograd::suits(shapes.0, shapes.1, window, false) {
        true => winograd::convolve(input, weight, epilogue, shapes, window, false),
        false => unfolded.convolve(),
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

impl Unfolded<'_> {
    fn convolve(&self) -> Vec<f32> {
        Kernel::Unfolded.count();
        let geometry = &self.geometry;
        let rows = geometry.rows();
        let count = rows * geometry.outputs * geometry.out_width;
        let mut output = Vec::with_capacity(count);
        let target = Target::of(&mut output);
        let rows_per_block = geometry.rows_per_block(COLUMNS);
        let blocks = (0..rows).step_by(rows_per_block);
        let blocks = blocks.map(|start| start..(start + rows_per_block).min(rows));
        if rows.div_ceil(rows_per_block) >= rayon::current_num_threads() {
            let blocks: Vec<_> = blocks.collect();
            blocks
                .into_par_iter()
                .for_each(|rows| self.block(&rows, target));
        } else {
            blocks.for_each(|rows| self.shared_block(&rows, target));
        }
        // SAFETY: the capacity suffices, and the groups of all blocks wrote every row of every output.
        unsafe { output.set_len(count) };
        output
    }

    /// Computes a block on this thread.
    fn block(&self, rows: &Range<usize>, target: Target) {
        let geometry = &self.geometry;
        with_scratch(|[patches]| {
            let layout = Framed::new(geometry, rows.clone());
            let per_channel = geometry.taps() * rows.len() * geometry.out_width;
            let patches = patches.values(geometry.inputs * per_channel);
            let channels = patches.chunks_mut(per_channel).enumerate();
            channels.for_each(|(channel, patches)| {
                geometry.unfold(self.input, channel, &layout, patches);
            });
            for first in (0..geometry.outputs).step_by(GROUP) {
                self.group(first, patches, rows, target);
            }
        });
    }

    /// Computes a block on all threads: channels are unfolded in parallel, then groups of outputs are computed in parallel.
    fn shared_block(&self, rows: &Range<usize>, target: Target) {
        let geometry = &self.geometry;
        with_scratch(|[patches]| {
            let layout = Framed::new(geometry, rows.clone());
            let per_channel = geometry.taps() * rows.len() * geometry.out_width;
            let patches = patches.values(geometry.inputs * per_channel);
            let channels = patches.par_chunks_mut(per_channel).enumerate();
            channels.for_each(|(channel, patches)| {
                geometry.unfold(self.input, channel, &layout, patches);
            });
            let groups = (0..geometry.outputs).into_par_iter().step_by(GROUP);
            groups.for_each(|first| self.group(first, patches, rows, target));
        });
    }

    /// Computes a group of outputs at the output rows of a block.
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
            let sums = sums.values(count * columns);
            for from in (0..patch).step_by(INNER) {
                let inner = INNER.min(patch - from);
                let place = first * patch + from;
                let (left, row) = self.weight.rows(place, patch, [count, inner], widened);
                let left = Matrix::strided(left, count, inner, row);
                let right = Matrix::new(&patches[from * columns..][..inner * columns], columns);
                // SAFETY: the sums have exactly this size, and belong to this thread.
                unsafe { multiply(sums.as_mut_ptr(), columns, left, right, from > 0) };
            }
            for (output, sums) in (first..).zip(sums.chunks(columns)) {
                for (row, sums) in rows.clone().zip(sums.chunks(out_width)) {
                    let (image, y) = (row / out_height, row % out_height);
                    let plane = image * outputs + output;
                    let at = (plane * out_height + y) * out_width;
                    // SAFETY: the row is part of the output, and of no other block or group.
                    unsafe { self.epilogue.finish(sums, target.at(at), plane, at) };
                }
            }
        });
    }
}

/// Returns whether the gradient of the input is a convolution with the kernel rotated by 180°, which [`input_grad`] computes.
pub(crate) fn flips(weight: &Shape, window: Window) -> bool {
    let [_, _, rows, columns] = weight.dims::<4>();
    let (before, after) = window.padding;
    window.stride == 1 && rows == columns && before < rows && after < rows
}

/// Number of inputs whose kernels, which are adjacent in memory, are rotated together.
const INPUTS_PER_TASK: usize = 16;

/// The gradient of the input: the gradient of the output convolved with the rotated kernels, with inputs and outputs swapped.
///
/// # Panics
///
/// If the kernel does not [flip](flips).
pub(crate) fn input_grad(weight: &Weight, grad: &F32, window: Window) -> FlexTensor {
    let [outputs, inputs, rows, columns] = weight.shape().dims::<4>();
    let rotated = rotated_kernels(weight.stored(), [outputs, inputs, rows * columns]);
    let (before, after) = window.padding;
    let window = Window {
        stride: 1,
        padding: (rows - 1 - before, rows - 1 - after),
    };
    convolve(
        grad.values(),
        Stored::F32(&rotated),
        Epilogue::default(),
        (&grad.shape(), &Shape::new([inputs, outputs, rows, columns])),
        window,
    )
}

/// `[outputs, inputs, taps]` → `[inputs, outputs, taps]`, with the taps reversed.
fn rotated_kernels(weight: Stored<'_>, [outputs, inputs, taps]: [usize; 3]) -> Vec<f32> {
    let line = outputs * taps;
    // SAFETY: for each input, the kernels of all outputs are written.
    unsafe {
        written_in_chunks(weight.len(), INPUTS_PER_TASK * line, |group, rotated| {
            let count = rotated.len() / line;
            with_scratch(|[widened]| {
                for output in 0..outputs {
                    let first = output * inputs + group * INPUTS_PER_TASK;
                    let kernels = weight.read(first * taps, count * taps, widened);
                    let lines = rotated.chunks_exact_mut(line);
                    for (line, kernel) in lines.zip(kernels.chunks_exact(taps)) {
                        let to = &mut line[output * taps..][..taps];
                        for (to, from) in to.iter_mut().zip(kernel.iter().rev()) {
                            to.write(*from);
                        }
                    }
                }
            });
        })
    }
}

/// The gradient of the weight, with the given shape.
pub(crate) fn weight_grad(input: &F32, grad: &F32, shape: Shape, window: Window) -> FlexTensor {
    let geometry = Geometry::new(&input.shape(), &shape, window);
    let (patch, outputs) = (geometry.patch(), geometry.outputs);
    let rows_per_block = geometry.rows_per_block(GRAD_COLUMNS);
    let rows_per_part = geometry.rows().div_ceil(PARTS).max(rows_per_block);
    let parts: Vec<_> = (0..geometry.rows()).step_by(rows_per_part).collect();
    let sums: Vec<Vec<f32>> = parts
        .into_par_iter()
        .map(|start| {
            let rows = start..(start + rows_per_part).min(geometry.rows());
            weight_grad_of_rows(&geometry, input.values(), grad.values(), rows)
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

/// The contribution of some output rows to the gradient of the weight.
fn weight_grad_of_rows(
    geometry: &Geometry,
    input: &[f32],
    grad: &[f32],
    rows: Range<usize>,
) -> Vec<f32> {
    let patch = geometry.patch();
    let rows_per_block = geometry.rows_per_block(GRAD_COLUMNS);
    let mut sum = vec![0.0; geometry.outputs * patch];
    let (mut patches, mut lines) = (Scratch::default(), Vec::new());
    for start in rows.clone().step_by(rows_per_block) {
        let rows = start..(start + rows_per_block).min(rows.end);
        let columns = rows.len() * geometry.out_width;
        let layout = Framed::new(geometry, rows.clone());
        let patches = patches.values(patch * columns);
        let channels = patches.chunks_mut(geometry.taps() * columns).enumerate();
        channels.for_each(|(channel, patches)| {
            geometry.unfold(input, channel, &layout, patches);
        });
        gather_rows(geometry, grad, rows, &mut lines);
        let (lines, patches) = (Matrix::new(&lines, columns), Matrix::new(patches, columns));
        add_product_with_transposed(&mut sum, lines, patches);
    }
    sum
}

/// Gathers the gradient of the output at some output rows, `[outputs, rows·out_width]`.
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
