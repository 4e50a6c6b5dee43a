//! The linear layer, with and without a low-rank adapter.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Distribution, FloatDType, Shape, Tensor};

use crate::backend::Kernels;

/// Configuration of a [`Linear`].
#[derive(Config, Debug)]
pub struct LinearConfig {
    /// Features of the input.
    pub inputs: usize,
    /// Features of the output.
    pub outputs: usize,
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl LinearConfig {
    /// A layer initialised as PyTorch's: uniform within `1/√inputs`.
    pub fn init(&self, device: &Device) -> Linear {
        let Self {
            inputs,
            outputs,
            bias,
        } = *self;
        let bound = 1.0 / (inputs as f64).sqrt();
        Linear {
            weight: random_param([outputs, inputs], bound, device),
            bias: bias.then(|| random_param([outputs], bound, device)),
        }
    }
}

/// `x·Wᵀ + b`.
///
/// When burn's LoRA is attached to the weight (`W + s·A·B`, `A: [outputs, rank]`,
/// `B: [rank, inputs]`), the layer computes `x·Wᵀ + s·(x·Bᵀ)·Aᵀ` and never composes the dense matrix,
/// whose gradient alone would cost as much as the frozen layer.
///
/// Like all layers here it computes in the element type of its input; parameters stored in another are converted at
/// each use, so a network can be kept in half precision and compute in f32.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Param<Tensor<2>>,
    /// `[outputs]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// `[…, inputs]` → `[…, outputs]`
    ///
    /// # Panics
    ///
    /// If the last axis has another size.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.compute(input, None)
    }

    /// The residual plus the layer's output: `[…, inputs]`, `[…, outputs]` → `[…, outputs]`
    ///
    /// # Panics
    ///
    /// If the shapes do not agree, or input and residual differ in dtype.
    pub fn forward_added<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Tensor<D> {
        self.compute(input, Some(residual))
    }

    fn compute<const D: usize>(&self, input: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let mut dims = input.dims();
        let [outputs, inputs] = self.weight.lazy_shape().dims::<2>();
        assert_eq!(dims[D - 1], inputs, "the layer takes {inputs} features");
        dims[D - 1] = outputs;
        if let Some(residual) = &residual {
            assert_eq!(residual.dims(), dims, "the residual has another shape");
            assert_eq!(
                residual.dtype(),
                input.dtype(),
                "input and residual differ in dtype"
            );
        }
        let rows = input.reshape([-1, inputs as i32]);
        let dtype = rows.dtype();
        let residual = residual.map(|residual| residual.reshape([-1, outputs as i32]));
        let residual = match self.weight.adapter() {
            None => residual,
            Some(adapter) => {
                let down = linear(rows.clone(), value(&adapter.b, dtype), None, None);
                let up = linear(down * adapter.scale, value(&adapter.a, dtype), None, None);
                Some(match residual {
                    Some(residual) => residual + up,
                    None => up,
                })
            }
        };
        let bias = self.bias.as_ref().map(|bias| value(bias, dtype));
        linear(rows, self.weight.base(), bias, residual).reshape(dims)
    }
}

/// `r + x·Wᵀ + b`
fn linear(
    input: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    let output = match (bias.map(Tensor::into_dispatch), residual) {
        (Some(bias), Some(residual)) => {
            let residual = residual.into_dispatch();
            <Dispatch as Kernels>::linear_added(input, weight, bias, residual)
        }
        (Some(bias), None) => <Dispatch as Kernels>::linear_with_bias(input, weight, bias),
        (None, None) => <Dispatch as Kernels>::linear(input, weight),
        (None, Some(residual)) => {
            let output = <Dispatch as Kernels>::linear(input, weight);
            return residual + Tensor::from_dispatch(output);
        }
    };
    Tensor::from_dispatch(output)
}

/// A parameter in the element type that a layer computes in, which is that of its input: weights may be stored in
/// another, narrower one.
pub(crate) fn value<const D: usize>(param: &Param<Tensor<D>>, dtype: DType) -> Tensor<D> {
    cast(param.val(), dtype)
}

/// A bias `[outputs]` added to each row.
pub(crate) fn biased<B: Backend>(rows: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let outputs = bias.shape().num_elements();
    B::float_add(rows, B::float_reshape(bias, Shape::new([1, outputs])))
}

/// A weight in the element type of the input.
pub(crate) fn alike<B: Backend>(weight: FloatTensor<B>, input: &FloatTensor<B>) -> FloatTensor<B> {
    let dtype = input.dtype();
    if weight.dtype() == dtype {
        return weight;
    }
    B::float_cast(weight, FloatDType::from(dtype))
}

fn cast<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype {
        return tensor;
    }
    tensor.cast(FloatDType::from(dtype))
}

/// A trainable parameter, uniform within `bound`; drawn when it is first read, so that a network which
/// is loaded from a file never draws it.
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

#[cfg(test)]
mod tests {
    use burn::module::Lora;
    use swiftbrush_testing::{assert_close, device, random};

