use std::collections::BTreeSet;

use burn::module::{LoraAdapter, Module, ModuleMapper, Param, Reparameterizer};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::ModulePath;

use crate::{Adapters, Error};

/// Which layers are adapted and how strongly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r of the update.
    pub rank: usize,
    /// α; the update is multiplied by α/r.
    pub alpha: f64,
    /// Names of the adapted modules, or the ends of their paths after a dot (`to_q`, `attn1.to_q`).
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// A configuration.
    pub fn new<S: Into<String>>(
        rank: usize,
        alpha: f64,
        target_modules: impl IntoIterator<Item = S>,
    ) -> Self {
        let target_modules = target_modules.into_iter().map(Into::into).collect();
        Self {
            rank,
            alpha,
            target_modules,
        }
    }

    fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| {
            module
                .strip_suffix(target.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }
}

/// Freezes a module and attaches untrained adapters to it, initialised as PEFT does: A uniform within
/// `1/√inputs`, B zero, so that nothing changes yet. The same seed gives the same adapters.
///
/// # Panics
///
/// If the rank is zero.
pub fn attach<M: Module>(module: M, config: &LoraConfig, seed: u64) -> M {
    assert!(config.rank > 0, "an adapter has a rank of at least 1");
    let rng = ChaCha8Rng::seed_from_u64(seed);
    module.apply_reparameterization(Attach { config, rng })
}

struct Attach<'a> {
    config: &'a LoraConfig,
    rng: ChaCha8Rng,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let param = param.set_require_grad(false);
        let path = checkpoint_path(path);
        let adapted = path
            .strip_suffix(".weight")
            .is_some_and(|module| self.config.targets(module));
        if D != 2 || !adapted {
            return (param, None);
        }
        let shape = param.lazy_shape().to_vec();
        let (outputs, inputs, rank) = (shape[0], shape[1], self.config.rank);
        let bound = 1.0 / (inputs as f32).sqrt();
        let down = (0..rank * inputs)
            .map(|_| self.rng.random_range(-bound..bound))
            .collect::<Vec<f32>>();
        let down = TensorData::new(down, [rank, inputs]);
        let up = TensorData::zeros::<f32, _>([outputs, rank]);
        let scale = self.config.alpha / rank as f64;
        let adapter = adapter(up, down, scale, &param.lazy_device());
        (param, Some(adapter))
    }
}

fn adapter(up: TensorData, down: TensorData, scale: f64, device: &Device) -> LoraAdapter {
    let factor = |data: TensorData| {
        let tensor = Tensor::<2>::from_data(data, device);
        Param::from_tensor(tensor)
    };
    LoraAdapter {
        a: factor(up),
        b: factor(down),
        scale,
    }
}

/// Freezes a module and attaches adapters that were trained before, to go on training or to be used
/// without folding them in.
///
/// # Errors
///
/// If an adapter finds no linear layer of its name and size.
pub fn insert<M: Module>(module: M, adapters: &Adapters) -> Result<M, Error> {
    check(&module, adapters)?;
    Ok(module.apply_reparameterization(Insert { adapters }))
}

struct Insert<'a> {
    adapters: &'a Adapters,
}

impl Reparameterizer for Insert<'_> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let param = param.set_require_grad(false);
        let path = checkpoint_path(path);
        let found = path
            .strip_suffix(".weight")
            .and_then(|module| self.adapters.get(module));
        let attached = found.map(|found| {
            adapter(
                found.up.clone(),
                found.down.clone(),
                found.scale(),
                &param.lazy_device(),
            )
        });
        (param, attached)
    }
}

/// Folds adapters into the weights of a module, times `strength`; with −1 it folds them out again.
///
/// # Errors
///
/// If an adapter finds no linear layer of its name and size.
pub fn fuse<M: Module>(module: M, adapters: &Adapters, strength: f64) -> Result<M, Error> {
    check(&module, adapters)?;
    Ok(module.map(&mut Fuse {
        path: ModulePath::default(),
        adapters,
        strength,
    }))
}

struct Fuse<'a> {
    path: ModulePath,
    adapters: &'a Adapters,
    strength: f64,
}

impl ModuleMapper for Fuse<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(found) = name
            .strip_suffix(".weight")
            .and_then(|module| self.adapters.get(module))
        else {
            return param;
        };
        let scale = found.scale() * self.strength;
        param.map(|weight| {
            let (device, requires_grad) = (weight.device(), weight.is_require_grad());
            let factor = |data: &TensorData| Tensor::<2>::from_data(data.clone(), &device);
            let update = factor(&found.up).matmul(factor(&found.down)) * scale;
            let update = update.cast(weight.dtype()).reshape(weight.dims());
            (weight + update)
                .detach()
                .set_require_grad_if(requires_grad)
        })
    }
}

/// Folds the attached adapters of a module into its weights and takes them off.
pub fn materialize<M: Module>(module: M) -> M {
    module.materialize()
}

fn check<M: Module>(module: &M, adapters: &Adapters) -> Result<(), Error> {
    let layers = Adapters::linear_layers(module);
    let fits = |name: &String| {
        let adapter = adapters.get(name)?;
        Some(layers.get(name)? == &[adapter.up.shape()[0], adapter.down.shape()[1]])
    };
    let names: BTreeSet<_> = adapters.names().map(str::to_owned).collect();
    let unmatched: Vec<_> = names
        .into_iter()
        .filter(|name| fits(name) != Some(true))
        .collect();
    if unmatched.is_empty() {
        Ok(())
    } else {
        Err(Error::Unmatched(unmatched))
    }
}

/// burn's path without the variants of enums, which are the only segments with a capital.
fn checkpoint_path(path: &str) -> String {
    let is_field = |segment: &&str| !segment.starts_with(char::is_uppercase);
    path.split('.')
        .filter(is_field)
        .collect::<Vec<_>>()
        .join(".")
}

trait SetRequireGrad {
    fn set_require_grad_if(self, requires_grad: bool) -> Self;
}

impl<const D: usize> SetRequireGrad for Tensor<D> {
    fn set_require_grad_if(self, requires_grad: bool) -> Self {
        if requires_grad {
            self.require_grad()
        } else {
            self
        }
    }
}
