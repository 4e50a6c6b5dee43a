//! Weights in int8 as burn's quantised tensors.
//!
//! The codes are an i8 tensor of the weight's shape, in the order outputs, kernel rows, kernel columns, inputs. The scales of
//! the outputs are followed by the sums of the codes at each tap, which are integers below 2²⁴ and therefore exact in f32.

use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexQTensor, FlexTensor, Layout};
use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use crate::cpu::tensor::{F32, tensor};

/// Marks the weights of this module. burn has no scheme with a scale per row: its blocks have at most 255 values. Its
/// own operations divide by the block size, so with a size of 0 they panic instead of using wrong scales.
fn scheme() -> QuantScheme {
    QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_store(QuantStore::Native)
        .per_block([0], ScaleDtype::F32)
}

/// Number of taps of the kernel: 1 for linear layers.
fn taps(shape: &Shape) -> usize {
    shape.as_slice()[2..].iter().product()
}

/// Creates a weight from its codes, `[outputs, inputs]` or `[outputs, inputs, height, width]`, and the scale of each output.
///
/// # Panics
///
/// If the number of scales is not that of outputs.
pub(crate) fn new(codes: &FlexTensor, scales: &F32) -> FlexQTensor {
    let (codes, shape) = (codes.to_contiguous(), codes.shape());
    let (outputs, inputs) = (shape[0], shape[1]);
    assert_eq!(
        scales.values().len(),
        outputs,
        "there is a scale per output"
    );
    let codes = match taps(&shape) {
        1 => codes,
        taps => inputs_last(&codes, taps),
    };
    let values: &[i8] = codes.storage();
    let mut scales = scales.values().to_vec();
    scales.par_extend(values.par_chunks(inputs).map(sum));
    FlexQTensor::new(codes, scheme(), scales, None)
}

fn sum(codes: &[i8]) -> f32 {
    let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
    sum as f32
}

/// A view of the same shape on codes reordered to outputs, taps, inputs.
fn inputs_last(codes: &FlexTensor, taps: usize) -> FlexTensor {
    let [outputs, inputs, rows, columns] = codes.shape().dims::<4>();
    let kernel = inputs * taps;
    let values: &[i8] = codes.storage();
    let mut ordered = vec![0; values.len()];
    let kernels = ordered
        .par_chunks_mut(kernel)
        .zip(values.par_chunks(kernel));
    kernels.for_each(|(to, from)| {
        for (tap, to) in to.chunks_mut(inputs).enumerate() {
            let from = from[tap..].iter().step_by(taps);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    });
    let layout = Layout::contiguous(Shape::new([outputs, rows, columns, inputs]));
    FlexTensor::new(Bytes::from_elems(ordered), layout, DType::I8).permute(&[0, 3, 1, 2])
}

/// The codes, contiguous, and the scales of a weight.
pub(crate) fn parts(weight: &FlexQTensor) -> (FlexTensor, FlexTensor) {
    let outputs = weight.shape()[0];
    let scales = weight.scales()[..outputs].to_vec();
    let scales = tensor(scales, Shape::new([outputs]));
    (weight.tensor().to_contiguous(), scales)
}

/// The values of a weight.
#[derive(Clone, Copy)]
pub(super) struct Int8<'a> {
    /// `[outputs, taps, inputs]`
    pub(super) codes: &'a [i8],
    /// `[outputs]`
    pub(super) scales: &'a [f32],
    /// Sums of codes, `[outputs, taps]`.
    pub(super) sums: &'a [f32],
    pub(super) inputs: usize,
    pub(super) taps: usize,
}

impl<'a> Int8<'a> {
    /// # Panics
    ///
    /// If the weight was not created by [`new`].
    pub(super) fn new(weight: &'a FlexQTensor) -> Self {
        let is_ours = weight.dtype() == DType::QFloat(scheme());
        assert!(
            is_ours,
            "expected an int8 weight, found {:?}",
            weight.dtype()
        );
        let shape = weight.shape();
        let (scales, sums) = weight.scales().split_at(shape[0]);
        Self {
            codes: weight.tensor().storage(),
            scales,
            sums,
            inputs: shape[1],
            taps: taps(&shape),
        }
    }

    pub(super) fn outputs(&self) -> usize {
        self.scales.len()
    }
}
