//! Casts between element types.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType};

/// Casts a tensor to the element type of another.
pub(crate) fn cast_like<B: Backend>(
    tensor: FloatTensor<B>,
    other: &FloatTensor<B>,
) -> FloatTensor<B> {
    narrow::<B>(tensor, FloatDType::from(other.dtype()))
}

/// Casts a tensor, unless it already has the element type.
pub(crate) fn narrow<B: Backend>(tensor: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if tensor.dtype() == dtype.into() {
        return tensor;
    }
    B::float_cast(tensor, dtype)
}

/// Casts f16 and bf16 to f32; returns wider tensors unchanged.
pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(tensor, FloatDType::F32),
        _ => tensor,
    }
}
