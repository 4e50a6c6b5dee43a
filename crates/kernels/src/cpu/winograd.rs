//! 3×3 convolution with stride 1 on the CPU by Winograd's F(4×4, 3×3) (Lavin & Gray, arXiv 1509.09308): tiles of 4×4 pixels
//! take 36 multiplications for each pair of channels instead of 144.
//!
//! Tiles are counted over the whole batch and taken sixteen at a time, as the lanes of a vector: a unit. Where there
//! are few, the patches of all of them are transformed first, and each thread then transforms the weights of some outputs,
//! uses them and forgets them. Where there are many, the weights are transformed first, and each thread takes a block of
//! tiles from the input to the output. What is between stays in cache, and no sum depends on the number of threads.
#![allow(
    unsafe_code,
    reason = "threads write lines of their own into one array, which holds nothing before that"
)]

use burn::tensor::Shape;
use rayon::prelude::*;

use crate::Window;
use crate::cpu::epilogue::Epilogue;
use crate::cpu::fetch::fetch;
use crate::cpu::multiply::multiply;
use crate::cpu::points::{
    LANES, PATCH, POINTS, TILE, kernels_at_points, patches_at_points, pixels_of_points,
};
use crate::cpu::product::Matrix;
use crate::cpu::ran::Kernel;
use crate::cpu::scratch::with_scratch;
use crate::cpu::stored::Stored;
use crate::cpu::target::Target;
use crate::cpu::transpose::{join, part, transpose};

/// Units whose patches lie side by side: the columns of a product.
const PANEL: usize = 4;
/// Panels up to which the weights are not worth keeping for all outputs.
const FEW: usize = 8;
/// Outputs whose weights or products are there at once; rows of a tile of [`multiply`] divide it.
const GROUP: usize = 48;
/// The same, and inputs, where there is one panel only.
const SMALL_GROUP: usize = 24;
const SMALL_INPUTS: usize = 192;
/// Keeps lines apart that would otherwise fall on the same place of a cache.
const APART: usize = 16;
/// Channels in and out, and tiles, from which on transforming pays.
const CHANNELS: usize = 32;
const TILES: usize = 16;

/// Whether it is the better way for these sizes, the input's being twice as large as given if it is doubled.
pub(crate) fn suits(input: &Shape, weight: &Shape, window: Window, is_doubled: bool) -> bool {
    let ([_, inputs, _, _], [outputs, _, rows, columns]) = (input.dims::<4>(), weight.dims::<4>());
    if [rows, columns] != [3, 3] || window.stride != 1 || inputs < CHANNELS {
        return false;
    }
    let sizes = Sizes::new(input, weight, window, is_doubled);
    if outputs < CHANNELS && sizes.panels() <= FEW {
        return false;
    }
    let pixels = sizes.batch * sizes.out_height * sizes.out_width;
    // Tiles that stick out are computed in vain.
    sizes.tiles() >= TILES && sizes.tiles() * TILE * TILE <= pixels * 3 / 2
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    /// Zeros above and to the left.
    padding: usize,
    /// Whether each pixel of what is given stands for four of the input.
    is_doubled: bool,
    out_height: usize,
    out_width: usize,
    /// Tiles in a column and in a row of an image.
    down: usize,
    across: usize,
}

impl Sizes {
    fn new(input: &Shape, weight: &Shape, window: Window, is_doubled: bool) -> Self {
        let [batch, inputs, height, width] = input.dims::<4>();
        let [outputs, _, _, _] = weight.dims::<4>();
        let times = if is_doubled { 2 } else { 1 };
        let (height, width) = (height * times, width * times);
        let (out_height, out_width) = (window.output(height, 3), window.output(width, 3));
        Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            padding: window.padding.0,
            is_doubled,
            out_height,
            out_width,
            down: out_height.div_ceil(TILE),
            across: out_width.div_ceil(TILE),
        }
    }

    fn tiles(&self) -> usize {
        self.batch * self.down * self.across
    }

    fn units(&self) -> usize {
        self.tiles().div_ceil(LANES)
    }

    fn panels(&self) -> usize {
        self.units().div_ceil(PANEL)
    }

    /// The units of a panel, each as its rows of tiles.
    fn places(&self, panel: usize) -> Vec<Vec<Run>> {
        let units = panel * PANEL..((panel + 1) * PANEL).min(self.units());
        units.map(|unit| self.runs(unit).collect()).collect()
    }

    fn runs(&self, unit: usize) -> impl Iterator<Item = Run> {
        let (first, end) = (unit * LANES, ((unit + 1) * LANES).min(self.tiles()));
        let (down, across) = (self.down, self.across);
        (first / across..end.div_ceil(across)).map(move |row| {
            let (from, to) = ((row * across).max(first), ((row + 1) * across).min(end));
            Run {
                image: row / down,
                row: row % down,
                column: from % across,
                lane: from - first,
                length: to - from,
            }
        })
    }
}

