//! Gradient checkpointing of a chain of functions.

use burn::tensor::Tensor;

/// The inputs of the links of a chain, kept by a forward pass without a graph: gradient checkpointing (Chen et al.,
/// arXiv 1604.06174).
///
/// The backward pass runs each link again with a graph, last first, so the graph never spans more than one link. It
/// yields the gradient of the chain's input; parameters are frozen.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_kernels::Checkpoints;
///
/// let square = |_: usize, x: Tensor<1>| x.powi_scalar(2);
/// let input = Tensor::<1>::from_data([3.0], &Device::flex());
/// let pass = Checkpoints::forward(2, input, square);
/// assert_eq!(pass.output().into_scalar::<f32>(), 81.0);
/// let grad = pass.backward(Tensor::from_data([1.0], &Device::flex()), square);
/// assert_eq!(grad.into_scalar::<f32>(), 108.0); // 4·x³
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoints<const D: usize> {
    inputs: Vec<Tensor<D>>,
    output: Tensor<D>,
}

impl<const D: usize> Checkpoints<D> {
    /// Applies the links 0 to `n_links − 1` to an input, which loses its graph.
    pub fn forward(
        n_links: usize,
        input: Tensor<D>,
        link: impl Fn(usize, Tensor<D>) -> Tensor<D>,
    ) -> Self {
        let mut output = input.inner();
        let mut inputs = Vec::with_capacity(n_links);
        for index in 0..n_links {
            inputs.push(output.clone());
            output = link(index, output);
        }
        Self { inputs, output }
    }

    /// The output of the last link, without a graph.
    pub fn output(&self) -> Tensor<D> {
        self.output.clone()
    }

    /// The gradient of the input, without a graph, given that of the output. `link` is that of the forward pass, on
    /// tensors with a graph.
    ///
    /// # Panics
    ///
    /// If the gradient has another shape than the output, or a link does not depend on its input.
    #[track_caller]
    pub fn backward(
        mut self,
        grad: Tensor<D>,
        link: impl Fn(usize, Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        assert_eq!(
            grad.dims(),
            self.output.dims(),
            "the gradient has another shape than the output"
        );
        let mut grad = grad.inner();
        while let Some(input) = self.inputs.pop() {
            let index = self.inputs.len();
            grad = input_grad(input, grad, |input| link(index, input));
        }
        grad
    }
}

/// The gradient of a function's input, given that of its output, by a forward and a backward pass. Neither has a graph.
///
/// # Panics
///
/// If the output has another shape than its gradient, or does not depend on the input.
#[track_caller]
pub fn input_grad<const D: usize, const E: usize>(
    input: Tensor<D>,
    output_grad: Tensor<E>,
    function: impl FnOnce(Tensor<D>) -> Tensor<E>,
) -> Tensor<D> {
    let input = input.autodiff().require_grad();
    let output = function(input.clone());
    // The gradient of Σ output·grad with respect to the output is exactly its grad.
    let mut grads = (output * output_grad.autodiff()).sum().backward();
    let grad = input.grad_remove(&mut grads);
    grad.expect("the output depends on the input")
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    /// Links that differ, so that their order matters.
    fn link(index: usize, input: Tensor<2>) -> Tensor<2> {
        (input * (0.2 + index as f64)).sin() + index as f64
    }

    #[test]
    fn gradients_are_those_of_the_whole_graph() {
        let device = device();
        let (input, grad) = (random([3, 5], 0, &device), random([3, 5], 1, &device));
        let pass = Checkpoints::forward(3, input.clone(), link);
        let leaf = input.clone().autodiff().require_grad();
        let whole = (0..3).fold(leaf.clone(), |hidden, index| link(index, hidden));
        assert_close(pass.output(), whole.clone().inner(), 1e-6);
        let grads = (whole * grad.clone().autodiff()).sum().backward();
        let expected = leaf.grad(&grads).unwrap();
        assert_close(pass.backward(grad.clone(), link), expected, 1e-6);
        let none = Checkpoints::forward(0, input.clone(), link);
        assert_close(none.output(), input, 0.0);
        assert_close(none.backward(grad.clone(), link), grad, 0.0);
    }
}
