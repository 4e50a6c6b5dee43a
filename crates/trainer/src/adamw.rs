//! AdamW with PyTorch's defaults, which keeps its state by parameter name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::ModulePath;
use swiftbrush_kernels::{AdamWUpdate, DynamicMap, Quantized, adamw};

use crate::NamedGradients;
use crate::snapshot::Entry;

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
    /// Storage of the moments between updates.
    pub moments: MomentStorage,
}

/// Storage of moments between updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentStorage {
    /// 8 bytes for each weight.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 2 bytes for each weight: in 8 bits by blocks, as bitsandbytes' `AdamW8bit` (arXiv 2110.02861). Parameters of
    /// fewer than 4096 elements stay in f32, as there.
    #[serde(rename = "8bit")]
    EightBits,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            moments: MomentStorage::F32,
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
    moments: BTreeMap<String, [Moment; 2]>,
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

    /// Keeps the moments of some parameters.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.moments.retain(|name, _| is_kept(name));
    }

    /// Number of updates.
    pub fn n_steps(&self) -> u64 {
        self.step
    }

    /// The moments as tensors on the host, `NAME.exp_avg` and `NAME.exp_avg_sq` as in PyTorch. In 8 bits they are codes,
    /// with the scales of their blocks as `NAME.exp_avg.scales`.
    pub fn state(&self) -> BTreeMap<String, TensorData> {
        let entries = self.entries();
        entries.map(|(name, entry)| (name, entry.read())).collect()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, Entry)> {
        self.moments.iter().flat_map(|(name, moments)| {
            let entries = moments.iter().zip(MOMENTS);
            entries
                .flat_map(move |(moment, (suffix, _))| moment.entries(&format!("{name}.{suffix}")))
        })
    }

    /// Restores an optimiser from its [`state`](Self::state) and [`n_steps`](Self::n_steps). Moments are converted to the
    /// storage of the configuration at the next update.
    pub fn restore(
        config: AdamWConfig,
        step: u64,
        mut state: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Self {
        let [(first, _), _] = MOMENTS;
        let names = state
            .keys()
            .filter_map(|key| key.strip_suffix(first)?.strip_suffix('.'));
        let names: Vec<_> = names.map(str::to_owned).collect();
        let moments = names.into_iter().filter_map(|name| {
            let [first, second] = MOMENTS.map(|(suffix, map)| {
                Moment::restore(&format!("{name}.{suffix}"), &mut state, map, device)
            });
            Some((name, [first?, second?]))
        });
        Self {
            config,
            step,
            moments: moments.collect(),
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
            moments: storage,
        } = self.config;
        let moments = match self.moments.remove(name) {
            Some(moments) => moments.map(Moment::values),
            None => [grad.zeros_like(), grad.zeros_like()],
        };
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
        let [first, second] = moments;
        let [(_, of_first), (_, of_second)] = MOMENTS;
        let moments = [(first, of_first), (second, of_second)];
        let moments = moments.map(|(moment, map)| Moment::new(moment, storage, map));
        self.moments.insert(name.to_owned(), moments);
        weight
    }
}

/// PyTorch's names of the moments, and the codes that they have in 8 bits.
const MOMENTS: [(&str, DynamicMap); 2] = [
    ("exp_avg", DynamicMap::Signed),
    ("exp_avg_sq", DynamicMap::Unsigned),
];

/// Size from which moments are stored in 8 bits: `min_8bit_size` of bitsandbytes.
const LEAST_QUANTIZED: usize = 4096;

/// A stored moment.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value per parameter, small beside its elements"
)]
enum Moment {
    Full(Tensor<1>),
    Quantized(Quantized),
}

impl Moment {
    fn new(values: Tensor<1>, storage: MomentStorage, map: DynamicMap) -> Self {
        match storage {
            MomentStorage::EightBits if values.dims()[0] >= LEAST_QUANTIZED => {
                Self::Quantized(Quantized::new(values, map))
            }
            _ => Self::Full(values),
        }
    }

    fn values(self) -> Tensor<1> {
        match self {
            Self::Full(values) => values,
            Self::Quantized(quantized) => quantized.values(),
        }
    }

    fn entries(&self, name: &str) -> Vec<(String, Entry)> {
        match self {
            Self::Full(values) => vec![(name.to_owned(), values.into())],
            Self::Quantized(quantized) => {
                let codes = quantized.clone();
                let codes = Entry::new([codes.len()], DType::U8, move || codes.codes());
                let scales = format!("{name}.scales");
                vec![
                    (name.to_owned(), codes),
                    (scales, (&quantized.scales()).into()),
                ]
            }
        }
    }

    fn restore(
        name: &str,
        state: &mut BTreeMap<String, TensorData>,
        map: DynamicMap,
        device: &Device,
    ) -> Option<Self> {
        let data = state.remove(name)?;
        if data.dtype() != DType::U8 {
            return Some(Self::Full(Tensor::from_data(data, device)));
        }
        let scales = state.remove(&format!("{name}.scales"))?;
        Some(Self::Quantized(Quantized::from_parts(
            &data, scales, map, device,
        )))
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
