use burn::module::{LoraAdapter, Module, Param, Reparameterizer};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{NamedMapper, NamedVisitor, map_named, visit_named};
use swiftbrush_kernels::{is_int8, to_conv_layout};

use crate::{Adapter, Adapters, Error};

/// The layers to adapt, and the rank and strength of their updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r of the update.
    pub rank: usize,
    /// α; the update is multiplied by α/r.
    pub alpha: f64,
    /// Names of the adapted modules, or suffixes of their paths after a dot (`to_q`, `attn1.to_q`).
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Configures adapters of rank `rank` and scale `alpha/rank` for modules with these names.
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

/// Freezes a module and attaches untrained adapters to its linear layers, initialised as in PEFT: A is uniform within
/// `±1/√inputs` and B is zero, so that nothing changes yet. The same seed gives the same adapters.
///
/// # Errors
///
/// If none of the names matches a linear layer. As in PEFT, it is enough if one of them does.
///
/// # Panics
///
/// If the rank is zero.
#[track_caller]
pub fn attach<M: Module>(module: M, config: &LoraConfig, seed: u64) -> Result<M, Error> {
    assert!(config.rank > 0, "an adapter has a rank of at least 1");
    let mut targets = Targets { config, count: 0 };
    visit_named(&module, &mut targets);
    if targets.count == 0 {
        return Err(Error::NoTargets(config.target_modules.clone()));
    }
    let rng = ChaCha8Rng::seed_from_u64(seed);
    Ok(module.apply_reparameterization(Attach { config, rng }))
}

/// Counts the linear layers that a configuration targets.
struct Targets<'a> {
    config: &'a LoraConfig,
    count: usize,
}

impl NamedVisitor for Targets<'_> {
    fn float<const D: usize>(&mut self, name: &str, _param: &Param<Tensor<D>>) {
        let is_target = module_of(name).is_some_and(|module| self.config.targets(module));
        self.count += usize::from(D == 2 && is_target);
    }
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
        let adapted = module_of(&path).is_some_and(|module| self.config.targets(module));
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
        let tensor = Tensor::<2>::from_data(data, (device, DType::F32));
        Param::from_tensor(tensor)
    };
    LoraAdapter {
        a: factor(up),
        b: factor(down),
        scale,
    }
}

/// Freezes a module and attaches trained adapters, to continue training or to use them without fusing. Adapters of
/// convolutions can only be [fused](fuse).
///
/// # Errors
///
/// If an adapter has no linear layer of its name and size; the error lists all of them.
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
        let found = module_of(&path).and_then(|module| self.adapters.get(module));
        let attached = found.map(|found| {
            let [up, down] = matrices(found);
            adapter(up, down, found.scale(), &param.lazy_device())
        });
        match D {
            2 => (param, attached),
            // Convolutions have no low-rank path; a 1×1 adapter is fused.
            _ => (fused(param, found, 1.0), None),
        }
    }
}

/// Adds adapters, scaled by `strength`, to the weights of linear layers and convolutions. A strength of −1 removes them
/// again, up to rounding. Sums are computed in f32. Weights that are not adapted are shared with the given module, so
/// keeping a clone of it is a cheap way to undo the change.
///
/// # Errors
///
/// If the strength is not finite, an adapter has no layer of its name and size, or the weight of one is in int8; the error lists
/// all of them.
pub fn fuse<M: Module>(module: M, adapters: &Adapters, strength: f64) -> Result<M, Error> {
    if !strength.is_finite() {
        return Err(Error::Strength(strength));
    }
    check(&module, adapters)?;
    check_types(&module, adapters)?;
    Ok(map_named(module, &mut Fuse { adapters, strength }))
}

struct Fuse<'a> {
    adapters: &'a Adapters,
    strength: f64,
}

impl NamedMapper for Fuse<'_> {
    fn float<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let found = module_of(name).and_then(|module| self.adapters.get(module));
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
        let fused = (weight.cast(FloatDType::F32) + update).cast(dtype).detach();
        match fused.is_autodiff() {
            true => fused.set_require_grad_if(requires_grad),
            // The layout in which loading leaves the weights of convolutions.
            false => to_conv_layout(fused),
        }
    })
}

/// Both factors as matrices. The inputs of a convolution include its kernel.
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

/// Fuses the attached adapters of a module into its weights and detaches them.
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
                "{name} (its update is {:?}, the layer {layer:?})",
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

/// Rejects adapters of weights in int8.
fn check_types<M: Module>(module: &M, adapters: &Adapters) -> Result<(), Error> {
    struct Int8<'a>(&'a Adapters, Vec<String>);
    impl NamedVisitor for Int8<'_> {
        fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            let module = module_of(name).filter(|module| self.0.get(module).is_some());
            if let Some(module) = module
                && param.is_initialized()
                && is_int8(&param.base())
            {
                self.1.push(module.to_owned());
            }
        }
    }
    let mut found = Int8(adapters, Vec::new());
    visit_named(module, &mut found);
    match found.1.is_empty() {
        true => Ok(()),
        false => Err(Error::Int8(found.1)),
    }
}

/// The path of the module that a weight belongs to; empty for a single layer.
fn module_of(name: &str) -> Option<&str> {
    let module = name.strip_suffix("weight")?;
    match module.is_empty() {
        true => Some(module),
        false => module.strip_suffix('.'),
    }
}

/// burn's path without enum variants, the only segments that begin with a capital.
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
