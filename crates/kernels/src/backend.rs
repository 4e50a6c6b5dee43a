//! The operations as an extension of burn's `Backend`, and the hand-written gradients.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, backend_extension};

use crate::Window;
use crate::attention::{self, Mask};
use crate::convolution;
use crate::group_norm::{self, Activation};
use crate::training::{self, AdamWUpdate};
use crate::{gelu, layer_norm, linear};

/// What a backend has to offer; every method has a body that works on all of them. Weights of linear layers and of
/// convolutions may be in another element type than the input, which is the one that is computed in.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "fusion")
)]
pub(crate) trait Kernels: Backend {
    /// See [`crate::attention()`].
    #[fusion(default)]
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        attention::forward::<Self>(query, key, value, mask)
    }

    /// `x·Wᵀ` of `[rows, inputs]` and `[outputs, inputs]`.
    #[fusion(default)]
    fn linear(input: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let weight = linear::alike::<Self>(weight, &input);
        Self::float_matmul(input, Self::float_transpose(weight))
    }

    /// Gradient of [`linear`](Self::linear) for its input.
    #[fusion(default)]
    fn linear_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(grad, weight)
    }

    /// Gradient of [`linear`](Self::linear) for its weight.
    #[fusion(default)]
    fn linear_weight_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(grad), input)
    }

    /// `x·Wᵀ + b` with `[outputs]`; its gradients, and those of the one below, are those of what it is composed of.
    #[fusion(default)]
    fn linear_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::biased::<Self>(<Self as Kernels>::linear(input, weight), bias)
    }

    /// `r + x·Wᵀ + b` with `[rows, outputs]`.
    #[fusion(default)]
    fn linear_added(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(residual, Self::linear_with_bias(input, weight, bias))
    }

    /// `[rows, 2·width]` → `[rows, width]`: the first half times the GELU of the second.
    #[fusion(default)]
    fn gated_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::gated::<Self>(input)
    }

    /// See [`crate::conv2d()`]; without its bias.
    #[fusion(default)]
    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let weight = linear::alike::<Self>(weight, &input);
        Self::conv2d(input, weight, None, window.options())
    }

    /// See [`Epilogue`](crate::Epilogue): with a bias `[batch or 1, channels]`; its gradients, and those of the one below,
    /// are those of what it is composed of.
    #[fusion(default)]
    fn convolution_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        convolution::with_bias::<Self>(input, weight, bias, window, is_rectified)
    }

    /// The same with a residual of the output's shape.
    #[fusion(default)]
    fn convolution_added(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        let output = convolution::with_bias::<Self>(input, weight, bias, window, false);
        let output = Self::float_add(residual, output);
        if is_rectified {
            Self::relu(output)
        } else {
            output
        }
    }

    /// [`convolution_with_bias`](Self::convolution_with_bias) of what is [`doubled`](Self::doubled).
    #[fusion(default)]
    fn convolution_of_doubled(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let input = <Self as Kernels>::doubled(input);
        Self::convolution_with_bias(input, weight, bias, window, false)
    }

    /// See [`crate::join_channels()`].
    #[fusion(dtype = first, shape = convolution::joined_shape(first, second))]
    fn channels_joined(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![first, second], 1)
    }

    /// See [`crate::double()`].
    #[fusion(dtype = input, shape = convolution::doubled_shape(input))]
    fn doubled(input: FloatTensor<Self>) -> FloatTensor<Self> {
        convolution::doubled::<Self>(input)
    }

    /// See [`crate::as_convolutions_read()`].
    #[fusion(dtype = weight, shape = weight)]
    fn as_convolutions_read(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        weight
    }

    /// Gradient of [`convolution`](Self::convolution) for its input.
    #[fusion(default)]
    fn convolution_input_grad(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        Self::conv2d_x_backward(input, weight, grad, window.options())
    }

    /// Gradient of [`convolution`](Self::convolution) for its weight.
    #[fusion(default)]
    fn convolution_weight_grad(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        Self::conv2d_weight_backward(input, weight, grad, window.options())
    }

    /// See [`crate::group_norm()`].
    #[fusion(dtype = input, shape = input)]
    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self> {
        group_norm::forward::<Self>(input, gamma, beta, groups, epsilon, activation)
    }

    /// Gradients of [`fused_group_norm`](Self::fused_group_norm) for input, gamma and beta.
    #[fusion(default)]
    fn fused_group_norm_backward(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        group_norm::backward::<Self>(input, gamma, beta, grad, groups, epsilon, activation)
    }

    /// See [`crate::layer_norm()`].
    #[fusion(dtype = input, shape = input)]
    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        layer_norm::forward::<Self>(input, gamma, beta, epsilon)
    }

    /// Gradients of [`fused_layer_norm`](Self::fused_layer_norm) for input, gamma and beta.
    #[fusion(default)]
    fn fused_layer_norm_backward(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        layer_norm::backward::<Self>(input, gamma, grad, epsilon)
    }

    /// See [`crate::softmax()`], of `[rows, width]`; its gradient is that of burn's.
    #[fusion(default)]
    fn softmax_of_rows(input: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::softmax(input, 1)
    }

    /// See [`crate::silu()`]; its gradient is that of what it is composed of.
    #[fusion(default)]
    fn silu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_mul(input.clone(), Self::sigmoid(input))
    }

    /// See [`crate::adamw()`]: weight, first and second moment.
    #[fusion(default)]
    fn adamw(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        training::composed_adamw::<Self>(weight, grad, first, second, update)
    }

    /// See [`crate::moved_towards()`].
    #[fusion(default)]
    fn moved_towards(
        from: FloatTensor<Self>,
        to: FloatTensor<Self>,
        share: f64,
    ) -> FloatTensor<Self> {
        training::composed_moved_towards::<Self>(from, to, share)
    }

    /// See [`crate::sum_of_squares()`].
    #[fusion(default)]
    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        training::composed_sum_of_squares::<Self>(values)
    }

    /// See [`crate::gelu()`].
    #[fusion(default)]
    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(input)
    }

    /// Gradient of [`exact_gelu`](Self::exact_gelu).
    #[fusion(default)]
    fn exact_gelu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward::<Self>(input, grad)
    }
}

