//! Exponential moving average of weights.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use swiftbrush_checkpoint::{ModulePath, read};
use swiftbrush_kernels::lerp;

use crate::parameters::is_trained;

/// A running average of the trained parameters of a module, in f32. Frozen parameters are not stored.
///
/// The n-th update has the decay `min(n / (9 + n), decay)` and the first has none, as in diffusers'
/// `EMAModel`.
#[derive(Clone, Debug)]
pub struct Ema {
    decay: f64,
    n_updates: u64,
    averages: BTreeMap<String, Tensor<1>>,
}

impl Ema {
    /// Creates an average that starts at the current weights of a module.
    pub fn new<M: Module>(module: &M, decay: f64) -> Self {
        Self {
            decay,
            n_updates: 0,
            averages: trained_tensors(module),
        }
    }

    /// Moves the average towards the current weights of the module.
    pub fn update<M: Module>(&mut self, module: &M) {
        self.n_updates += 1;
        let decay = match self.n_updates {
            1 => 0.0,
            n => (n as f64 / (9.0 + n as f64)).min(self.decay),
        };
        for (name, weight) in trained_tensors(module) {
            let average = match self.averages.remove(&name) {
                Some(average) => lerp(average, weight, 1.0 - decay),
                None => weight,
            };
            self.averages.insert(name, average);
        }
    }

    /// Replaces the weights of a module with their averages.
    pub fn apply<M: Module>(&self, module: M) -> M {
        module.map(&mut Replace {
            path: ModulePath::default(),
            averages: &self.averages,
        })
    }

    /// Number of updates.
    pub fn n_updates(&self) -> u64 {
        self.n_updates
    }

    /// The averages as tensors on the host.
    pub fn state(&self) -> BTreeMap<String, TensorData> {
        self.handles()
            .map(|(name, average)| (name, read(average.clone())))
            .collect()
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = (String, &Tensor<1>)> {
        self.averages
            .iter()
            .map(|(name, average)| (name.clone(), average))
    }

    /// Restores an average from its [`state`](Self::state) and [`n_updates`](Self::n_updates).
    pub fn restore(
        decay: f64,
        n_updates: u64,
        state: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Self {
        let averages = state.into_iter();
        let averages = averages
            .map(|(name, data)| (name, Tensor::from_data(data, device)))
            .collect();
        Self {
            decay,
            n_updates,
            averages,
        }
    }
}

fn trained_tensors<M: Module>(module: &M) -> BTreeMap<String, Tensor<1>> {
    struct Collect(ModulePath, BTreeMap<String, Tensor<1>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.base();
            if is_trained(&tensor) {
                let flat = tensor.inner().cast(FloatDType::F32).reshape([-1]);
                self.1.insert(self.0.name(), flat);
            }
        }
    }
    let mut collect = Collect(ModulePath::default(), BTreeMap::new());
    module.visit(&mut collect);
    collect.1
}

struct Replace<'a> {
    path: ModulePath,
    averages: &'a BTreeMap<String, Tensor<1>>,
}

impl ModuleMapper for Replace<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(average) = self.averages.get(&self.path.name()) else {
            return param;
        };
        param.map(|tensor| {
            let average = average.clone().reshape(tensor.dims()).cast(tensor.dtype());
            let (is_autodiff, requires_grad) = (tensor.is_autodiff(), tensor.is_require_grad());
            match (is_autodiff, requires_grad) {
                (true, true) => average.autodiff().require_grad(),
                (true, false) => average.autodiff(),
                (false, _) => average,
            }
        })
    }
}
