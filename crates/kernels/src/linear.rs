//! The linear layer, with and without a low-rank adapter.

use burn::backend::Dispatch;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::activation::{check_halves, gated_gelu};
use crate::backend::Kernels;
use crate::int8::is_int8;
use crate::options::Extras;
use crate::params::{cast, random_param, value};

/// Configuration of a [`Linear`].
#[derive(Config, Debug)]
pub struct LinearConfig {
    /// Features of the input.
    pub inputs: usize,
    /// Features of the output.
    pub outputs: usize,
    /// Adds a bias.
    #[config(default = true)]
    pub bias: bool,
}

impl LinearConfig {
    /// Creates a layer initialised as in PyTorch: uniform within `±1/√inputs`.
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

/// A linear layer, `x·Wᵀ + b`.
///
/// With burn's LoRA attached to the weight (`W + s·A·B`, `A: [outputs, rank]`, `B: [rank, inputs]`), the layer computes
/// `x·Wᵀ + s·(x·Bᵀ)·Aᵀ` and never composes the dense matrix, whose gradient alone would cost as much as the frozen layer.
///
/// Like all layers of this crate, it computes in the element type of its input and converts parameters of another type at
/// each use, so a network can be stored in half precision and compute in f32. The input is kept for the backward pass only
/// if the weight is trained.
///
/// # Examples
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_kernels::LinearConfig;
///
/// let device = Device::flex();
/// let layer = LinearConfig::new(8, 4).init(&device);
/// let tokens = Tensor::<3>::ones([2, 5, 8], &device);
/// assert_eq!(layer.forward(tokens).dims(), [2, 5, 4]);
/// ```
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
    #[track_caller]
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.compute(input, None)
    }

    /// Computes the layer's output plus a residual: `[…, inputs]`, `[…, outputs]` → `[…, outputs]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match, or input and residual differ in dtype.
    #[track_caller]
    pub fn forward_residual<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Tensor<D> {
        self.compute(input, Some(residual))
    }

    /// [`gated_gelu`](crate::gated_gelu) of the layer's output: `[…, inputs]` → `[…, outputs / 2]`. With a weight in int8, the
    /// output is gated before it is stored.
    ///
    /// # Panics
    ///
    /// If the last axis has another size, or the number of outputs is odd.
    #[track_caller]
    pub fn forward_gated_gelu<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.base();
        if !is_int8(&weight) || self.weight.adapter().is_some() {
            return gated_gelu(self.forward(input));
        }
        let mut dims = input.dims();
        let [outputs, inputs] = weight.dims();
        check_inputs(dims[D - 1], inputs);
        check_halves(outputs);
        dims[D - 1] = outputs / 2;
        let rows = input.reshape([-1, inputs as i32]);
        let bias = self.bias.as_ref().map(|bias| value(bias, rows.dtype()));
        let extras = Extras::new(bias.map(Tensor::into_dispatch), None);
        let (rows, weight) = (rows.into_dispatch(), weight.into_dispatch());
        let rows = <Dispatch as Kernels>::int8_gated_gelu(rows, weight, extras);
        Tensor::<2>::from_dispatch(rows).reshape(dims)
    }

    fn compute<const D: usize>(&self, input: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let mut dims = input.dims();
        let [outputs, inputs] = self.weight.lazy_shape().dims::<2>();
        check_inputs(dims[D - 1], inputs);
        dims[D - 1] = outputs;
        if let Some(residual) = &residual {
            let found = (residual.dims(), residual.dtype());
            let expected = (dims, input.dtype());
            assert_eq!(
                found, expected,
                "the shape or dtype of the residual differs from the output's"
            );
        }
        let rows = input.reshape([-1, inputs as i32]);
        let residual = residual.map(|residual| residual.reshape([-1, outputs as i32]));
        let residual = self.with_adapter(&rows, residual);
        let bias = self.bias.as_ref().map(|bias| value(bias, rows.dtype()));
        product(rows, self.weight.base(), bias, residual).reshape(dims)
    }

    /// Adds the low-rank path, if an adapter is attached, to the residual.
    fn with_adapter(&self, rows: &Tensor<2>, residual: Option<Tensor<2>>) -> Option<Tensor<2>> {
        let Some(adapter) = self.weight.adapter() else {
            return residual;
        };
        let dtype = rows.dtype();
        let down = product(rows.clone(), value(&adapter.b, dtype), None, None);
        let up = value(&adapter.a, dtype);
        Some(product(down * adapter.scale, up, None, residual))
    }
}

/// `x·Wᵀ + b`, the function behind [`Linear`] without an adapter, for weights that are parameters of something else, such as
/// a 1×1 convolution.
///
/// Computes in the element type of the input; weight and bias may have another one.
///
/// # Shapes
///
/// - input: `[…, inputs]`
/// - weight: `[outputs, inputs]`
/// - bias: `[outputs]`
/// - returns: `[…, outputs]`
///
/// # Panics
///
/// If the shapes do not match.
#[track_caller]
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = input.dims();
    let [outputs, inputs] = weight.dims();
    check_inputs(dims[D - 1], inputs);
    dims[D - 1] = outputs;
    let rows = input.reshape([-1, inputs as i32]);
    let bias = bias.map(|bias| cast(bias, rows.dtype()));
    product(rows, weight, bias, None).reshape(dims)
}

/// [`linear`] with the weight of a 1×1 convolution, `[outputs, inputs, 1, 1]`.
pub(crate) fn pointwise<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [outputs, inputs, _, _] = weight.dims();
    if !is_int8(&weight) {
        return linear(input, weight.reshape([outputs, inputs]), bias);
    }
    let mut dims = input.dims();
    check_inputs(dims[D - 1], inputs);
    dims[D - 1] = outputs;
    let rows = input.reshape([-1, inputs as i32]);
    let bias = bias.map(|bias| cast(bias, rows.dtype()));
    product(rows, weight, bias, None).reshape(dims)
}

#[track_caller]
fn check_inputs(found: usize, expected: usize) {
    assert_eq!(
        found, expected,
        "expected an input of {expected} features, found {found}"
    );
}

/// `r + x·Wᵀ + b`, of a matrix or a weight in int8 of any rank.
fn product<const W: usize>(
    input: Tensor<2>,
    weight: Tensor<W>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let extras = Extras::new(
        bias.map(Tensor::into_dispatch),
        residual.map(Tensor::into_dispatch),
    );
    let operation = match is_int8(&weight) {
        true => <Dispatch as Kernels>::int8_linear,
        false => <Dispatch as Kernels>::linear,
    };
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(operation(input, weight, extras))
}

#[cfg(test)]
mod tests {
    use burn::module::Lora;
    use burn::tensor::FloatDType;
    use swiftbrush_testing::{assert_close, device, random};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn products_and_gradients_equal_those_of_burn() {
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
            // Without gradients, some backends take another path.
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
                let found = layer.forward_residual(input.clone(), residual.clone());
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

    /// Lazily initialised weights once lost their require-grad flag, so that only biases learned.
    #[test]
    fn all_parameters_of_new_layers_are_trained() {
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
    fn weights_in_half_precision_are_widened() {
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
