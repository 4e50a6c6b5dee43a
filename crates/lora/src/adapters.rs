use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_checkpoint::{NamedVisitor, is_finite, named_tensors, visit_named};

/// The two factors of a layer's update, on the host, in the floating-point type of their file.
///
/// For a convolution, the second factor also has the two axes of the kernel, and the first may have two of size 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// B, `[outputs, rank]`.
    pub up: TensorData,
    /// A, `[rank, inputs]` or `[rank, inputs, kernel, kernel]`.
    pub down: TensorData,
    /// α; the update is multiplied by α/rank.
    pub alpha: f64,
}

impl Adapter {
    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }

    /// α/rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// The shape of the update as a matrix: outputs × inputs, which include the kernel of a convolution.
    pub(crate) fn sides(&self) -> [usize; 2] {
        let down = self.down.shape().to_vec();
        [self.up.shape()[0], down[1..].iter().product()]
    }

    /// Checks that the factors match and are finite; otherwise returns the reason.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (down, up) = (self.down.shape().to_vec(), self.up.shape().to_vec());
        let ones = |shape: &[usize]| shape.iter().all(|&size| size == 1);
        let fits = match (down.as_slice(), up.as_slice()) {
            ([rank, _] | [rank, _, _, _], [_, again, rest @ ..]) => {
                *rank > 0 && rank == again && ones(rest)
            }
            _ => false,
        };
        if !fits {
            Err(format!("{down:?} and {up:?}"))
        } else if !(self.alpha.is_finite() && is_finite(&self.down) && is_finite(&self.up)) {
            Err("a NaN or an infinity".to_owned())
        } else {
            Ok(())
        }
    }
}

/// burn's names for the factors of an adapter, after the path of the module.
const UP: &str = ".weight.lora.a";
const DOWN: &str = ".weight.lora.b";

/// The adapters of a network, by the paths of the adapted modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters(BTreeMap<String, Adapter>);

impl FromIterator<(String, Adapter)> for Adapters {
    fn from_iter<I: IntoIterator<Item = (String, Adapter)>>(adapters: I) -> Self {
        Self(adapters.into_iter().collect())
    }
}

impl Adapters {
    /// The adapters attached to a module, in f32, with the α they were attached with.
    pub fn from_module<M: Module>(module: &M, alpha: f64) -> Self {
        let mut factors = named_tensors(module);
        let ups: Vec<_> = factors
            .keys()
            .filter_map(|name| name.strip_suffix(UP))
            .map(str::to_owned)
            .collect();
        let adapters = ups.into_iter().filter_map(|module| {
            let mut take = |suffix| {
                Some(
                    factors
                        .remove(&format!("{module}{suffix}"))?
                        .convert_dtype(DType::F32),
                )
            };
            let (up, down) = (take(UP)?, take(DOWN)?);
            Some((module, Adapter { up, down, alpha }))
        });
        adapters.collect()
    }

    /// Returns whether there are no adapters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of adapters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The adapter of a module.
    pub fn get(&self, module: &str) -> Option<&Adapter> {
        self.0.get(module)
    }

    /// The paths of the adapted modules, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Adapters and the paths of their modules, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Adapter)> {
        self.0
            .iter()
            .map(|(module, adapter)| (module.as_str(), adapter))
    }

    /// The weight shape, as a matrix, of every linear layer and convolution of a module, by path.
    pub(crate) fn layers<M: Module>(module: &M) -> BTreeMap<String, [usize; 2]> {
        struct Layers(BTreeMap<String, [usize; 2]>);
        impl NamedVisitor for Layers {
            fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let shape = param.lazy_shape().to_vec();
                if let (2 | 4, Some(module)) = (D, name.strip_suffix(".weight")) {
                    let sides = [shape[0], shape[1..].iter().product()];
                    self.0.insert(module.to_owned(), sides);
                }
            }
        }
        let mut layers = Layers(BTreeMap::new());
        visit_named(module, &mut layers);
        layers.0
    }
}