/// Tiles of one row that lie side by side in a unit.
struct Run {
    image: usize,
    /// Row and column of the first tile.
    row: usize,
    column: usize,
    /// Where it is in the unit.
    lane: usize,
    length: usize,
}

/// `[batch, inputs, height, width]` with weights `[outputs, inputs, 3, 3]` → `[batch, outputs, height', width']`; if it is
/// doubled, the input has half that height and width.
pub(crate) fn convolve(
    input: &[f32],
    weight: Stored<'_>,
    epilogue: Epilogue<'_>,
    shapes: (&Shape, &Shape),
    window: Window,
    is_doubled: bool,
) -> Vec<f32> {
    Kernel::Winograd.runs();
    let sizes = Sizes::new(shapes.0, shapes.1, window, is_doubled);
    let count = sizes.batch * sizes.outputs * sizes.out_height * sizes.out_width;
    let mut output = Vec::with_capacity(count);
    let convolution = Convolution {
        sizes,
        input,
        weight,
        epilogue,
        output: Target::of(&mut output),
    };
    if sizes.panels() <= FEW {
        convolution.patches_first();
    } else {
        convolution.weights_first();
    }
    // SAFETY: so many fit, and every tile of every output was written.
    unsafe { output.set_len(count) };
    output
}

/// A panel's patches: `[POINTS, channels, units, LANES]`, with points somewhat apart.
#[derive(Clone, Copy)]
struct Patches {
    at: Target,
    channels: usize,
    units: usize,
}

impl Patches {
    fn length(channels: usize, units: usize) -> usize {
        POINTS * Self::of_point(channels, units)
    }

    fn of_point(channels: usize, units: usize) -> usize {
        units * LANES * channels + APART
    }

    /// Transforms what is under a channel of a unit.
    ///
    /// # Safety
    ///
    /// No other thread touches it meanwhile.
    unsafe fn write(&self, unit: usize, channel: usize, under: &[[[f32; LANES]; PATCH]; PATCH]) {
        let line = (channel * self.units + unit) * LANES;
        let first = self.at.at(line);
        patches_at_points(under, first, Self::of_point(self.channels, self.units));
    }

    /// The columns of some channels at a point.
    ///
    /// # Safety
    ///
    /// They are written, and nobody writes to them meanwhile.
    unsafe fn matrix(&self, point: usize, first: usize, count: usize) -> Matrix<'_> {
        let columns = self.units * LANES;
        let at = point * Self::of_point(self.channels, self.units) + first * columns;
        // SAFETY: the channels are of the array; the rest is the caller's.
        let values = unsafe { self.at.read(at, count * columns) };
        Matrix::new(values, columns)
    }
}

/// Weights at all points, for some outputs and inputs: `[POINTS, outputs, inputs]`, with lines somewhat apart.
#[derive(Clone, Copy)]
struct Weights {
    at: Target,
    outputs: usize,
    inputs: usize,
}

impl Weights {
    fn length(outputs: usize, inputs: usize) -> usize {
        POINTS * Self::of_point(outputs, inputs)
    }

    fn of_point(outputs: usize, inputs: usize) -> usize {
        outputs * (inputs + APART) + APART
    }

    /// Writes an output's weights from `[inputs, 9]`.
    ///
    /// # Safety
    ///
    /// No other thread touches them meanwhile.
    unsafe fn write(&self, output: usize, kernels: &[f32]) {
        let mut taps = [[0.0; LANES]; 9];
        let line = |point: usize| {
            point * Self::of_point(self.outputs, self.inputs) + output * (self.inputs + APART)
        };
        for (index, kernels) in kernels.chunks(9 * LANES).enumerate() {
            let count = kernels.len() / 9;
            transpose(kernels, 9, [count, 9], taps.as_flattened_mut(), LANES);
            let mut values = [[0.0; LANES]; POINTS];
            kernels_at_points(&taps, &mut values);
            for (point, values) in values.iter().enumerate() {
                let at = line(point) + index * LANES;
                // SAFETY: the line, and what keeps it apart, is of the array; the rest is the caller's.
                unsafe { self.at.write_line(at, values) };
            }
        }
        for point in 0..POINTS {
            // SAFETY: as above; so that what lies between two lines can be read.
            unsafe { self.at.write_line(line(point) + self.inputs, &[0.0; LANES]) };
        }
    }

