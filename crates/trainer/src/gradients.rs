//! Gradients by parameter name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Gradients, Tensor};
use swiftbrush_checkpoint::ModulePath;
use swiftbrush_kernels::sum_of_squares;

/// The gradients of all trainable parameters that a loss depends on, flattened, in f32.
#[derive(Clone, Debug)]
pub struct NamedGradients {
    grads: BTreeMap<String, Tensor<1>>,
    /// A pending factor of all gradients, applied where they are used.
    factor: f64,
}

impl Default for NamedGradients {
    fn default() -> Self {
        Self {
            grads: BTreeMap::new(),
            factor: 1.0,
        }
    }
}

impl NamedGradients {
    /// Takes the gradients of a module's parameters out of the result of a backward pass.
    pub fn take<M: Module>(module: &M, grads: &mut Gradients) -> Self {
        let mut taker = Taker {
            path: ModulePath::default(),
            grads,
            found: BTreeMap::new(),
        };
        module.visit(&mut taker);
        Self {
            grads: taker.found,
            factor: 1.0,
        }
    }

    /// Returns whether there are no gradients.
    pub fn is_empty(&self) -> bool {
        self.grads.is_empty()
    }

    /// The gradient of one parameter.
    pub fn get(&self, name: &str) -> Option<Tensor<1>> {
        let grad = self.grads.get(name)?;
        Some(grad.clone() * self.factor)
    }

    /// The names of the parameters with gradients, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.grads.keys().map(String::as_str)
    }

    /// Takes the gradient of one parameter and its pending factor.
    pub(crate) fn remove(&mut self, name: &str) -> Option<(Tensor<1>, f64)> {
        Some((self.grads.remove(name)?, self.factor))
    }

    /// Adds to the gradient of one parameter.
    pub(crate) fn add(&mut self, name: &str, grad: Tensor<1>) {
        let sum = match self.grads.remove(name) {
            Some(sum) => sum + grad,
            None => grad,
        };
        self.grads.insert(name.to_owned(), sum);
    }

    /// Keeps the gradients of some parameters.
    pub(crate) fn retain(mut self, is_kept: impl Fn(&str) -> bool) -> Self {
        self.grads.retain(|name, _| is_kept(name));
        self
    }

    /// Adds the gradients of another micro-batch; each is freed once it is added.
    pub fn plus(mut self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        let factor = other.factor / self.factor;
        for (name, grad) in other.grads {
            let grad = if factor == 1.0 { grad } else { grad * factor };
            self.add(&name, grad);
        }
        self
    }

    /// Multiplies all gradients by a factor.
    pub fn scale(self, factor: f64) -> Self {
        Self {
            factor: self.factor * factor,
            ..self
        }
    }

    /// The sum of squares of each gradient, `[1]`.
    pub(crate) fn squares(&self) -> Vec<Tensor<1>> {
        let grads = self.grads.values();
        let squares = grads.map(|grad| sum_of_squares(grad.clone()));
        if self.factor == 1.0 {
            return squares.collect();
        }
        squares.map(|sum| sum * self.factor.powi(2)).collect()
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

    /// Scales the gradients down to `max_norm` if their norm is larger, like PyTorch's `clip_grad_norm_`;
    /// returns the norm before clipping.
    pub fn clip(self, max_norm: f64) -> (Self, f64) {
        let norm = self.norm();
        (self.scale(clipping(norm, max_norm)), norm)
    }
}

/// The factor that scales gradients of norm `norm` to at most `max_norm`.
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
