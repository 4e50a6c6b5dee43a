use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_checkpoint::{ModulePath, named_tensors};

/// The two factors of one layer's update, on the host in f32.
///
/// For a convolution the second factor has the kernel's two axes more, and the first may have two of size 1.
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

    /// Outputs, and everything that one output looks at: the sides of the update as a matrix.
    pub(crate) fn sides(&self) -> [usize; 2] {
        let down = self.down.shape().to_vec();
        [self.up.shape()[0], down[1..].iter().product()]
    }

    /// Whether the factors are a pair; otherwise what they are.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (down, up) = (self.down.shape().to_vec(), self.up.shape().to_vec());
        let ones = |shape: &[usize]| shape.iter().all(|&size| size == 1);
        let fits = match (down.as_slice(), up.as_slice()) {
            ([rank, _] | [rank, _, _, _], [_, again, rest @ ..]) => {
                *rank > 0 && rank == again && ones(rest)
            }
            _ => false,
        };
        let numbers = |data: &TensorData| data.iter::<f32>().all(f32::is_finite);
        if !fits {
            Err(format!("{down:?} and {up:?}"))
        } else if !(self.alpha.is_finite() && numbers(&self.down) && numbers(&self.up)) {
            Err("a NaN or an infinity".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Where burn keeps the factors of an adapter, after the path of the module.
const UP: &str = ".weight.lora.a";
const DOWN: &str = ".weight.lora.b";

/// The adapters of a model, by the paths of the modules that they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters(BTreeMap<String, Adapter>);

impl FromIterator<(String, Adapter)> for Adapters {
    fn from_iter<I: IntoIterator<Item = (String, Adapter)>>(adapters: I) -> Self {
        Self(adapters.into_iter().collect())
    }
}

impl Adapters {
    /// The adapters that are attached to a module, with the α that they were attached with.
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
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

    /// The sides of the weight of every linear layer and convolution of a module, as a matrix, by its path.
    pub(crate) fn layers<M: Module>(module: &M) -> BTreeMap<String, [usize; 2]> {
        struct Layers(ModulePath, BTreeMap<String, [usize; 2]>);
        impl ModuleVisitor for Layers {
            fn enter_module(&mut self, name: &str, container: &str) {
                self.0.enter(name, container);
            }
            fn exit_module(&mut self, _name: &str, container: &str) {
                self.0.exit(container);
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let (shape, name) = (param.lazy_shape().to_vec(), self.0.name());
                if let (2 | 4, Some(module)) = (shape.len(), name.strip_suffix(".weight")) {
                    let sides = [shape[0], shape[1..].iter().product()];
                    self.1.insert(module.to_owned(), sides);
                }
            }
        }
        let mut layers = Layers(ModulePath::default(), BTreeMap::new());
        module.visit(&mut layers);
        layers.1
    }
}