    /// Some outputs' weights at a point.
    ///
    /// # Safety
    ///
    /// They are written, and nobody writes to them meanwhile.
    unsafe fn matrix(&self, point: usize, first: usize, count: usize) -> Matrix<'_> {
        let line = self.inputs + APART;
        let at = point * Self::of_point(self.outputs, self.inputs) + first * line;
        // SAFETY: the outputs are of the array; the rest is the caller's.
        let values = unsafe { self.at.read(at, count * line) };
        Matrix::spaced(values, count, self.inputs, line)
    }
}

struct Convolution<'a> {
    sizes: Sizes,
    input: &'a [f32],
    weight: Stored<'a>,
    epilogue: Epilogue<'a>,
    output: Target,
}

impl Convolution<'_> {
    /// The patches of all tiles, and then a group of outputs after the other, each thread with its own.
    fn patches_first(&self) {
        let Sizes {
            inputs, outputs, ..
        } = self.sizes;
        let places: Vec<_> = (0..self.sizes.panels())
            .map(|panel| self.sizes.places(panel))
            .collect();
        let mut memory: Vec<_> = places
            .iter()
            .map(|places| Vec::with_capacity(Patches::length(inputs, places.len())))
            .collect();
        let patches = memory.iter_mut().zip(&places);
        let patches: Vec<_> = patches
            .map(|(memory, places)| Patches {
                at: Target::of(memory),
                channels: inputs,
                units: places.len(),
            })
            .collect();
        let panels = || patches.iter().zip(&places);
        (0..inputs).into_par_iter().for_each(|channel| {
            for (patches, places) in panels() {
                // SAFETY: each channel is written by one thread.
                unsafe { self.transform(channel, places, patches) };
            }
        });

        // A few inputs at a time, so that their weights stay in cache, unless the products of a panel have to make room for
        // those of the next.
        let (group, at_once) = match patches.len() {
            1 => (SMALL_GROUP, SMALL_INPUTS.min(inputs)),
            _ => (GROUP, inputs),
        };
        (0..outputs)
            .into_par_iter()
            .step_by(group)
            .for_each(|first| {
                let count = group.min(outputs - first);
                with_scratch(|[weights, products, widened]| {
                    let weights = weights.numbers(Weights::length(count, at_once));
                    let weights = Target::of_slice(weights);
                    for (panel, (patches, places)) in panels().enumerate() {
                        let mut products = Products::new(products, count, patches.units);
                        for from in (0..inputs).step_by(at_once) {
                            let weights = Weights {
                                at: weights,
                                outputs: count,
                                inputs: at_once.min(inputs - from),
                            };
                            if panel == 0 {
                                for output in 0..count {
                                    let kernels = ((first + output) * inputs + from) * 9;
                                    let kernels =
                                        self.weight.read(kernels, weights.inputs * 9, widened);
                                    // SAFETY: they are this thread's.
                                    unsafe { weights.write(output, kernels) };
                                }
                            }
                            // SAFETY: the patches are all written, and the weights by this thread.
                            unsafe { products.add(&weights, 0, patches, from, from > 0) };
                        }
                        self.write(&products, first, places);
                    }
                });
            });
    }

    /// The weights of all outputs, and then a panel after the other, each thread with its own.
    fn weights_first(&self) {
        let Sizes {
            inputs, outputs, ..
        } = self.sizes;
        let mut memory = Vec::with_capacity(Weights::length(outputs, inputs));
        let weights = Weights {
            at: Target::of(&mut memory),
            outputs,
            inputs,
        };
        (0..outputs).into_par_iter().for_each(|output| {
            with_scratch(|[widened]| {
                let kernels = self.weight.read(output * inputs * 9, inputs * 9, widened);
                // SAFETY: each output is written by one thread.
                unsafe { weights.write(output, kernels) };
            });
        });

        (0..self.sizes.panels()).into_par_iter().for_each(|panel| {
            let places = self.sizes.places(panel);
            with_scratch(|[patches, products]| {
                let patches = patches.numbers(Patches::length(inputs, places.len()));
                let patches = Patches {
                    at: Target::of_slice(patches),
                    channels: inputs,
                    units: places.len(),
                };
                for channel in 0..inputs {
                    // SAFETY: they are this thread's.
                    unsafe { self.transform(channel, &places, &patches) };
                }
                for first in (0..outputs).step_by(GROUP) {
                    let count = GROUP.min(outputs - first);
                    let mut products = Products::new(products, count, patches.units);
                    // SAFETY: the weights are all written, and the patches by this thread.
                    unsafe { products.add(&weights, first, &patches, 0, false) };
                    self.write(&products, first, &places);
                }
            });
        });
    }

    /// Transforms a channel's patches of a panel.
    ///
    /// # Safety
    ///
    /// No other thread touches this channel of the patches meanwhile.
    unsafe fn transform(&self, channel: usize, places: &[Vec<Run>], patches: &Patches) {
        let mut under = [[[0.0; LANES]; PATCH]; PATCH];
        for (unit, runs) in places.iter().enumerate() {
            self.fetch_input(channel + 1, runs);
            self.gather(channel, runs, &mut under);
            // SAFETY: as the caller has promised.
            unsafe { patches.write(unit, channel, &under) };
        }
    }

    /// Asks for the numbers under some tiles, which lie too far apart for the processor to guess.
    fn fetch_input(&self, channel: usize, runs: &[Run]) {
        let Sizes {
            inputs,
            height,
            width,
            padding,
            is_doubled,
            ..
        } = self.sizes;
        let times = if is_doubled { 2 } else { 1 };
        for run in runs {
            let plane = (run.image * inputs + channel) * height / times;
            for row in (0..PATCH).step_by(times) {
                let y = (run.row * TILE + row).saturating_sub(padding) / times;
                let at = ((plane + y) * width + run.column * TILE) / times;
                let count = run.length * TILE / times;
                fetch(self.input.as_ptr().wrapping_add(at), count);
            }
        }
    }

    /// Asks for the pixels of some tiles, and for those that are added to them.
    fn fetch_output(&self, output: usize, runs: &[Run]) {
        let Sizes {
            outputs,
            out_height,
            out_width,
            ..
        } = self.sizes;
        for run in runs {
            let plane = (run.image * outputs + output) * out_height;
            for row in run.row * TILE..(run.row + 1) * TILE {
                let at = (plane + row) * out_width + run.column * TILE;
                fetch(self.output.at(at), run.length * TILE);
                if let Some(residual) = self.epilogue.residual {
                    fetch(residual.as_ptr().wrapping_add(at), run.length * TILE);
                }
            }
        }
    }

    /// The numbers under sixteen tiles, row after row.
    fn gather(&self, channel: usize, runs: &[Run], values: &mut [[[f32; LANES]; PATCH]; PATCH]) {
        let Sizes {
            inputs,
            height,
            width,
            padding,
            is_doubled,
            ..
        } = self.sizes;
        let times = if is_doubled { 2 } else { 1 };
        let (rows, columns) = (height / times, width / times);
        let mut framed = [0.0; TILE * LANES + 2];
        for run in runs {
            let plane = (run.image * inputs + channel) * rows * columns;
            let plane = &self.input[plane..][..rows * columns];
            let length = TILE * run.length + 2;
            // Where the run begins in a row of the image, and how much of it lies to the left of that.
            let (start, before) = match (run.column * TILE).checked_sub(padding) {
                Some(start) => (start.min(width), 0),
                None => (0, (padding - run.column * TILE).min(length)),
            };
            let inside = (width - start).min(length - before);
            for (row, lines) in values.iter_mut().enumerate() {
                let y = (run.row * TILE + row).wrapping_sub(padding);
                if y >= height {
                    for line in lines {
                        line[run.lane..][..run.length].fill(0.0);
                    }
                    continue;
                }
                let image = &plane[y / times * columns..][..columns];
                let source = if inside == length && !is_doubled {
                    &image[start..][..length]
                } else {
                    let framed = &mut framed[..length];
                    framed.fill(0.0);
                    let within = &mut framed[before..][..inside];
                    if is_doubled {
                        double_row(within, image, start);
                    } else {
                        within.copy_from_slice(&image[start..][..inside]);
                    }
                    &*framed
                };
                part_row(source, lines, run.lane, run.length);
            }
        }
    }

    /// Turns a panel's products into pixels, for outputs from the first on.
    fn write(&self, products: &Products<'_>, first: usize, places: &[Vec<Run>]) {
        for output in 0..products.outputs {
            for (unit, runs) in places.iter().enumerate() {
                self.fetch_output(first + output + 1, runs);
                let (points, apart) = products.lines(output, unit);
                let mut parted = [[[0.0; LANES]; TILE]; TILE];
                pixels_of_points(points, apart, &mut parted);
                for (row, parted) in parted.iter().enumerate() {
                    let mut pixels = [0.0; TILE * LANES];
                    join(parted, &mut pixels);
                    self.write_row(&pixels, first + output, row, runs);
                }
            }
        }
    }

    /// One row of pixels of a unit.
    fn write_row(&self, pixels: &[f32; TILE * LANES], output: usize, row: usize, runs: &[Run]) {
        let Sizes {
            outputs,
            out_height,
            out_width,
            ..
        } = self.sizes;
        for run in runs {
            let (x, y) = (run.column * TILE, run.row * TILE + row);
            if y < out_height {
                let length = (run.length * TILE).min(out_width - x);
                let plane = run.image * outputs + output;
                let at = (plane * out_height + y) * out_width + x;
                let pixels = &pixels[run.lane * TILE..][..length];
                // SAFETY: the pixels are of the output, and no other thread has this output's tile.
                unsafe { self.epilogue.finish(pixels, self.output.at(at), plane, at) };
            }
        }
    }
}

