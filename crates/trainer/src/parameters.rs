//! Views of a module's parameters by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_checkpoint::{ModulePath, abridged, read};

use crate::Error;

/// A parameter whose values are read from the device on demand.
#[derive(Clone)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    pub(crate) is_trained: bool,
    pub(crate) read: ReadTensor,
}

/// Reads a tensor to the host.
pub(crate) type ReadTensor = Arc<dyn Fn() -> TensorData + Send + Sync>;

/// All parameters of a module in field order; adapters are separate parameters.
pub(crate) fn parameters<M: Module>(module: &M) -> Vec<Parameter> {
    let mut collector = Collector(ModulePath::default(), Vec::new());
    module.visit(&mut collector);
    collector.1
}

struct Collector(ModulePath, Vec<Parameter>);

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.0.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.base();
        self.1.push(Parameter {
            name: self.0.name(),
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype(),
            device: tensor.device(),
            is_trained: is_trained(&tensor),
            read: Arc::new(move || read(tensor.clone())),
        });
    }
}

/// Returns whether training changes a parameter. Without autodiff, nothing is frozen.
pub(crate) fn is_trained<const D: usize>(tensor: &Tensor<D>) -> bool {
    !tensor.is_autodiff() || tensor.is_require_grad()
}

/// Replaces the trained parameters of a module with `tensors`; frozen ones stay shared.
///
/// # Errors
///
/// If the names or shapes differ; `source` is the file named in the error.
pub(crate) fn with_trained<M: Module>(
    module: M,
    tensors: BTreeMap<String, TensorData>,
    source: &Path,
) -> Result<M, Error> {
    let mut restore = Restore {
        path: ModulePath::default(),
        tensors,
        problems: Vec::new(),
    };
    let module = module.map(&mut restore);
    let mut problems = restore.problems;
    problems.extend(restore.tensors.keys().map(|name| format!("unused {name}")));
    if problems.is_empty() {
        return Ok(module);
    }
    Err(Error::Snapshot {
        path: source.to_owned(),
        reason: format!(
            "its tensors belong to other networks: {}",
            abridged(&problems)
        ),
    })
}

/// Replaces some parameters of a module with other values of the same shape and dtype.
pub(crate) fn with_some<M: Module>(module: M, values: BTreeMap<String, Vec<f32>>) -> M {
    module.map(&mut Replace {
        path: ModulePath::default(),
        values,
    })
}

struct Replace {
    path: ModulePath,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleMapper for Replace {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.values.remove(&self.path.name()) {
            Some(values) => {
                let data = TensorData::new(values, param.lazy_shape());
                let dtype = param.base().dtype();
                replaced(param, data.convert_dtype(dtype))
            }
            None => param,
        }
    }
}

struct Restore {
    path: ModulePath,
    tensors: BTreeMap<String, TensorData>,
    problems: Vec<String>,
}

impl ModuleMapper for Restore {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !is_trained(&param.base()) {
            return param;
        }
        let name = self.path.name();
        let (expected, found) = (param.lazy_shape().to_vec(), self.tensors.remove(&name));
        match found {
            None => self.problems.push(format!("missing {name}")),
            Some(data) if data.shape().to_vec() != expected => {
                let found = data.shape().to_vec();
                let problem = format!("{name} of shape {found:?}, expected {expected:?}");
                self.problems.push(problem);
            }
            Some(data) => return replaced(param, data),
        }
        param
    }
}

fn replaced<const D: usize>(param: Param<Tensor<D>>, data: TensorData) -> Param<Tensor<D>> {
    let (id, weight, mapper) = param.consume();
    let (device, dtype) = (weight.device().inner(), data.dtype());
    let tensor = Tensor::from_data(data, (&device, dtype));
    let tensor = match weight.is_autodiff() {
        true => tensor.autodiff().require_grad(),
        false => tensor,
    };
    Param::from_mapped_value(id, tensor, mapper)
}
