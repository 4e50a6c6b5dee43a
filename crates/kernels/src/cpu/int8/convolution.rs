//! Convolution with a weight in int8: a product for each tap, without unfolding.
#![allow(unsafe_code, reason = "threads write disjoint rows of one output")]

use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexQTensor, FlexTensor};
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::{Added, Epilogue};
use crate::cpu::int8::GROUP;
use crate::cpu::int8::pixels::{Frames, Strip};
use crate::cpu::int8::product::{Group, STRIDE, multiply};
use crate::cpu::int8::rows::Packed;
use crate::cpu::int8::weight::Int8;
use crate::cpu::scratch::with_scratch;
use crate::cpu::target::Target;
use crate::cpu::tensor::{F32, tensor};
use crate::cpu::unfold::Geometry;
use crate::options::Window;

/// `[batch, inputs, height, width]` with a weight `[outputs, inputs, rows, columns]` → `[batch, outputs, height', width']`.
pub(crate) fn forward(
    input: &F32,
    weight: &FlexQTensor,
    added: &Added,
    window: Window,
) -> FlexTensor {
    Kernel::Int8Convolution.count();
    let geometry = Geometry::new(&input.shape(), &weight.shape(), window);
    let Geometry {
        batch,
        outputs,
        out_height,
        out_width,
        ..
    } = geometry;
    let shape = Shape::new([batch, outputs, out_height, out_width]);
    let mut output = Vec::with_capacity(shape.num_elements());
    let target = Target::of(&mut output);
    with_scratch(|[words, scales]| {
        let frames = Frames::new(geometry);
        let layer = Layer {
            packed: frames.pack(input.values(), [words, scales]),
            taps: frames.taps(),
            weight: Int8::new(weight),
            epilogue: added.epilogue(),
            geometry,
            frames,
        };
        let (groups, strips) = (outputs.div_ceil(GROUP), frames.strips());
        let tasks = (0..groups * strips.len()).into_par_iter();
        tasks.for_each(|task| {
            let strips = &strips[task / groups];
            // SAFETY: each group of each strip is written by one task.
            unsafe { layer.task(task % groups * GROUP, strips, target) };
        });
    });
    // SAFETY: the capacity suffices, and every row of every output was written.
    unsafe { output.set_len(shape.num_elements()) };
    tensor(output, shape)
}

struct Layer<'a> {
    packed: Packed<'a>,
    taps: Vec<usize>,
    weight: Int8<'a>,
    epilogue: Epilogue<'a>,
    geometry: Geometry,
    frames: Frames,
}

impl Layer<'_> {
    /// Computes a group of outputs at some strips.
    ///
    /// # Safety
    ///
    /// The target is the output, and no other thread accesses these outputs at these strips during the call.
    unsafe fn task(&self, first: usize, strips: &[Strip], target: Target) {
        with_scratch(|[padded, sums]| {
            let outputs = first..(first + GROUP).min(self.geometry.outputs);
            let group = Group::new(&self.weight, outputs, padded);
            let sums = sums.values(group.rows() * STRIDE);
            for &strip in strips {
                let columns = self.frames.columns(strip);
                multiply(&group, self.packed, &self.taps, columns, sums);
                for (output, sums) in (first..).zip(sums.chunks_exact(STRIDE)) {
                    let plane = strip.image * self.geometry.outputs + output;
                    // SAFETY: guaranteed by the caller.
                    unsafe { self.finish(plane, strip.first, &sums[..strip.count], target) };
                }
            }
        });
    }

    /// Writes the columns of a strip that are pixels of a plane.
    ///
    /// # Safety
    ///
    /// Same as [`task`](Self::task).
    unsafe fn finish(&self, plane: usize, start: usize, sums: &[f32], target: Target) {
        let Geometry {
            out_height,
            out_width,
            ..
        } = self.geometry;
        if self.frames.is_gapless() {
            let at = plane * out_height * out_width + start;
            // SAFETY: guaranteed by the caller.
            return unsafe { self.epilogue.finish(sums, target.at(at), plane, at) };
        }
        let row = self.frames.row();
        let mut done = 0;
        while done < sums.len() {
            let (y, x) = ((start + done) / row, (start + done) % row);
            let rest = (row - x).min(sums.len() - done);
            let count = rest.min(out_width.saturating_sub(x));
            let at = (plane * out_height + y) * out_width + x;
            if count > 0 {
                let sums = &sums[done..][..count];
                // SAFETY: guaranteed by the caller.
                unsafe { self.epilogue.finish(sums, target.at(at), plane, at) };
            }
            done += rest;
        }
    }
}