/// Products of some outputs and units, `[POINTS, outputs, units, LANES]`.
struct Products<'a> {
    values: &'a mut [f32],
    outputs: usize,
    units: usize,
}

impl<'a> Products<'a> {
    fn new(scratch: &'a mut crate::cpu::scratch::Scratch, outputs: usize, units: usize) -> Self {
        Self {
            values: scratch.numbers(POINTS * (outputs * units * LANES + APART)),
            outputs,
            units,
        }
    }

    fn start(&self, point: usize, output: usize, unit: usize) -> usize {
        point * (self.outputs * self.units * LANES + APART) + (output * self.units + unit) * LANES
    }

    /// Weights of outputs from the first on, times patches of inputs from `from` on, instead of what is there or beside it.
    ///
    /// # Safety
    ///
    /// Both are written, and nobody writes to them meanwhile.
    unsafe fn add(
        &mut self,
        weights: &Weights,
        first: usize,
        patches: &Patches,
        from: usize,
        add: bool,
    ) {
        for point in 0..POINTS {
            // SAFETY: as the caller has promised; the products are this thread's, and large enough.
            unsafe {
                let left = weights.matrix(point, first, self.outputs);
                let right = patches.matrix(point, from, weights.inputs);
                let target = self.values.as_mut_ptr().add(self.start(point, 0, 0));
                multiply(target, self.units * LANES, left, right, add);
            }
        }
    }

