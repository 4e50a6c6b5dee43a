//! burn's CPU tensors as slices of f32, and outputs that threads write in chunks.
#![allow(
    unsafe_code,
    reason = "outputs are not cleared before they are written"
)]

use std::mem::MaybeUninit;

use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::stored::Weight;

/// A contiguous tensor of f32.
pub(crate) struct F32(FlexTensor);

impl F32 {
    /// Takes the tensor if it is f32 and not empty. Otherwise returns it as an error, and counts a call of burn's own
    /// operation, which the caller should use instead.
    pub(crate) fn take(tensor: FlexTensor) -> Result<Self, FlexTensor> {
        if Self::is_supported(&tensor) {
            return Ok(Self::contiguous(tensor));
        }
        Kernel::Burn.count();
        Err(tensor)
    }

    /// Like [`take`](Self::take), for the input and the weight of a layer; the weight may also be f16 or bf16.
    #[expect(
        clippy::result_large_err,
        reason = "both are returned to the caller, which computes with them"
    )]
    pub(crate) fn take_layer(
        input: FlexTensor,
        weight: FlexTensor,
    ) -> Result<(Self, Weight), (FlexTensor, FlexTensor)> {
        if Self::is_supported(&input) && Weight::is_supported(&weight) {
            return Ok((Self::contiguous(input), Weight::new(&weight)));
        }
        Kernel::Burn.count();
        Err((input, weight))
    }

    /// Returns whether the tensor is f32 and not empty.
    pub(crate) fn is_supported(tensor: &FlexTensor) -> bool {
        tensor.dtype() == DType::F32 && tensor.shape().num_elements() > 0
    }

    /// Wraps a tensor that is known to be f32.
    pub(crate) fn contiguous(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice().expect("the tensor is contiguous and f32")
    }
}

/// Creates a tensor from values.
pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// Elements per task of the thread pool: enough to hide the scheduling overhead, while two tasks fit the L2 cache.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Number of rows of this width per task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width.max(1)).max(1)
}

/// Returns `count` values, written in parallel by `write`, which gets the index of a chunk and the chunk.
///
/// # Safety
///
/// `write` initialises every element of its chunk.
pub(crate) unsafe fn written_in_chunks(
    count: usize,
    chunk: usize,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut output = Vec::with_capacity(count);
    let chunks = output.spare_capacity_mut()[..count].par_chunks_mut(chunk);
    chunks
        .enumerate()
        .for_each(|(index, chunk)| write(index, chunk));
    // SAFETY: the chunks cover all elements, and `write` initialises them, as the caller guarantees.
    unsafe { output.set_len(count) };
    output
}
