//! Weights in their storage type: f32, or f16 and bf16, which are widened a strip at a time where they are used.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Shape, bf16, f16};
use half::slice::HalfFloatSliceExt;

use crate::cpu::scratch::Scratch;

/// A contiguous weight.
pub(crate) struct Weight(FlexTensor);

impl Weight {
    /// Returns whether the kernels support the type and the tensor is not empty.
    pub(crate) fn is_supported(tensor: &FlexTensor) -> bool {
        let is_readable = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
        is_readable && tensor.shape().num_elements() > 0
    }

    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// # Panics
    ///
    /// If the type is not [supported](Self::is_supported).
    pub(crate) fn stored(&self) -> Stored<'_> {
        const WHOLE: &str = "the tensor is contiguous and of its dtype";
        match self.0.dtype() {
            DType::F32 => Stored::F32(self.0.as_slice().expect(WHOLE)),
            DType::F16 => Stored::F16(self.0.as_slice().expect(WHOLE)),
            DType::BF16 => Stored::Bf16(self.0.as_slice().expect(WHOLE)),
            other => panic!("weights in {other:?} are left to burn"),
        }
    }
}

/// The values of a weight.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Stored<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Returns `count` values in f32, in place or widened into the scratch buffer.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(crate) fn read(self, first: usize, count: usize, scratch: &'a mut Scratch) -> &'a [f32] {
        self.rows(first, count, [1, count], scratch).0
    }

    /// Returns rows of a matrix that are `stride` apart, in f32, and their distance in the returned slice.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(crate) fn rows(
        self,
        first: usize,
        stride: usize,
        [rows, columns]: [usize; 2],
        scratch: &'a mut Scratch,
    ) -> (&'a [f32], usize) {
        if let Self::F32(values) = self {
            let length = (rows - 1) * stride + columns;
            return (&values[first..][..length], stride);
        }
        let widened = scratch.values(rows * columns);
        for (row, to) in widened.chunks_exact_mut(columns).enumerate() {
            let from = first + row * stride;
            match self {
                Self::F32(values) => to.copy_from_slice(&values[from..][..columns]),
                Self::F16(values) => values[from..][..columns].convert_to_f32_slice(to),
                Self::Bf16(values) => values[from..][..columns].convert_to_f32_slice(to),
            }
        }
        (widened, columns)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn rows_are_read_in_every_type() {
        let values: Vec<f32> = (0..60).map(|i| i as f32 / 4.0).collect();
        let f16: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
        let bf16: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        for stored in [Stored::F32(&values), Stored::F16(&f16), Stored::Bf16(&bf16)] {
            assert_eq!(stored.len(), 60);
            let mut scratch = Scratch::default();
            let (rows, stride) = stored.rows(3, 12, [4, 10], &mut scratch);
            for row in 0..4 {
                assert_eq!(rows[row * stride..][..10], values[3 + 12 * row..][..10]);
            }
            assert_eq!(stored.read(7, 20, &mut Scratch::default()), &values[7..27]);
        }
    }
}
