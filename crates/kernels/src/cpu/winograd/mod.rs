//! 3×3 convolution with stride 1 using Winograd's F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308): an output tile of 4×4 pixels
//! takes 36 multiplications per pair of channels instead of 144.
//!
//! ```text
//!  input ──gather──► 16 patches of 6×6 ──Bᵀ·d·B──► Patches  [36 points, inputs,  units × 16 tiles]
//!                                                     ╲
//!                                                       36 products, one per point ──► Products [36, outputs, units × 16]
//!                                                     ╱                                    │
//!  weight ─────────► kernels of 3×3   ──G·g·Gᵀ──► Weights  [36 points, outputs, inputs]    └─Aᵀ·m·A─► epilogue ─► 4×4 tiles
//!
//!  tiles of the whole batch, in rows of an image:
//!  ┌──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┐ unit: LANES = 16 tiles, the lanes of the transforms
//!  └──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴──┘ (a unit may continue in the next row: each piece is a run)
//!  ┌──────────────┬──────────────┬──────────────┬──────────────┐
//!  │    unit      │    unit      │    unit      │    unit      │ panel: PANEL = 4 units, the 64 columns of a product
//!  └──────────────┴──────────────┴──────────────┴──────────────┘
//! ```
//!
//! There are two loop orders, depending on the number of panels:
//!
//! - *Patches first* (at most FEW panels, a U-Net): all patches are transformed once, in parallel over channels. Each task
//!   then takes a group of outputs, transforms their weights, uses them for all panels and drops them. The transformed
//!   weights, four times as large as the weights, never go through memory.
//! - *Weights first* (more panels, a decoder): all weights are transformed once. Each task then takes a panel from input to
//!   output, and its patches and products stay in cache.
//!
//! No sum depends on the number of threads.
#![allow(unsafe_code, reason = "threads write disjoint lines of shared buffers")]

mod buffers;
mod points;
mod sizes;

use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::Epilogue;
use crate::cpu::prefetch::prefetch;
use crate::cpu::scratch::with_scratch;
use crate::cpu::stored::Stored;
use crate::cpu::target::Target;
use crate::cpu::transpose::{deinterleave, interleave, transpose};
use crate::options::Window;

use buffers::{Patches, Products, Weights};
use points::{LANES, PATCH, TILE, pixels_of_points};
use sizes::{FEW, Run, Sizes};

pub(crate) use sizes::suits;

/// Outputs per group: whole tiles of 6, 8, 12 and 16 rows of [`multiply`](crate::cpu::multiply). Groups of 96 to 576 outputs were no faster
/// (docs/log.md, 2026-11-25).
const GROUP: usize = 48;
/// Outputs per group and inputs per step if there is a single panel, as at 32×32 pixels and below. The weights of a step,
/// 36 × 24 × 192 values (0.65 MB), then stay in the L2 cache between their transformation and their only use.
const SMALL_GROUP: usize = 24;
const SMALL_INPUTS: usize = 192;

/// `[batch, inputs, height, width]` with weights `[outputs, inputs, 3, 3]` → `[batch, outputs, height', width']`. With
/// `upsample`, the input is upsampled by 2 while it is read.
pub(crate) fn convolve(
    input: &[f32],
    weight: Stored<'_>,
    epilogue: Epilogue<'_>,
    shapes: (&Shape, &Shape),
    window: Window,
    upsample: bool,
) -> Vec<f32> {
    Kernel::Winograd.count();
    let sizes = Sizes::new(shapes.0, shapes.1, window, upsample);
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
    // SAFETY: the capacity suffices, and every tile of every output was written.
    unsafe { output.set_len(count) };
    output
}

struct Convolution<'a> {
    sizes: Sizes,
    input: &'a [f32],
    weight: Stored<'a>,
    epilogue: Epilogue<'a>,
    output: Target,
}

