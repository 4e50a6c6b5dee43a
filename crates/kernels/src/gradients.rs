//! The hand-written gradients of the operations, which backends can override.

use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;

use crate::backend::Kernels;
use crate::composed;
use crate::options::{GroupNormOptions, Window};

/// Hand-written gradients of the operations in [`Kernels`]. This is an ordinary trait, which is not dispatched: autodiff
/// calls it on its inner backend, so second-order gradients, which burn does not have, do not compile.
pub(crate) trait KernelGrads: Kernels {
    /// Gradient of [`linear`](Kernels::linear) with respect to its input.
    fn linear_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear::input_grad::<Self>(weight, grad)
    }

    /// Gradient of [`linear`](Kernels::linear) with respect to its weight.
    fn linear_weight_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear::weight_grad::<Self>(input, grad)
    }

    /// Gradient of [`convolution`](Kernels::convolution) with respect to its input, of the given shape.
    fn convolution_input_grad(
        shape: Shape,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        composed::convolution::input_grad::<Self>(shape, weight, grad, window)
    }

    /// Gradient of [`convolution`](Kernels::convolution) with respect to its weight, of the given shape.
    fn convolution_weight_grad(
        input: FloatTensor<Self>,
        shape: Shape,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        composed::convolution::weight_grad::<Self>(input, shape, grad, window)
    }

    /// Gradients of [`fused_group_norm`](Kernels::fused_group_norm) with respect to input, gamma and beta.
    fn group_norm_grads(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> [FloatTensor<Self>; 3] {
        composed::group_norm::backward::<Self>(input, gamma, beta, grad, options)
    }

    /// Gradients of [`fused_layer_norm`](Kernels::fused_layer_norm) with respect to input, gamma and beta.
    fn layer_norm_grads(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> [FloatTensor<Self>; 3] {
        composed::layer_norm::backward::<Self>(input, gamma, grad, epsilon)
    }

    /// Gradient of [`exact_gelu`](Kernels::exact_gelu).
    fn gelu_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::pointwise::gelu_grad::<Self>(input, grad)
    }
}

#[cfg(feature = "fusion")]
impl<B: burn::backend::fusion::FusionBackend + Kernels> KernelGrads
    for burn::backend::fusion::Fusion<B>
{
}