    /// Where a unit's lines begin, and how far apart they are.
    fn lines(&self, output: usize, unit: usize) -> (&[f32], usize) {
        let apart = self.start(1, 0, 0);
        (&self.values[self.start(0, output, unit)..], apart)
    }
}

/// Numbers of a row of twice the width, from the first on.
fn double_row(to: &mut [f32], row: &[f32], first: usize) {
    let (odd, pairs) = to.split_at_mut(first % 2);
    if let [odd] = odd {
        *odd = row[first / 2];
    }
    let row = &row[first.div_ceil(2)..];
    let (pairs, last) = pairs.as_chunks_mut::<2>();
    for (pair, value) in pairs.iter_mut().zip(row) {
        *pair = [*value; 2];
    }
    if let [last] = last {
        *last = row[pairs.len()];
    }
}

/// Parts a row under some tiles by the place in their patch: six lines, from a lane on.
fn part_row(source: &[f32], lines: &mut [[f32; LANES]; PATCH], lane: usize, length: usize) {
    if let Ok(source) = source.try_into() {
        return part(source, lines);
    }
    // Four lines are turned faster than two, so two of them are turned twice.
    for first in [0, PATCH - TILE] {
        let lines = lines[first..].as_flattened_mut();
        let source = &source[first..];
        transpose(source, TILE, [length, TILE], &mut lines[lane..], LANES);
    }
}