impl<B: Backend + Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        match AttentionBackward
            .prepare::<C>([query.node(), key.node(), value.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let inputs = [query, key, value].map(|tensor| tensor.into_primitive());
                let [q, k, v] = inputs.clone();
                let output = B::blockwise_attention(q, k, v, mask);
                prepared.finish((inputs, output.clone(), mask), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::blockwise_attention(
                query.into_primitive(),
                key.into_primitive(),
                value.into_primitive(),
                mask,
            )),
        }
    }

    fn linear(input: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let weight = linear::alike::<Self>(weight, &input);
        match LinearBackward
            .prepare::<C>([input.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let inputs = [input, weight].map(|tensor| tensor.into_primitive());
                let [x, w] = inputs.clone();
                prepared.finish(inputs, <B as Kernels>::linear(x, w))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(<B as Kernels>::linear(
                input.into_primitive(),
                weight.into_primitive(),
            )),
        }
    }

    fn linear_input_grad(
        _weight: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn linear_weight_grad(
        _input: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let weight = linear::alike::<Self>(weight, &input);
        match ConvolutionBackward
            .prepare::<C>([input.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let inputs = [input, weight].map(|tensor| tensor.into_primitive());
                let [x, w] = inputs.clone();
                prepared.finish((inputs, window), B::convolution(x, w, window))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::convolution(
                input.into_primitive(),
                weight.into_primitive(),
                window,
            )),
        }
    }

    fn convolution_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        let output = Self::convolution(input, weight, window);
        convolution::finish::<Self>(output, bias, is_rectified)
    }

    fn convolution_added(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        let output = Self::convolution(input, weight, window);
        let output = Self::float_add(residual, output);
        convolution::finish::<Self>(output, bias, is_rectified)
    }

    fn convolution_input_grad(
        _input: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _window: Window,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn convolution_weight_grad(
        _input: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _window: Window,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self> {
        match GroupNormBackward
            .prepare::<C>([input.node(), gamma.node(), beta.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let inputs = [input, gamma, beta].map(|tensor| tensor.into_primitive());
                let [x, g, b] = inputs.clone();
                let output = B::fused_group_norm(x, g, b, groups, epsilon, activation);
                prepared.finish((inputs, groups, epsilon, activation), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fused_group_norm(
                input.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                groups,
                epsilon,
                activation,
            )),
        }
    }

    fn fused_group_norm_backward(
        _input: FloatTensor<Self>,
        _gamma: FloatTensor<Self>,
        _beta: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _groups: usize,
        _epsilon: f64,
        _activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        match LayerNormBackward
            .prepare::<C>([input.node(), gamma.node(), beta.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let [x, g, b] = [input, gamma, beta].map(|tensor| tensor.into_primitive());
                let output = B::fused_layer_norm(x.clone(), g.clone(), b, epsilon);
                prepared.finish(([x, g], epsilon), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fused_layer_norm(
                input.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                epsilon,
            )),
        }
    }

    fn fused_layer_norm_backward(
        _input: FloatTensor<Self>,
        _gamma: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match GeluBackward
            .prepare::<C>([input.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                let input = input.into_primitive();
                prepared.finish(input.clone(), B::exact_gelu(input))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::exact_gelu(input.into_primitive())),
        }
    }

    fn exact_gelu_backward(
        _input: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }
}

const FIRST_ORDER: &str =
    "gradients are computed on the inner backend: burn's autodiff is first order";

#[derive(Debug)]
struct AttentionBackward;

impl<B: Backend> Backward<B, 3> for AttentionBackward {
    /// Query, key and value; the output, whose product with its gradient replaces the row sums of
    /// the softmax's own backward; the mask.
    type State = ([FloatTensor<B>; 3], FloatTensor<B>, Mask);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([query, key, value], output, mask) = ops.state;
        let found = attention::backward::<B>(query, key, value, output, grad, mask);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: Backend + Kernels> Backward<B, 2> for LinearBackward {
    /// Input and weight.
    type State = [FloatTensor<B>; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, w] = ops.state;
        let [input, weight] = ops.parents;
        if let Some(node) = input {
            grads.register::<B>(node.id, B::linear_input_grad(w, grad.clone()));
        }
        if let Some(node) = weight {
            grads.register::<B>(node.id, B::linear_weight_grad(x, grad));
        }
    }
}

#[derive(Debug)]
struct ConvolutionBackward;

impl<B: Backend + Kernels> Backward<B, 2> for ConvolutionBackward {
    /// Input and weight, and how the kernel moves.
    type State = ([FloatTensor<B>; 2], Window);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([x, w], window) = ops.state;
        let [input, weight] = ops.parents;
        if let Some(node) = input {
            let grad = B::convolution_input_grad(x.clone(), w.clone(), grad.clone(), window);
            grads.register::<B>(node.id, grad);
        }
        if let Some(node) = weight {
            let grad = B::convolution_weight_grad(x, w, grad, window);
            grads.register::<B>(node.id, grad);
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

impl<B: Backend + Kernels> Backward<B, 3> for GroupNormBackward {
    /// Input, gamma and beta (the statistics are cheaper to recompute than to keep), and the options.
    type State = ([FloatTensor<B>; 3], usize, f64, Activation);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([input, gamma, beta], groups, epsilon, activation) = ops.state;
        let (input, gamma, beta) =
            B::fused_group_norm_backward(input, gamma, beta, grad, groups, epsilon, activation);
        for (parent, grad) in ops.parents.into_iter().zip([input, gamma, beta]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct LayerNormBackward;

impl<B: Backend + Kernels> Backward<B, 3> for LayerNormBackward {
    /// Input and gamma, and epsilon.
    type State = ([FloatTensor<B>; 2], f64);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([input, gamma], epsilon) = ops.state;
        let (input, gamma, beta) = B::fused_layer_norm_backward(input, gamma, grad, epsilon);
        for (parent, grad) in ops.parents.into_iter().zip([input, gamma, beta]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct GeluBackward;

impl<B: Backend + Kernels> Backward<B, 1> for GeluBackward {
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(node) = parent {
            grads.register::<B>(node.id, B::exact_gelu_backward(ops.state, grad));
        }
    }
}
