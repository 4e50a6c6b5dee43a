//! `x·Wᵀ` with a weight in int8.
#![allow(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::ops::Range;

use burn::backend::flex::{FlexQTensor, FlexTensor};
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::{Added, Epilogue};
use crate::cpu::int8::product::{Group, STRIDE, multiply};
use crate::cpu::int8::rows::{Strips, pack};
use crate::cpu::int8::weight::Int8;
use crate::cpu::int8::{GROUP, STRIP, STRIPS};
use crate::cpu::scratch::{Scratch, with_scratch};
use crate::cpu::target::Target;
use crate::cpu::tensor::{F32, tensor};
use crate::cpu::transpose::transpose;

/// `[rows, inputs]` with a weight `[outputs, inputs]` → `[rows, outputs]`.
pub(crate) fn forward(input: &F32, weight: &FlexQTensor, added: &Added) -> FlexTensor {
    compute(input, weight, added, false)
}

/// [`forward`], the second half of whose outputs gates the first: `[rows, inputs]` with a weight `[2·outputs, inputs]` →
/// `[rows, outputs]`.
pub(crate) fn gated_gelu(input: &F32, weight: &FlexQTensor, added: &Added) -> FlexTensor {
    compute(input, weight, added, true)
}

fn compute(input: &F32, weight: &FlexQTensor, added: &Added, is_gated: bool) -> FlexTensor {
    Kernel::Int8Linear.count();
    let weight = Int8::new(weight);
    let outputs = match is_gated {
        true => weight.outputs() / 2,
        false => weight.outputs(),
    };
    let [rows, inputs] = input.shape().dims();
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target::of(&mut output);
    with_scratch(|[words, scales, codes]| {
        let layer = Layer {
            strips: pack(input.values(), inputs, [words, scales, codes]),
            weight,
            outputs,
            epilogue: added.epilogue(),
        };
        let (groups, chunks) = (outputs.div_ceil(GROUP), rows.div_ceil(STRIP * STRIPS));
        (0..groups * chunks).into_par_iter().for_each(|index| {
            let first = index / groups * STRIP * STRIPS;
            let rows = first..(first + STRIP * STRIPS).min(rows);
            // SAFETY: each group of each chunk of rows is written by one task.
            unsafe {
                match is_gated {
                    true => layer.gated_task(index % groups * GROUP, rows, target),
                    false => layer.task(index % groups * GROUP, rows, target),
                }
            };
        });
    });
    // SAFETY: the capacity suffices, and every group of every row was written.
    unsafe { output.set_len(rows * outputs) };
    tensor(output, Shape::new([rows, outputs]))
}

struct Layer<'a> {
    strips: Strips<'a>,
    weight: Int8<'a>,
    /// Outputs after gating.
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
        with_scratch(|[padded, scratch]| {
            let outputs = self.group(first);
            let group = Group::new(&self.weight, outputs.clone(), padded);
            for row in rows.clone().step_by(STRIP) {
                let count = STRIP.min(rows.end - row);
                let sums = self.sums(&group, row, count, scratch);
                let at = row * self.outputs + first;
                let places = [first, at, self.outputs];
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let to = target.at(at);
                    self.epilogue.finish_rows(sums, outputs.len(), places, to);
                }
            }
        });
    }

    /// Computes a group of gated outputs of some rows.
    ///
    /// # Safety
    ///
    /// Same as [`task`](Self::task).
    unsafe fn gated_task(&self, first: usize, rows: Range<usize>, target: Target) {
        with_scratch(|[padded, padded_gates, scratch, scratch_of_gates]| {
            let values = self.group(first);
            let gates = values.start + self.outputs..values.end + self.outputs;
            let group = Group::new(&self.weight, values.clone(), padded);
            let group_of_gates = Group::new(&self.weight, gates.clone(), padded_gates);
            for row in rows.clone().step_by(STRIP) {
                let count = STRIP.min(rows.end - row);
                let values = self.sums(&group, row, count, scratch);
                let gates = self.sums(&group_of_gates, row, count, scratch_of_gates);
                let to = target.at(row * self.outputs + first);
                // SAFETY: guaranteed by the caller.
                unsafe {
                    self.epilogue
                        .gate_rows([values, gates], first, self.outputs, to);
                };
            }
        });
    }

    /// The outputs of a task: up to [`GROUP`], from `first` on.
    fn group(&self, first: usize) -> Range<usize> {
        first..(first + GROUP).min(self.outputs)
    }

    /// Sums of a group in some rows of a strip, `[count, group]`.
    fn sums<'a>(
        &self,
        group: &Group<'_>,
        row: usize,
        count: usize,
        scratch: &'a mut Scratch,
    ) -> &'a [f32] {
        let size = group.rows() * STRIP;
        let (sums, transposed) = scratch.values(2 * size).split_at_mut(size);
        multiply(group, self.strips.get(row / STRIP), &[0], 0..count, sums);
        transpose(
            sums,
            STRIDE,
            [group.rows(), count],
            transposed,
            group.rows(),
        );
        &transposed[..count * group.rows()]
    }
}
