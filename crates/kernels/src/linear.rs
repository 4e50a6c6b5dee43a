//! The linear layer, with and without a low-rank adapter.

use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor};

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
        let Self { inputs, outputs, bias } = *self;
        let bound = 1.0 / (inputs as f64).sqrt();
        let uniform = Distribution::Uniform(-bound, bound);
        Linear {
            weight: Param::uninitialized(
                ParamId::new(),
                move |device, _| Tensor::random([outputs, inputs], uniform, device),
                device.clone(),
                true,
                [outputs, inputs].into(),
            ),
            bias: bias.then(|| Param::from_tensor(Tensor::random([outputs], uniform, device))),
        }
    }
}

/// `x·Wᵀ + b`.
///
/// When burn's LoRA is attached to the weight (`W + s·A·B`, `A: [outputs, rank]`,
/// `B: [rank, inputs]`), the layer computes `x·Wᵀ + s·(x·Bᵀ)·Aᵀ` and never composes the dense matrix,
/// whose gradient alone would cost as much as the frozen layer.
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
    /// If the last axis has another size, or another dtype than the weights.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let mut dims = input.dims();
        let [_, inputs] = self.weight.lazy_shape().dims::<2>();
        assert_eq!(dims[D - 1], inputs, "the layer takes {inputs} features");
        let rows = input.reshape([-1, inputs as i32]);
        let weight = self.weight.base();
        assert_eq!(rows.dtype(), weight.dtype(), "input and weight differ in dtype");
        let output = match self.weight.adapter() {
            None => rows.matmul(weight.transpose()),
            Some(adapter) => {
                let down = rows.clone().matmul(adapter.b.val().transpose());
                let up = down.matmul(adapter.a.val().transpose());
                rows.matmul(weight.transpose()) + up * adapter.scale
            }
        };
        let output = match &self.bias {
            None => output,
            Some(bias) => output + bias.val().unsqueeze::<2>(),
        };
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Lora;
    use swiftbrush_testing::{assert_close, device};

    use super::*;

    #[test]
    fn multiplies_by_the_transposed_weight() {
        let device = device();
        let layer = LinearConfig::new(3, 2).init(&device);
        let layer = Linear {
            weight: layer.weight.map(|_| Tensor::from_data([[1., 2., 3.], [4., 5., 6.]], &device)),
            bias: layer.bias.map(|bias| bias.map(|_| Tensor::from_data([10., 20.], &device))),
        };
        let output = layer.forward(Tensor::<3>::from_data([[[1., 0., -1.], [1., 1., 1.]]], &device));
        assert_close(output, Tensor::from_data([[[8., 18.], [16., 35.]]], &device), 1e-6);
    }

    #[test]
    fn the_low_rank_path_equals_the_composed_weight() {
        let device = device().autodiff();
        let layer = LinearConfig::new(6, 4).init(&device).apply_lora(Lora::new(2, 4.0));
        let mut random = Fill(Distribution::Normal(0.0, 1.0));
        let layer = layer.map(&mut random);
        let input = Tensor::<2>::random([5, 6], Distribution::Normal(0.0, 1.0), &device);

        let dense = layer.weight.val();
        let expected = input.clone().matmul(dense.transpose())
            + layer.bias.as_ref().unwrap().val().unsqueeze::<2>();
        assert_close(layer.forward(input).inner(), expected.inner(), 1e-5);
    }

    struct Fill(Distribution);

    impl burn::module::ModuleMapper for Fill {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.random_like(self.0))
        }
    }
}
