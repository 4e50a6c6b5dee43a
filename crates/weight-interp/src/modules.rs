use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Tensor};
use swiftbrush_checkpoint::ModulePath;

/// `λ·a + (1−λ)·b` for every parameter, computed in f32 and kept in the element type of `a`.
///
/// # Panics
///
/// If the modules differ in the names or shapes of their parameters.
pub fn interpolate<M: Module>(a: M, b: &M, lambda: f64) -> M {
    let mut others = Others {
        path: ModulePath::default(),
        flat: BTreeMap::new(),
    };
    b.visit(&mut others);
    let mut mix = Mix {
        path: ModulePath::default(),
        others: others.flat,
        lambda,
    };
    let mixed = a.map(&mut mix);
    assert!(
        mix.others.is_empty(),
        "the second model has more parameters: {:?}",
        mix.others.keys()
    );
    mixed
}

struct Others {
    path: ModulePath,
    flat: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
}

impl ModuleVisitor for Others {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.base().inner();
        let dims = tensor.dims().to_vec();
        self.flat.insert(
            self.path.name(),
            (dims, tensor.cast(FloatDType::F32).reshape([-1])),
        );
    }
}

struct Mix {
    path: ModulePath,
    others: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
    lambda: f64,
}

impl ModuleMapper for Mix {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some((dims, other)) = self.others.remove(&name) else {
            panic!("the second model has no {name}");
        };
        param.map(|tensor| {
            assert_eq!(
                tensor.dims().to_vec(),
                dims,
                "{name} has another shape in the second model"
            );
            let own = tensor.clone().inner().cast(FloatDType::F32).reshape([-1]);
            let mixed = (own * self.lambda + other * (1.0 - self.lambda)).reshape(tensor.dims());
            let mixed = mixed.cast(tensor.dtype());
            match (tensor.is_autodiff(), tensor.is_require_grad()) {
                (true, true) => mixed.autodiff().require_grad(),
                (true, false) => mixed.autodiff(),
                (false, _) => mixed,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_checkpoint::named_tensors;
    use swiftbrush_testing::{assert_values_close, device};
    use swiftbrush_unet::UNetConfig;

    use super::*;

    #[test]
    fn ends_and_middle_are_what_they_should_be() {
        let device = device();
        let (a, b) = (
            UNetConfig::tiny().init(&device),
            UNetConfig::tiny().init(&device),
        );
        let values = |module: &swiftbrush_unet::UNet| -> Vec<f32> {
            named_tensors(module)
                .values()
                .flat_map(|data| data.iter::<f32>().collect::<Vec<_>>())
                .collect()
        };
        let (left, right) = (values(&a), values(&b));
        let at = |lambda| values(&interpolate(a.clone(), &b, lambda));
        assert_eq!(at(1.0), left);
        assert_eq!(at(0.0), right);
        let expected: Vec<f32> = left
            .iter()
            .zip(&right)
            .map(|(a, b)| 0.3 * a + 0.7 * b)
            .collect();
        assert_values_close(&at(0.3), &expected, 1e-6);
        assert_values_close(&values(&interpolate(a.clone(), &a, 0.3)), &left, 1e-6);
    }

    #[test]
    #[should_panic(expected = "has another shape")]
    fn models_of_other_shapes_are_refused() {
        let device = device();
        let wide = UNetConfig {
            cross_attention_dim: 16,
            ..UNetConfig::tiny()
        };
        interpolate(UNetConfig::tiny().init(&device), &wide.init(&device), 0.5);
    }
}
