//! Quantised and packed images.
//!
//! ```text
//!  padded image, stride 1               stride 2: four phases, each a quarter of the padded image
//!  ┌───────────────┐
//!  │ 0 0 0 0 0 0 0 │ ◄ tap (0, 0) of    pixel (y, x) is in phase (y mod 2, x mod 2) at (y / 2, x / 2)
//!  │ 0 ┌─────────┐ │   output 0 begins
//!  │ 0 │ image   │ │   at column 0,
//!  │ 0 │         │ │   tap (1, 2) at column 1·width + 2
//! ```
//!
//! Output (y, x) is column y·width + x of the padded image. If the rows of the output consist of whole vectors, each vector has its
//! place; otherwise, the sums of a row run into columns under the frame, which are computed and dropped. The frame has the
//! scale 0, and its codes are not written.
#![allow(unsafe_code, reason = "threads write disjoint columns of one image")]

use rayon::prelude::*;

use crate::cpu::int8::product::{Columns, LANES};
use crate::cpu::int8::rows::{CODES, Packed, line_of};
use crate::cpu::int8::scale::code;
use crate::cpu::int8::{STRIP, STRIPS};
use crate::cpu::loops::vectorized;
use crate::cpu::scratch::{Scratch, with_scratch};
use crate::cpu::target::Target;
use crate::cpu::unfold::Geometry;
use crate::int8::{Scale, magnitude};

/// Pixels per task.
const RUN: usize = 64;

/// The padded images of a batch.
#[derive(Clone, Copy)]
pub(super) struct Frames {
    geometry: Geometry,
    /// Height and width of a phase of the padded image.
    height: usize,
    width: usize,
}

impl Frames {
    pub(super) fn new(geometry: Geometry) -> Self {
        let window = geometry.window;
        let padding = window.padding.0 + window.padding.1;
        Self {
            geometry,
            height: (geometry.height + padding).div_ceil(window.stride),
            width: (geometry.width + padding).div_ceil(window.stride),
        }
    }

    /// The column of a pixel of the padded image.
    fn column(&self, image: usize, y: usize, x: usize) -> usize {
        let (stride, batch) = (self.geometry.window.stride, self.geometry.batch);
        let phase = (y % stride) * stride + x % stride;
        ((phase * batch + image) * self.height + y / stride) * self.width + x / stride
    }

