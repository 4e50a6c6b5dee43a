//! Casts between element types.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType};

/// The tensor in the element type of another.
pub(crate) fn cast_like<B: Backend>(
    tensor: FloatTensor<B>,
    other: &FloatTensor<B>,
) -> FloatTensor<B> {
    narrow::<B>(tensor, FloatDType::from(other.dtype()))
}

/// The tensor in an element type; itself where it already has that.
pub(crate) fn narrow<B: Backend>(tensor: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if tensor.dtype() == dtype.into() {
        return tensor;
    }
    B::float_cast(tensor, dtype)
}

/// f16 and bf16 in f32; wider tensors as they are.
pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(tensor, FloatDType::F32),
        _ => tensor,
    }
}
