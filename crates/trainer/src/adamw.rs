//! AdamW with PyTorch's defaults, which keeps its state by parameter name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{ModulePath, read};
use swiftbrush_kernels::{AdamWUpdate, adamw};

use crate::NamedGradients;

/// Settings of [`AdamW`]; the defaults are PyTorch's, but with weight decay off, as in SwiftBrush.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Fraction of each weight subtracted per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), which takes the same
/// steps as PyTorch's `AdamW`.
///
/// burn's optimiser keeps its state by parameter id, which differs between processes. This one keeps it
/// by parameter name, so that a run can be saved and resumed exactly.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    /// Number of updates.
    step: u64,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// Creates an optimiser without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Updates every parameter that has a gradient.
    pub fn step<M: Module>(&mut self, module: M, grads: NamedGradients, learning_rate: f64) -> M {
        self.step += 1;
        module.map(&mut Update {
            path: ModulePath::default(),
            optimizer: self,
            grads,
            learning_rate,
        })
    }

    /// Number of updates.
    pub fn n_steps(&self) -> u64 {
        self.step
    }

    /// The moments as tensors on the host, `NAME.exp_avg` and `NAME.exp_avg_sq` as in PyTorch.
    pub fn state(&self) -> BTreeMap<String, TensorData> {
        self.handles()
            .map(|(name, moment)| (name, read(moment.clone())))
            .collect()
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = (String, &Tensor<1>)> {
        self.moments.iter().flat_map(|(name, [first, second])| {
            [
                (format!("{name}.exp_avg"), first),
                (format!("{name}.exp_avg_sq"), second),
            ]
        })
    }

    /// Restores an optimiser from its [`state`](Self::state) and [`n_steps`](Self::n_steps).
    pub fn restore(
        config: AdamWConfig,
        step: u64,
        state: &BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Self {
        let tensor = |data: &TensorData| Tensor::from_data(data.clone(), device);
        let moments = state
            .iter()
            .filter_map(|(key, first)| {
                let name = key.strip_suffix(".exp_avg")?;
                let second = state.get(&format!("{name}.exp_avg_sq"))?;
                Some((name.to_owned(), [tensor(first), tensor(second)]))
            })
            .collect();
        Self {
            config,
            step,
            moments,
        }
    }

    /// Updates one parameter, flattened.
    fn update(
        &mut self,
        name: &str,
        weight: Tensor<1>,
        (grad, grad_factor): (Tensor<1>, f64),
        learning_rate: f64,
    ) -> Tensor<1> {
        let AdamWConfig {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.config;
        let moments = self.moments.remove(name);
        let moments = moments.unwrap_or_else(|| [grad.zeros_like(), grad.zeros_like()]);
        let correction = |beta: f64| 1.0 - beta.powi(self.step as i32);
        let update = AdamWUpdate {
            grad_factor,
            beta1,
            beta2,
            weight_factor: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / correction(beta1),
            deviation_correction: correction(beta2).sqrt(),
            epsilon,
        };
        let (weight, moments) = adamw(weight, grad, moments, update);
        self.moments.insert(name.to_owned(), moments);
        weight
    }
}

struct Update<'a> {
    path: ModulePath,
    optimizer: &'a mut AdamW,
    grads: NamedGradients,
    learning_rate: f64,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(grad) = self.grads.remove(&name) else {
            return param;
        };
        let (id, weight, mapper) = param.consume();
        let (dims, dtype) = (weight.dims(), weight.dtype());
        let is_autodiff = weight.is_autodiff();
        let flat = weight.inner().cast(FloatDType::F32).reshape([-1]);
        let updated = self.optimizer.update(&name, flat, grad, self.learning_rate);
        let updated = updated.reshape(dims).cast(dtype);
        let updated = if is_autodiff {
            updated.autodiff().require_grad()
        } else {
            updated
        };
        Param::from_mapped_value(id, updated, mapper)
    }
}
