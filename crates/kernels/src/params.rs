//! Parameters of layers.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

/// A parameter in the element type that a layer computes in, which is that of its input. Parameters may be stored in a
/// narrower one.
pub(crate) fn value<const D: usize>(param: &Param<Tensor<D>>, dtype: DType) -> Tensor<D> {
    cast(param.val(), dtype)
}

/// Casts a tensor, unless it already has the element type.
pub(crate) fn cast<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype {
        return tensor;
    }
    tensor.cast(FloatDType::from(dtype))
}

/// Creates a trainable parameter, uniform within `±bound`. It is drawn on first access, so never in a network that is loaded
/// from a file.
pub(crate) fn random_param<const D: usize>(
    shape: [usize; D],
    bound: f64,
    device: &Device,
) -> Param<Tensor<D>> {
    let uniform = Distribution::Uniform(-bound, bound);
    let draw = move |device: &Device, is_trained: bool| {
        let tensor = Tensor::random(shape, uniform, device);
        if is_trained {
            tensor.require_grad()
        } else {
            tensor
        }
    };
    Param::uninitialized(ParamId::new(), draw, device.clone(), true, shape.into())
}
