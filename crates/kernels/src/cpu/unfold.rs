//! Unfolding (im2col): the patches under output rows become columns of a matrix.

use std::ops::Range;

use burn::tensor::Shape;

use crate::cpu::scratch::with_scratch;
use crate::options::Window;

/// Sizes of one convolution.
#[derive(Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    pub(crate) window: Window,
}

impl Geometry {
    pub(crate) fn new(input: &Shape, weight: &Shape, window: Window) -> Self {
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

    /// Number of rows of the patch matrix.
    pub(crate) fn patch(&self) -> usize {
        self.inputs * self.kernel.0 * self.kernel.1
    }

    /// Number of output rows of the whole batch.
    pub(crate) fn rows(&self) -> usize {
        self.batch * self.out_height
    }

    /// Number of output rows in a block of about `columns` columns.
    pub(crate) fn rows_per_block(&self, columns: usize) -> usize {
        (columns / self.out_width.max(1)).clamp(1, self.rows().max(1))
    }

    /// Writes a channel's patches under some output rows as columns, `[taps, rows·out_width]`.
    pub(crate) fn unfold(
        &self,
        input: &[f32],
        channel: usize,
        layout: &Framed,
        patches: &mut [f32],
    ) {
        with_scratch(|[framed]| {
            let framed = framed.values(layout.height * layout.width);
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

    pub(crate) fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
}

/// The input rows under a block of output rows, padded with a frame of zeros around the rows of each image.
pub(crate) struct Framed {
    height: usize,
    width: usize,
    /// Row of the frame, image, and row of the image.
    filled: Vec<(usize, usize, usize)>,
    /// The row of the frame under the first kernel row, for each output row.
    starts: Vec<usize>,
}

impl Framed {
    pub(crate) fn new(geometry: &Geometry, rows: Range<usize>) -> Self {
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

/// Copies a line of `width` values, `stride` apart, from each start.
fn copy_lines(
    to: &mut [f32],
    width: usize,
    from: &[f32],
    starts: impl Iterator<Item = usize>,
    stride: usize,
) {
    // Lines in a U-Net are mostly short; with a length known at compile time, a line is one load and one store.
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
