//! `x·Wᵀ` with a weight in int8.
#![allow(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::ops::Range;

use burn::backend::flex::{FlexQTensor, FlexTensor};
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::{Added, Epilogue};
use crate::cpu::int8::product::{Group, STRIDE, multiply};
use crate::cpu::int8::rows::{Packed, pack};
use crate::cpu::int8::weight::Int8;
use crate::cpu::int8::{GROUP, STRIP, STRIPS};
use crate::cpu::scratch::with_scratch;
use crate::cpu::target::Target;
use crate::cpu::tensor::{F32, tensor};
use crate::cpu::transpose::transpose;

/// `[rows, inputs]` with a weight `[outputs, inputs]` → `[rows, outputs]`.
pub(crate) fn forward(input: &F32, weight: &FlexQTensor, added: &Added) -> FlexTensor {
    Kernel::Int8Linear.count();
    let weight = Int8::new(weight);
    let [rows, inputs] = input.shape().dims();
    let outputs = weight.outputs();
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target::of(&mut output);
    with_scratch(|[words, scales, codes]| {
        let layer = Layer {
            packed: pack(input.values(), inputs, [words, scales, codes]),
            weight,
            outputs,
            epilogue: added.epilogue(),
        };
        let (groups, chunks) = (outputs.div_ceil(GROUP), rows.div_ceil(STRIP * STRIPS));
        (0..groups * chunks).into_par_iter().for_each(|task| {
            let first = task / groups * STRIP * STRIPS;
            let rows = first..(first + STRIP * STRIPS).min(rows);
            // SAFETY: each group of each chunk of rows is written by one task.
            unsafe { layer.task(task % groups * GROUP, rows, target) };
        });
    });
    // SAFETY: the capacity suffices, and every group of every row was written.
    unsafe { output.set_len(rows * outputs) };
    tensor(output, Shape::new([rows, outputs]))
}

struct Layer<'a> {
    packed: Packed<'a>,
    weight: Int8<'a>,
    outputs: usize,
    epilogue: Epilogue<'a>,
}

impl Layer<'_> {
    /// Computes a group of outputs of some rows.
    ///
    /// # Safety
    ///
    /// The target is the output, and no other thread accesses these outputs of these rows during the call.
    unsafe fn task(&self, first: usize, rows: Range<usize>, target: Target) {
        with_scratch(|[padded, sums, transposed]| {
            let group = Group::new(&self.weight, self.weight.group(first), padded);
            let width = group.rows();
            let sums = sums.values(width * STRIDE);
            let transposed = transposed.values(width * STRIP);
            for row in rows.clone().step_by(STRIP) {
                let count = STRIP.min(rows.end - row);
                multiply(&group, self.packed, &[0], row..row + count, sums);
                transpose(sums, STRIDE, [width, count], transposed, width);
                let at = row * self.outputs + first;
                let sums = &transposed[..count * width];
                // SAFETY: guaranteed by the caller.
                unsafe { self.epilogue.finish_rows(sums, width, [first, at, self.outputs], target.at(at)) };
            }
        });
    }
}
