//! Gradients of a module by the names of its parameters.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Gradients, Tensor};
use swiftbrush_checkpoint::ModulePath;

/// The gradient of every trainable parameter that a loss reached, flattened, in f32.
#[derive(Clone, Debug, Default)]
pub struct NamedGradients(BTreeMap<String, Tensor<1>>);

impl NamedGradients {
    /// Takes the gradients of a module out of a backward pass.
    pub fn take<M: Module>(module: &M, grads: &mut Gradients) -> Self {
        let mut taker = Taker {
            path: ModulePath::default(),
            grads,
            found: BTreeMap::new(),
        };
        module.visit(&mut taker);
        Self(taker.found)
    }

    /// Whether the loss reached no parameter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The gradient of one parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.0.get(name)
    }

    /// The names of the parameters that the loss reached, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Tensor<1>> {
        self.0.remove(name)
    }

    /// The sum of two, for gradients accumulated over several batches.
    pub fn plus(mut self, other: Self) -> Self {
        for (name, grad) in other.0 {
            let sum = match self.0.remove(&name) {
                Some(sum) => sum + grad,
                None => grad,
            };
            self.0.insert(name, sum);
        }
        self
    }

    /// All gradients times a factor.
    pub fn scale(self, factor: f64) -> Self {
        Self(
            self.0
                .into_iter()
                .map(|(name, grad)| (name, grad * factor))
                .collect(),
        )
    }

    /// The sum of squares of each, `[1]`.
    pub(crate) fn squares(&self) -> Vec<Tensor<1>> {
        let squares = self.0.values();
        squares
            .map(|grad| grad.clone().powi_scalar(2).sum())
            .collect()
    }

    /// The Euclidean norm over all parameters together.
    pub fn norm(&self) -> f64 {
        let squares = self.squares();
        if squares.is_empty() {
            return 0.0;
        }
        let squares = Tensor::cat(squares, 0).into_data();
        squares.iter::<f64>().sum::<f64>().sqrt()
    }

    /// Scaled down to `max_norm` if the norm is larger, as PyTorch's `clip_grad_norm_`; returns the norm
    /// before.
    pub fn clip(self, max_norm: f64) -> (Self, f64) {
        let norm = self.norm();
        (self.scale(clipping(norm, max_norm)), norm)
    }
}

/// What gradients of a norm are multiplied by so that it is no more than `max_norm`.
pub(crate) fn clipping(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

struct Taker<'a> {
    path: ModulePath,
    grads: &'a mut Gradients,
    found: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for Taker<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = param.base().grad_remove(self.grads) {
            let size = grad.shape().num_elements();
            self.found
                .insert(self.path.name(), grad.cast(FloatDType::F32).reshape([size]));
        }
    }
}
