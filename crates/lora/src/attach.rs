use burn::module::{LoraAdapter, Module, ModuleMapper, Param, Reparameterizer};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::ModulePath;

use crate::{Adapter, Adapters, Error};

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
/// without folding them in. Adapters of convolutions can only be [folded in](fuse).
///
/// # Errors
///
/// If an adapter finds no linear layer of its name and size; all that do not are in the error.
pub fn insert<M: Module>(module: M, adapters: &Adapters) -> Result<M, Error> {
    check(&module, adapters)?;
    let convolutions: Vec<_> = adapters
        .iter()
        .filter(|(_, adapter)| adapter.down.shape()[2..].iter().any(|&side| side > 1))
        .map(|(module, _)| module.to_owned())
        .collect();
    if !convolutions.is_empty() {
        return Err(Error::Convolutions(convolutions));
    }
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
            let [up, down] = matrices(found);
            adapter(up, down, found.scale(), &param.lazy_device())
        });
        match D {
            2 => (param, attached),
            // A convolution of 1×1, which layers give no low-rank path.
            _ => (fused(param, found, 1.0), None),
        }
    }
}

/// Folds adapters into the weights of linear layers and convolutions of a module, times `strength`; with −1 it folds
/// them out again, but for rounding. The sum is taken in f32. What is not adapted is shared with the module given,
/// of which a clone is a cheap way back.
///
/// # Errors
///
/// If an adapter finds no layer of its name and size; all that do not are in the error.
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
        let found = name
            .strip_suffix(".weight")
            .and_then(|module| self.adapters.get(module));
        fused(param, found, self.strength)
    }
}

fn fused<const D: usize>(
    param: Param<Tensor<D>>,
    adapter: Option<&Adapter>,
    strength: f64,
) -> Param<Tensor<D>> {
    let Some(adapter) = adapter else {
        return param;
    };
    let scale = adapter.scale() * strength;
    param.map(|weight| {
        let (device, requires_grad) = (weight.device(), weight.is_require_grad());
        let dtype = FloatDType::from(weight.dtype());
        let [up, down] =
            matrices(adapter).map(|data| Tensor::<2>::from_data(data, (&device, DType::F32)));
        let update = (up.matmul(down) * scale).reshape(weight.dims());
        (weight.cast(FloatDType::F32) + update)
            .cast(dtype)
            .detach()
            .set_require_grad_if(requires_grad)
    })
}

/// Both factors as matrices: a convolution's kernel is part of what one output looks at.
fn matrices(adapter: &Adapter) -> [TensorData; 2] {
    let ([outputs, inputs], rank) = (adapter.sides(), adapter.rank());
    [
        (&adapter.up, [outputs, rank]),
        (&adapter.down, [rank, inputs]),
    ]
    .map(|(data, shape)| {
        let (bytes, _, dtype) = data.clone().into_parts();
        TensorData::from_bytes(bytes, shape, dtype)
    })
}

/// Folds the attached adapters of a module into its weights and takes them off.
pub fn materialize<M: Module>(module: M) -> M {
    module.materialize()
}

fn check<M: Module>(module: &M, adapters: &Adapters) -> Result<(), Error> {
    let layers = Adapters::layers(module);
    let unmatched: Vec<_> = adapters
        .iter()
        .filter_map(|(name, adapter)| match layers.get(name) {
            None => Some(name.to_owned()),
            Some(layer) if *layer == adapter.sides() => None,
            Some(layer) => Some(format!(
                "{name} ({:?}, the layer is {layer:?})",
                adapter.sides()
            )),
        })
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
