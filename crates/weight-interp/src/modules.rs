use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor};
use swiftbrush_checkpoint::{NamedMapper, NamedVisitor, map_named, visit_named};

use crate::Error;

/// Computes `λ·a + (1−λ)·b` for every parameter in f32, and stores it in the element type of `a`.
///
/// λ outside 0…1 extrapolates.
///
/// # Errors
///
/// If λ is not finite, or the modules differ in the names or shapes of their parameters.
///
/// # Examples
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_weight_interp::interpolate;
///
/// #[derive(Module, Debug)]
/// struct Scale {
///     weight: Param<Tensor<1>>,
/// }
///
/// let scale = |value: f32| Scale {
///     weight: Param::from_tensor(Tensor::full([2], value, &Device::default())),
/// };
/// let merged = interpolate(scale(4.0), &scale(0.0), 0.25)?;
/// assert_eq!(merged.weight.val().into_data(), scale(1.0).weight.val().into_data());
/// # Ok::<(), swiftbrush_weight_interp::Error>(())
/// ```
pub fn interpolate<M: Module>(a: M, b: &M, lambda: f64) -> Result<M, Error> {
    if !lambda.is_finite() {
        return Err(Error::Lambda(lambda));
    }
    let mut others = Others(BTreeMap::new());
    visit_named(b, &mut others);
    let mut mix = Mix {
        others: others.0,
        lambda,
        differences: Vec::new(),
    };
    let mixed = map_named(a, &mut mix);
    let rest = mix.others.into_keys();
    mix.differences
        .extend(rest.map(|name| format!("{name} is only in the second")));
    match mix.differences.is_empty() {
        true => Ok(mixed),
        false => Err(Error::Modules(mix.differences)),
    }
}

/// The shape and the values of each parameter.
struct Others(BTreeMap<String, (Vec<usize>, Tensor<1>)>);

impl NamedVisitor for Others {
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let tensor = param.base().inner();
        let dims = tensor.dims().to_vec();
        let flat = tensor.cast(FloatDType::F32).reshape([-1]);
        self.0.insert(name.to_owned(), (dims, flat));
    }
}

struct Mix {
    others: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
    lambda: f64,
    differences: Vec<String>,
}

impl NamedMapper for Mix {
    fn float<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let own = param.lazy_shape().to_vec();
        let Some((dims, other)) = self.others.remove(name) else {
            self.differences
                .push(format!("{name} is only in the first"));
            return param;
        };
        if own != dims {
            let difference = format!("{name} is {own:?} in the first and {dims:?} in the second");
            self.differences.push(difference);
            return param;
        }
        param.map(|tensor| {
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
    fn both_ends_are_exact_and_the_middle_is_the_formula() {
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
        let at = |lambda| values(&interpolate(a.clone(), &b, lambda).unwrap());
        assert_eq!(at(1.0), left);
        assert_eq!(at(0.0), right);
        let expected: Vec<f32> = left
            .iter()
            .zip(&right)
            .map(|(a, b)| 0.3 * a + 0.7 * b)
            .collect();
        assert_values_close(&at(0.3), &expected, 1e-6);
        let same = interpolate(a.clone(), &a, 0.3).unwrap();
        assert_values_close(&values(&same), &left, 1e-6);
    }

    #[test]
    fn other_shapes_and_a_non_finite_lambda_are_errors() {
        let device = device();
        let wide = UNetConfig {
            cross_attention_dim: 16,
            ..UNetConfig::tiny()
        };
        let unet = UNetConfig::tiny().init(&device);
        let error = interpolate(unet.clone(), &wide.init(&device), 0.5).unwrap_err();
        assert!(
            error.to_string().contains("attn2.to_k.weight is ["),
            "{error}"
        );
        for lambda in [f64::NAN, f64::INFINITY] {
            let error = interpolate(unet.clone(), &unet, lambda).unwrap_err();
            assert!(matches!(error, Error::Lambda(_)), "{error}");
        }
    }
}
