//! Activations, softmax and nearest-neighbour upsampling.
#![allow(
    unsafe_code,
    reason = "outputs are not cleared before they are written"
)]

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use crate::cpu::counters::Kernel;
use crate::cpu::loops::{self, apply, gated_gelu_values, gelu_grads, gelu_values};
use crate::cpu::tensor::{ELEMENTS_PER_TASK, F32, rows_per_task, tensor, written_in_chunks};
use crate::options::Activation;

pub(crate) fn gelu(input: &F32) -> FlexTensor {
    Kernel::Pointwise.count();
    let values = input.values();
    // SAFETY: every element is written.
    let output = unsafe {
        written_in_chunks(values.len(), ELEMENTS_PER_TASK, |index, output| {
            gelu_values(output, &values[index * ELEMENTS_PER_TASK..][..output.len()]);
        })
    };
    tensor(output, input.shape())
}

pub(crate) fn gelu_grad(input: &F32, grad: &F32) -> FlexTensor {
    let (values, grads) = (input.values(), grad.values());
    // SAFETY: every element is written.
    let output = unsafe {
        written_in_chunks(values.len(), ELEMENTS_PER_TASK, |index, output| {
            let (start, len) = (index * ELEMENTS_PER_TASK, output.len());
            gelu_grads(output, &values[start..][..len], &grads[start..][..len]);
        })
    };
    tensor(output, input.shape())
}

pub(crate) fn silu(input: &F32) -> FlexTensor {
    Kernel::Pointwise.count();
    let values = input.values();
    // SAFETY: every element is written.
    let output = unsafe {
        written_in_chunks(values.len(), ELEMENTS_PER_TASK, |index, output| {
            let input = &values[index * ELEMENTS_PER_TASK..][..output.len()];
            apply(output, input, 1.0, 0.0, Activation::Silu);
        })
    };
    tensor(output, input.shape())
}

/// `[rows, 2·width]` → `[rows, width]`
pub(crate) fn gated_gelu(input: &F32) -> FlexTensor {
    Kernel::Pointwise.count();
    let [rows, twice] = input.shape().dims::<2>();
    let (values, width) = (input.values(), twice / 2);
    let rows_per_task = rows_per_task(width);
    // SAFETY: every row is written whole, and a chunk consists of rows.
    let output = unsafe {
        written_in_chunks(rows * width, rows_per_task * width, |index, output| {
            let input = values[index * rows_per_task * twice..].chunks(twice);
            for (output, input) in output.chunks_mut(width).zip(input) {
                let (values, gates) = input.split_at(width);
                gated_gelu_values(output, values, gates);
            }
        })
    };
    tensor(output, Shape::new([rows, width]))
}

/// The softmax of each row of `[rows, width]`.
pub(crate) fn softmax(input: &F32) -> FlexTensor {
    Kernel::Pointwise.count();
    let [_, width] = input.shape().dims::<2>();
    let (values, chunk) = (input.values(), rows_per_task(width) * width);
    // SAFETY: every row is written whole, and a chunk consists of rows.
    let output = unsafe {
        written_in_chunks(values.len(), chunk, |index, output| {
            let rows = values[index * chunk..].chunks(width);
            for (output, input) in output.chunks_mut(width).zip(rows) {
                loops::softmax(output, input);
            }
        })
    };
    tensor(output, input.shape())
}

pub(crate) fn upsample_nearest_2x(input: &F32) -> FlexTensor {
    Kernel::Pointwise.count();
    let [batch, channels, height, width] = input.shape().dims::<4>();
    let (values, plane) = (input.values(), height * width);
    // SAFETY: both copies of every row are written, and a plane consists of these.
    let output = unsafe {
        written_in_chunks(4 * values.len(), 4 * plane, |index, output| {
            let rows = values[index * plane..][..plane].chunks(width);
            for (output, row) in output.chunks_mut(4 * width).zip(rows) {
                let (first, second) = output.split_at_mut(2 * width);
                for (pair, value) in first.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                    for place in pair {
                        place.write(*value);
                    }
                }
                second.copy_from_slice(first);
            }
        })
    };
    tensor(output, Shape::new([batch, channels, 2 * height, 2 * width]))
}
