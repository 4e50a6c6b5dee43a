use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Uniform};

/// A module with weights that depend only on the seed: uniform within ±1/√(inputs of an output), those of
/// normalisations around 1, biases within ±0.5.
///
/// Weights of new modules are drawn when they are first read, from a generator that tests share.
pub fn fill<M: Module>(module: M, seed: u64) -> M {
    module.map(&mut Fill {
        path: Vec::new(),
        rng: ChaCha8Rng::seed_from_u64(seed),
    })
}

struct Fill {
    path: Vec<String>,
    rng: ChaCha8Rng,
}

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().dims::<D>();
        let inputs: usize = shape[1..].iter().product();
        let is_bias = self.path.last().is_some_and(|name| name == "bias");
        let (centre, reach) = match (D, is_bias) {
            (1, true) => (0.0, 0.5),
            (1, false) => (1.0, 0.5),
            _ => (0.0, 1.0 / (inputs as f32).sqrt()),
        };
        let uniform = Uniform::new(centre - reach, centre + reach).expect("the range is finite");
        let values = uniform.sample_iter(&mut self.rng);
        let values: Vec<f32> = values.take(shape.iter().product()).collect();
        let data = TensorData::new(values, shape);
        param.map(|tensor| {
            let filled = Tensor::from_data(data, &tensor.device());
            match tensor.is_require_grad() {
                true => filled.require_grad(),
                false => filled,
            }
        })
    }
}