    /// The offset of each tap.
    pub(super) fn taps(&self) -> Vec<usize> {
        let (rows, columns) = self.geometry.kernel;
        let taps = (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x)));
        taps.map(|(y, x)| self.column(0, y, x)).collect()
    }

    /// Length of a line. A strip may end up to a vector after the last phase.
    fn line(&self) -> usize {
        let stride = self.geometry.window.stride;
        let columns = stride * stride * self.geometry.batch * self.height * self.width;
        line_of(columns + STRIP)
    }

    /// Quantises each pixel of `[batch, inputs, height, width]` and packs the images.
    pub(super) fn pack<'a>(
        &self,
        input: &[f32],
        [words, scales]: [&'a mut Scratch; 2],
    ) -> Packed<'a> {
        let Geometry { inputs, batch, .. } = self.geometry;
        let line = self.line();
        let words = words.values(inputs.div_ceil(CODES) * line);
        let scales = scales.values(line);
        scales.fill(0.0);
        let targets = [Target::of_slice(words), Target::of_slice(scales)];
        let runs = self.plane().div_ceil(RUN);
        (0..batch * runs).into_par_iter().for_each(|run| {
            // SAFETY: each pixel is of one run, and has its own column, which is within a line.
            unsafe { self.run(input, run / runs, run % runs * RUN, targets, line) };
        });
        Packed {
            words,
            scales,
            line,
        }
    }

    fn plane(&self) -> usize {
        self.geometry.height * self.geometry.width
    }

    /// Quantises up to [`RUN`] pixels of an image.
    ///
    /// # Safety
    ///
    /// The targets are words and scales in lines of this length, and no other thread accesses the columns of these pixels.
    unsafe fn run(
        &self,
        input: &[f32],
        image: usize,
        first: usize,
        [words, scales]: [Target; 2],
        line: usize,
    ) {
        let (inputs, plane) = (self.geometry.inputs, self.plane());
        let count = RUN.min(plane - first);
        let columns = self.columns_of(image, first..first + count);
        with_scratch(|[pixels, codes]| {
            let pixels = pixels.values(inputs * RUN);
            let codes = codes.values(inputs.div_ceil(CODES) * RUN);
            let mut largest = [0; RUN];
            let input = &input[image * inputs * plane + first..];
            gather(input, plane, count, pixels, &mut largest);
            let found = largest.map(Scale::new);
            interleave(pixels, &found.map(|scale| scale.factor), codes);
            let found = found.map(|scale| scale.scale);
            let mut first = 0;
            for columns in columns[..count].chunk_by(|left, right| left + 1 == *right) {
                let (pixels, column) = (first..first + columns.len(), columns[0]);
                // SAFETY: guaranteed by the caller.
                unsafe { scales.write(column, &found[pixels.clone()]) };
                for (depth, codes) in codes.chunks_exact(RUN).enumerate() {
                    // SAFETY: as above.
                    unsafe { words.write(depth * line + column, &codes[pixels.clone()]) };
                }
                first = pixels.end;
            }
        });
    }

    /// The columns of some pixels of an image.
    fn columns_of(&self, image: usize, pixels: std::ops::Range<usize>) -> [usize; RUN] {
        let (width, before) = (self.geometry.width, self.geometry.window.padding.0);
        let mut columns = [0; RUN];
        for (column, pixel) in columns.iter_mut().zip(pixels) {
            *column = self.column(image, pixel / width + before, pixel % width + before);
        }
        columns
    }

    /// Returns true if rows of the output consist of whole vectors, which then never run into the frame.
    pub(super) fn is_gapless(&self) -> bool {
        self.geometry.out_width.is_multiple_of(LANES)
    }

    /// Length of a row of sums: an output's row, with the columns under the frame unless they are left out.
    pub(super) fn row(&self) -> usize {
        match self.is_gapless() {
            true => self.geometry.out_width,
            false => self.width,
        }
    }

    /// The columns of a strip.
    pub(super) fn columns(&self, strip: Strip) -> Columns {
        let (y, x) = (strip.first / self.row(), strip.first % self.row());
        Columns {
            start: self.column(strip.image, 0, 0) + y * self.width,
            x,
            width: self.row(),
            skip: self.width - self.row(),
            count: strip.count,
        }
    }

    /// The strips of all images, in groups of a task.
    pub(super) fn strips(&self) -> Vec<Vec<Strip>> {
        let Geometry {
            batch,
            out_height,
            out_width,
            ..
        } = self.geometry;
        let end = (out_height - 1) * self.row() + out_width;
        let strips = (0..batch).flat_map(|image| {
            (0..end).step_by(STRIP).map(move |first| Strip {
                image,
                first,
                count: STRIP.min(end - first),
            })
        });
        let strips: Vec<_> = strips.collect();
        strips.chunks(STRIPS).map(<[_]>::to_vec).collect()
    }
}

/// Consecutive sums of an image, in [rows](Frames::row).
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) image: usize,
    pub(super) first: usize,
    pub(super) count: usize,
}

vectorized! {
    /// Copies pixels channel by channel into lines of [`RUN`], and finds the largest magnitude of each.
    fn gather(input: &[f32], plane: usize, count: usize, pixels: &mut [f32], largest: &mut [u32; RUN]) {
        for (channel, line) in pixels.chunks_exact_mut(RUN).enumerate() {
            let from = &input[channel * plane..][..count];
            line[..count].copy_from_slice(from);
            line[count..].fill(0.0);
            for (largest, x) in largest.iter_mut().zip(line) {
                *largest = magnitude(*x).max(*largest);
            }
        }
    }
}

vectorized! {
    /// Quantises lines of pixels, and joins four at a time to lines of words.
    fn interleave(pixels: &[f32], factors: &[f32; RUN], words: &mut [f32]) {
        for (word, pixels) in words.chunks_exact_mut(RUN).zip(pixels.chunks(CODES * RUN)) {
            let mut joined = [0; RUN];
            for (channel, pixels) in pixels.chunks_exact(RUN).enumerate() {
                for ((word, x), factor) in joined.iter_mut().zip(pixels).zip(factors) {
                    *word |= u32::from(code(*x, *factor)) << (8 * channel);
                }
            }
            let joined = joined.map(f32::from_bits);
            word.copy_from_slice(&joined);
        }
    }
}
