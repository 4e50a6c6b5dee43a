//! The operations on burn's autodiff backend: a recorder, and for each hand-written gradient the values that it keeps.
//!
//! Biases, residuals and activations after a layer are composed of burn's differentiable operations.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::Shape;

use crate::backend::Kernels;
use crate::composed::{self, cast_like};
use crate::gradients::KernelGrads;
use crate::options::{Extras, GroupNormOptions, Mask, Window};

/// The values that an operation with `N` inputs keeps for its gradients. Fields needed by only one gradient are `None` if
/// that gradient is not needed.
trait Saved<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// Computes the gradients of the inputs from that of the output.
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; N];
}

/// The backward step of a recorded operation.
#[derive(Debug)]
struct Step<S>(PhantomData<S>);

impl<B: Backend, S: Saved<B, N>, const N: usize> Backward<B, N> for Step<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        for (parent, grad) in ops.parents.into_iter().zip(ops.state.grads(grad)) {
            if let (Some(node), Some(grad)) = (parent, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// Runs an operation on the inner backend. If an input is tracked, records a step with the values that `save` returns, given
/// the inputs, which of them are tracked, and the output. Otherwise nothing is cloned, so the operation can reuse memory.
fn record<B: Backend, C: CheckpointStrategy, S: Saved<B, N>, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    run: impl FnOnce([FloatTensor<B>; N]) -> FloatTensor<B>,
    save: impl FnOnce([FloatTensor<B>; N], [bool; N], &FloatTensor<B>) -> S,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let tracked = inputs.each_ref().map(|input| input.is_tracked());
    let inputs = inputs.map(|input| input.into_primitive());
    let step = Backward::<B, N>::prepare::<C>(Step::<S>(PhantomData), nodes);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let output = run(inputs.clone());
            prepared.finish(save(inputs, tracked, &output), output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(run(inputs)),
    }
}

/// Casts a trained weight to the element type of the input, so that its gradient passes through the cast. A frozen weight
/// stays in its storage type and is widened where it is used.
fn trained_like<B: Backend, C: CheckpointStrategy>(
    weight: FloatTensor<Autodiff<B, C>>,
    input: &FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match weight.is_tracked() {
        true => cast_like::<Autodiff<B, C>>(weight, input),
        false => weight,
    }
}

impl<B: KernelGrads, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        record::<B, C, _, _>(
            [query, key, value],
            |[query, key, value]| B::blockwise_attention(query, key, value, mask),
            |inputs, _, output| Attention::<B> {
                inputs,
                output: output.clone(),
                mask,
            },
        )
    }

    fn linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        extras: Extras<Self>,
    ) -> FloatTensor<Self> {
        let weight = trained_like::<B, C>(weight, &input);
        let product = record::<B, C, _, _>(
            [input, weight],
            |[input, weight]| <B as Kernels>::linear(input, weight, Extras::None),
            |[input, weight], [input_is_tracked, weight_is_tracked], _| Linear::<B> {
                input: weight_is_tracked.then_some(input),
                weight: input_is_tracked.then_some(weight),
            },
        );
        composed::linear::finish::<Self>(product, extras)
    }

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        extras: Extras<Self>,
        window: Window,
        relu: bool,
    ) -> FloatTensor<Self> {
        let weight = trained_like::<B, C>(weight, &input);
        let output = record::<B, C, _, _>(
            [input, weight],
            |[input, weight]| B::convolution(input, weight, Extras::None, window, false),
            |[input, weight], [input_is_tracked, weight_is_tracked], _| Convolution::<B> {
                shapes: [input.shape(), weight.shape()],
                input: weight_is_tracked.then_some(input),
                weight: input_is_tracked.then_some(weight),
                window,
            },
        );
        composed::convolution::finish::<Self>(output, extras, relu)
    }

    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        record::<B, C, _, _>(
            [input, gamma, beta],
            |[input, gamma, beta]| B::fused_group_norm(input, gamma, beta, options),
            |inputs, _, _| GroupNorm::<B> { inputs, options },
        )
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        record::<B, C, _, _>(
            [input, gamma, beta],
            |[input, gamma, beta]| B::fused_layer_norm(input, gamma, beta, epsilon),
            |[input, gamma, _], _, _| LayerNorm::<B> {
                input,
                gamma,
                epsilon,
            },
        )
    }

    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, _>(
            [input],
            |[input]| B::exact_gelu(input),
            |[input], _, _| Gelu::<B>(input),
        )
    }
}

/// The inputs, and the output, whose product with its gradient replaces the row sums in the backward pass of the softmax.
#[derive(Clone, Debug)]
struct Attention<B: Backend> {
    inputs: [FloatTensor<B>; 3],
    output: FloatTensor<B>,
    mask: Mask,
}

impl<B: Backend> Saved<B, 3> for Attention<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 3] {
        composed::attention::backward::<B>(self.inputs, self.output, grad, self.mask).map(Some)
    }
}

#[derive(Clone, Debug)]
struct Linear<B: Backend> {
    input: Option<FloatTensor<B>>,
    weight: Option<FloatTensor<B>>,
}

impl<B: KernelGrads> Saved<B, 2> for Linear<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 2] {
        [
            self.weight
                .map(|weight| B::linear_input_grad(weight, grad.clone())),
            self.input.map(|input| B::linear_weight_grad(input, grad)),
        ]
    }
}

#[derive(Clone, Debug)]
struct Convolution<B: Backend> {
    input: Option<FloatTensor<B>>,
    weight: Option<FloatTensor<B>>,
    shapes: [Shape; 2],
    window: Window,
}

impl<B: KernelGrads> Saved<B, 2> for Convolution<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 2] {
        let ([of_input, of_weight], window) = (self.shapes, self.window);
        [
            self.weight
                .map(|weight| B::convolution_input_grad(of_input, weight, grad.clone(), window)),
            self.input
                .map(|input| B::convolution_weight_grad(input, of_weight, grad, window)),
        ]
    }
}

/// The inputs only, because statistics are cheaper to recompute than to keep.
#[derive(Clone, Debug)]
struct GroupNorm<B: Backend> {
    inputs: [FloatTensor<B>; 3],
    options: GroupNormOptions,
}

impl<B: KernelGrads> Saved<B, 3> for GroupNorm<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 3] {
        let [input, gamma, beta] = self.inputs;
        B::group_norm_grads(input, gamma, beta, grad, self.options).map(Some)
    }
}

#[derive(Clone, Debug)]
struct LayerNorm<B: Backend> {
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f64,
}

impl<B: KernelGrads> Saved<B, 3> for LayerNorm<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 3] {
        B::layer_norm_grads(self.input, self.gamma, grad, self.epsilon).map(Some)
    }
}

#[derive(Clone, Debug)]
struct Gelu<B: Backend>(FloatTensor<B>);

impl<B: KernelGrads> Saved<B, 1> for Gelu<B> {
    fn grads(self, grad: FloatTensor<B>) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::gelu_grad(self.0, grad))]
    }
}
