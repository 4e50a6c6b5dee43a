//! Buffers for transformed patches, transformed weights and their products.
#![allow(unsafe_code, reason = "threads write disjoint lines of shared buffers")]

use crate::cpu::multiply::multiply;
use crate::cpu::product::Matrix;
use crate::cpu::scratch::Scratch;
use crate::cpu::target::Target;
use crate::cpu::transpose::transpose;
use crate::cpu::winograd::points::{LANES, PATCH, POINTS, kernels_at_points, patches_at_points};

/// Padding between lines that would otherwise be a multiple of 4 KiB apart and compete for the same cache sets: one cache line.
const APART: usize = 16;
/// The transformed patches of a panel, `[POINTS, channels, units, LANES]`, with APART values after each point.
#[derive(Clone, Copy)]
pub(super) struct Patches {
    pub(super) at: Target,
    pub(super) channels: usize,
    pub(super) units: usize,
}

impl Patches {
    pub(super) fn length(channels: usize, units: usize) -> usize {
        POINTS * Self::point_len(channels, units)
    }

    fn point_len(channels: usize, units: usize) -> usize {
        units * LANES * channels + APART
    }

    /// Transforms the patches of one channel of a unit.
    ///
    /// # Safety
    ///
    /// The buffer has the [length](Self::length), and no other thread accesses this channel during the call.
    pub(super) unsafe fn write(
        &self,
        unit: usize,
        channel: usize,
        under: &[[[f32; LANES]; PATCH]; PATCH],
    ) {
        let line = (channel * self.units + unit) * LANES;
        let first = self.at.at(line);
        // SAFETY: there is a line for each point, at this distance; the rest is guaranteed by the caller.
        unsafe { patches_at_points(under, first, Self::point_len(self.channels, self.units)) };
    }

    /// Returns `count` channels from `first` on, at a point.
    ///
    /// # Safety
    ///
    /// They are within the buffer and initialised, and nothing writes to them during the borrow.
    unsafe fn matrix(&self, point: usize, first: usize, count: usize) -> Matrix<'_> {
        let columns = self.units * LANES;
        let at = point * Self::point_len(self.channels, self.units) + first * columns;
        // SAFETY: guaranteed by the caller.
        let values = unsafe { self.at.read(at, count * columns) };
        Matrix::new(values, columns)
    }
}

/// Transformed weights, `[POINTS, outputs, inputs]`, with APART values after each output and each point.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub(super) at: Target,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Weights {
    pub(super) fn length(outputs: usize, inputs: usize) -> usize {
        POINTS * Self::point_len(outputs, inputs)
    }

    fn point_len(outputs: usize, inputs: usize) -> usize {
        outputs * (inputs + APART) + APART
    }

    /// Transforms the kernels of an output, `[inputs, 9]`.
    ///
    /// # Safety
    ///
    /// The buffer has the [length](Self::length), and no other thread accesses this output during the call.
    pub(super) unsafe fn write(&self, output: usize, kernels: &[f32]) {
        let mut taps = [[0.0; LANES]; 9];
        let line = |point: usize| {
            point * Self::point_len(self.outputs, self.inputs) + output * (self.inputs + APART)
        };
        for (index, kernels) in kernels.chunks(9 * LANES).enumerate() {
            let count = kernels.len() / 9;
            transpose(kernels, 9, [count, 9], taps.as_flattened_mut(), LANES);
            let mut values = [[0.0; LANES]; POINTS];
            kernels_at_points(&taps, &mut values);
            for (point, values) in values.iter().enumerate() {
                let at = line(point) + index * LANES;
                // SAFETY: the line and the gap after it are within the buffer; the rest is guaranteed by the caller.
                unsafe { self.at.write_line(at, values) };
            }
        }
        for point in 0..POINTS {
            // SAFETY: as above. The gap is initialised because a matrix of several lines includes it.
            unsafe { self.at.write_line(line(point) + self.inputs, &[0.0; LANES]) };
        }
    }

    /// Returns `count` outputs from `first` on, at a point.
    ///
    /// # Safety
    ///
    /// They are within the buffer and initialised, and nothing writes to them during the borrow.
    unsafe fn matrix(&self, point: usize, first: usize, count: usize) -> Matrix<'_> {
        let line = self.inputs + APART;
        let at = point * Self::point_len(self.outputs, self.inputs) + first * line;
        // SAFETY: guaranteed by the caller.
        let values = unsafe { self.at.read(at, count * line) };
        Matrix::strided(values, count, self.inputs, line)
    }
}

/// Products of a group of outputs and a panel, `[POINTS, outputs, units, LANES]`, with APART values after each point.
pub(super) struct Products<'a> {
    values: &'a mut [f32],
    pub(super) outputs: usize,
    pub(super) units: usize,
}

impl<'a> Products<'a> {
    pub(super) fn new(scratch: &'a mut Scratch, outputs: usize, units: usize) -> Self {
        Self {
            values: scratch.values(POINTS * (outputs * units * LANES + APART)),
            outputs,
            units,
        }
    }

    fn start(&self, point: usize, output: usize, unit: usize) -> usize {
        point * (self.outputs * self.units * LANES + APART) + (output * self.units + unit) * LANES
    }

    /// Multiplies the weights of the outputs from `first` on by the patches of the inputs from `from` on, and overwrites the
    /// products or, with `add`, adds to them.
    ///
    /// # Safety
    ///
    /// Both are initialised, and nothing writes to them during the call.
    pub(super) unsafe fn add(
        &mut self,
        weights: &Weights,
        first: usize,
        patches: &Patches,
        from: usize,
        add: bool,
    ) {
        for point in 0..POINTS {
            // SAFETY: guaranteed by the caller; the products belong to this thread and are large enough.
            unsafe {
                let left = weights.matrix(point, first, self.outputs);
                let right = patches.matrix(point, from, weights.inputs);
                let target = self.values.as_mut_ptr().add(self.start(point, 0, 0));
                multiply(target, self.units * LANES, left, right, add);
            }
        }
    }

    /// The lines of a unit from its first point on, and the distance between points.
    pub(super) fn lines(&self, output: usize, unit: usize) -> (&[f32], usize) {
        let apart = self.start(1, 0, 0);
        (&self.values[self.start(0, output, unit)..], apart)
    }
}