    use super::*;

    #[test]
    fn few_rows_and_many_are_multiplied_alike() {
        let device = device().autodiff();
        for (rows, inputs, outputs) in [
            (1, 7, 3),
            (5, 33, 70),
            (77, 64, 35),
            (192, 16, 9),
            (193, 20, 9),
            (1030, 530, 60),
        ] {
            let input = random([rows, inputs], 0, &device).require_grad();
            let layer = LinearConfig::new(inputs, outputs).init(&device);
            let output = layer.forward(input.clone());
            let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
            let expected = input.clone().matmul(weight.transpose()) + bias.unsqueeze::<2>();
            let grad = |output: Tensor<2>| {
                let grads = output.powi_scalar(2).sum().backward();
                let weight = layer.weight.val().grad(&grads).unwrap();
                (input.grad(&grads).unwrap(), weight)
            };
            let ((of_input, of_weight), expected_grads) =
                (grad(output.clone()), grad(expected.clone()));
            // Without a gradient to be taken, some backends have a way of their own.
            let plain = layer.clone().valid().forward(input.inner());
            assert_close(plain, expected.clone().inner(), 1e-5);
            assert_close(output.inner(), expected.inner(), 1e-5);
            assert_close(of_input, expected_grads.0, 1e-5);
            assert_close(of_weight, expected_grads.1, 1e-5);
        }
    }

    #[test]
    fn a_residual_is_added() {
        let device = device();
        for (rows, inputs, outputs) in [(2, 7, 3), (77, 64, 35), (600, 520, 100)] {
            let input = random([2, rows, inputs], 0, &device);
            let residual = random([2, rows, outputs], 1, &device);
            for bias in [false, true] {
                let layer = LinearConfig::new(inputs, outputs)
                    .with_bias(bias)
                    .init(&device);
                let found = layer.forward_added(input.clone(), residual.clone());
                assert_close(found, residual.clone() + layer.forward(input.clone()), 1e-5);
            }
        }
    }

    #[test]
    fn multiplies_by_the_transposed_weight() {
        let device = device();
        let layer = LinearConfig::new(3, 2).init(&device);
        let layer = Linear {
            weight: layer
                .weight
                .map(|_| Tensor::from_data([[1., 2., 3.], [4., 5., 6.]], &device)),
            bias: layer
                .bias
                .map(|bias| bias.map(|_| Tensor::from_data([10., 20.], &device))),
        };
        let output = layer.forward(Tensor::<3>::from_data(
            [[[1., 0., -1.], [1., 1., 1.]]],
            &device,
        ));
        assert_close(
            output,
            Tensor::from_data([[[8., 18.], [16., 35.]]], &device),
            1e-6,
        );
    }

    /// Lazily drawn weights once forgot that they are trained, and only biases learned.
    #[test]
    fn new_layers_are_trained_whole() {
        let device = device().autodiff();
        let linear = LinearConfig::new(3, 2).init(&device);
        let conv = crate::Conv2dConfig::same3x3(2, 2).init(&device);
        let rows = linear.forward(Tensor::<2>::ones([4, 3], &device)).sum();
        let images = conv.forward(Tensor::<4>::ones([1, 2, 3, 3], &device)).sum();
        let grads = (rows + images).backward();
        assert!(linear.weight.val().grad(&grads).is_some());
        assert!(linear.bias.unwrap().val().grad(&grads).is_some());
        assert!(conv.weight.val().grad(&grads).is_some());
        assert!(conv.bias.unwrap().val().grad(&grads).is_some());
    }

    #[test]
    fn weights_in_half_precision_are_computed_with_in_that_of_the_input() {
        let device = device();
        let half = |weight: Tensor<2>| weight.cast(FloatDType::F16);
        let layer = LinearConfig::new(8, 4).with_bias(false).init(&device);
        let stored = Linear {
            weight: layer.weight.clone().map(half),
            bias: None,
        };
        let rounded = Linear {
            weight: layer
                .weight
                .map(|weight| half(weight).cast(FloatDType::F32)),
            bias: None,
        };
        let input = random([3, 8], 0, &device);
        assert_close(stored.forward(input.clone()), rounded.forward(input), 1e-6);
    }

    #[test]
    fn the_low_rank_path_equals_the_composed_weight() {
        let device = device().autodiff();
        let layer = LinearConfig::new(6, 4)
            .init(&device)
            .apply_lora(Lora::new(2, 4.0));
        let layer = layer.map(&mut Fill);
        let input = random([5, 6], 0, &device);

        let dense = layer.weight.val();
        let expected = input.clone().matmul(dense.transpose())
            + layer.bias.as_ref().unwrap().val().unsqueeze::<2>();
        assert_close(layer.forward(input).inner(), expected.inner(), 1e-5);
    }

    struct Fill;

    impl burn::module::ModuleMapper for Fill {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| random(tensor.dims(), 1, &tensor.device()))
        }
    }
}