impl Convolution<'_> {
    /// Transforms all patches, then computes the outputs a group at a time.
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
        let panels = memory.iter_mut().zip(&places);
        let panels: Vec<_> = panels
            .map(|(memory, places)| {
                let patches = Patches {
                    at: Target::of(memory),
                    channels: inputs,
                    units: places.len(),
                };
                (patches, places.as_slice())
            })
            .collect();
        (0..inputs).into_par_iter().for_each(|channel| {
            for (patches, places) in &panels {
                // SAFETY: each channel is written by one thread.
                unsafe { self.transform(channel, places, patches) };
            }
        });
        let group = match panels.len() {
            1 => SMALL_GROUP,
            _ => GROUP,
        };
        let groups = (0..outputs).into_par_iter().step_by(group);
        // SAFETY: the patches are all initialised.
        groups.for_each(|first| unsafe { self.group(first, group.min(outputs - first), &panels) });
    }

    /// Computes `count` outputs from `first` on, at all tiles.
    ///
    /// # Safety
    ///
    /// The patches are initialised, and nothing writes to them during the call.
    unsafe fn group(&self, first: usize, count: usize, panels: &[(Patches, &[Vec<Run>])]) {
        let inputs = self.sizes.inputs;
        // A single panel takes a few inputs at a time, so that their weights stay in cache. With several panels, the weights
        // of all inputs are kept for the next panel.
        let at_once = match panels.len() {
            1 => SMALL_INPUTS.min(inputs),
            _ => inputs,
        };
        with_scratch(|[weights, products, widened]| {
            let weights = Target::of_slice(weights.values(Weights::length(count, at_once)));
            for (panel, (patches, places)) in panels.iter().enumerate() {
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
                            let kernels = self.weight.read(kernels, weights.inputs * 9, widened);
                            // SAFETY: they are this thread's.
                            unsafe { weights.write(output, kernels) };
                        }
                    }
                    // SAFETY: this thread has written the weights; the patches are guaranteed by the caller.
                    unsafe { products.add(&weights, 0, patches, from, from > 0) };
                }
                self.write(&products, first, places);
            }
        });
    }

    /// Transforms all weights, then computes the tiles a panel at a time.
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
        let panels = (0..self.sizes.panels()).into_par_iter();
        // SAFETY: the weights are all initialised.
        panels.for_each(|panel| unsafe { self.panel(panel, &weights) });
    }

    /// Computes a panel of tiles for all outputs.
    ///
    /// # Safety
    ///
    /// The weights are initialised, and nothing writes to them during the call.
    unsafe fn panel(&self, panel: usize, weights: &Weights) {
        let Sizes {
            inputs, outputs, ..
        } = self.sizes;
        let places = self.sizes.places(panel);
        with_scratch(|[patches, products]| {
            let patches = patches.values(Patches::length(inputs, places.len()));
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
                // SAFETY: this thread has written the patches; the weights are guaranteed by the caller.
                unsafe { products.add(weights, first, &patches, 0, false) };
                self.write(&products, first, &places);
            }
        });
    }

    /// Transforms the patches of one channel of a panel.
    ///
    /// # Safety
    ///
    /// No other thread accesses this channel of the patches during the call.
    unsafe fn transform(&self, channel: usize, places: &[Vec<Run>], patches: &Patches) {
        let mut under = [[[0.0; LANES]; PATCH]; PATCH];
        for (unit, runs) in places.iter().enumerate() {
            self.prefetch_input(channel + 1, runs);
            self.gather(channel, runs, &mut under);
            // SAFETY: guaranteed by the caller.
            unsafe { patches.write(unit, channel, &under) };
        }
    }

    /// Prefetches the input under a unit, a few hundred bytes from each of many channels, which the hardware prefetcher cannot
    /// predict. It reduced the time of the decoder from 2.46 to 2.28 s (docs/log.md, 2026-11-25).
    fn prefetch_input(&self, channel: usize, runs: &[Run]) {
        let Sizes {
            inputs,
            height,
            width,
            padding,
            upsample,
            ..
        } = self.sizes;
        let times = if upsample { 2 } else { 1 };
        for run in runs {
            let plane = (run.image * inputs + channel) * height / times;
            for row in (0..PATCH).step_by(times) {
                let y = (run.row * TILE + row).saturating_sub(padding) / times;
                let at = ((plane + y) * width + run.column * TILE) / times;
                let count = run.length * TILE / times;
                prefetch(self.input.as_ptr().wrapping_add(at), count);
            }
        }
    }

    /// Prefetches the output under a unit and the residual that is added to it, which saves another 0.1 s.
    fn prefetch_output(&self, output: usize, runs: &[Run]) {
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
                prefetch(self.output.at(at), run.length * TILE);
                if let Some(residual) = self.epilogue.residual {
                    prefetch(residual.as_ptr().wrapping_add(at), run.length * TILE);
                }
            }
        }
    }

    /// Gathers the patches of a unit: for each row, six lines with one lane per tile.
    fn gather(&self, channel: usize, runs: &[Run], values: &mut [[[f32; LANES]; PATCH]; PATCH]) {
        let Sizes {
            inputs,
            height,
            width,
            padding,
            upsample,
            ..
        } = self.sizes;
        let times = if upsample { 2 } else { 1 };
        let (rows, columns) = (height / times, width / times);
        let mut framed = [0.0; TILE * LANES + 2];
        for run in runs {
            let plane = (run.image * inputs + channel) * rows * columns;
            let plane = &self.input[plane..][..rows * columns];
            let length = TILE * run.length + 2;
            // The first column of the run inside the image, and the number of columns to the left of it.
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
                let source = if inside == length && !upsample {
                    &image[start..][..length]
                } else {
                    let framed = &mut framed[..length];
                    framed.fill(0.0);
                    let within = &mut framed[before..][..inside];
                    if upsample {
                        upsample_row(within, image, start);
                    } else {
                        within.copy_from_slice(&image[start..][..inside]);
                    }
                    &*framed
                };
                deinterleave_row(source, lines, run.lane, run.length);
            }
        }
    }

    /// Transforms the products of a panel into pixels of the outputs from `first` on.
    fn write(&self, products: &Products<'_>, first: usize, places: &[Vec<Run>]) {
        for output in 0..products.outputs {
            for (unit, runs) in places.iter().enumerate() {
                self.prefetch_output(first + output + 1, runs);
                let (points, apart) = products.lines(output, unit);
                let mut columns = [[[0.0; LANES]; TILE]; TILE];
                pixels_of_points(points, apart, &mut columns);
                for (row, columns) in columns.iter().enumerate() {
                    let mut pixels = [0.0; TILE * LANES];
                    interleave(columns, &mut pixels);
                    self.write_row(&pixels, first + output, row, runs);
                }
            }
        }
    }

    /// Writes one row of pixels of a unit.
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
                // SAFETY: the pixels are within the output, and no other thread has this tile of this output.
                unsafe { self.epilogue.finish(pixels, self.output.at(at), plane, at) };
            }
        }
    }
}

/// Writes the values of a row upsampled by 2, from column `first` on.
fn upsample_row(to: &mut [f32], row: &[f32], first: usize) {
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

/// De-interleaves a row under some tiles by the position in their patches, into six lines from `lane` on.
fn deinterleave_row(source: &[f32], lines: &mut [[f32; LANES]; PATCH], lane: usize, length: usize) {
    if let Ok(source) = source.try_into() {
        return deinterleave(source, lines);
    }
    // Four lines are transposed faster than two, so two of the six are written twice.
    for first in [0, PATCH - TILE] {
        let lines = lines[first..].as_flattened_mut();
        let source = &source[first..];
        transpose(source, TILE, [length, TILE], &mut lines[lane..], LANES);
    }
}
