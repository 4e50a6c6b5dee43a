use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_kernels::as_convolutions_read;

use crate::convert::converted;
use crate::error::{Error, Mismatch};
use crate::weights::Weights;
use crate::write::{LazyTensor, write_tensors};

/// Where a visitor or mapper is in a module, as checkpoints name it: fields and indices joined by
/// dots, without the variants of enums.
#[derive(Clone, Debug, Default)]
pub struct ModulePath(Vec<String>);

impl ModulePath {
    /// To be called from `enter_module`, with its arguments.
    pub fn enter(&mut self, name: &str, container: &str) {
        if !is_variant(container) {
            self.0.push(name.to_owned());
        }
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container: &str) {
        if !is_variant(container) {
            self.0.pop();
        }
    }

    /// The name, `down_blocks.0.resnets.1.conv1.weight`.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}

/// Loads the parameters of a module by name, each into its own place, strictly.
///
/// The tensors take the element type `dtype`; with `None` that of the file. Tensors of integers are
/// not weights (older files hold tables of positions) and pass unread.
///
/// # Errors
///
/// If the file cannot be read, or lacks a parameter, holds one too many, of another shape, or with a
/// NaN or an infinity: one error lists all of them.
pub fn load<M: Module>(module: M, weights: &Weights, dtype: Option<DType>) -> Result<M, Error> {
    let is_weight = |name: &&str| weights.dtype(name).is_some_and(|dtype| dtype.is_float());
    let names = weights
        .names()
        .filter(is_weight)
        .map(str::to_owned)
        .collect();
    let convert = |name: &str, data: TensorData| match dtype {
        Some(dtype) if dtype != data.dtype() => {
            let data = converted(data, dtype);
            weights.release(name);
            data
        }
        _ => data,
    };
    fill(
        module,
        weights.path(),
        names,
        |name| weights.read(name),
        convert,
    )
}

/// The module with all its parameters replaced by the tensors of those names.
///
/// # Errors
///
/// [`Error::Mismatch`] as [`load`], with `source` as its path.
pub fn with_tensors<M: Module>(
    module: M,
    tensors: &BTreeMap<String, TensorData>,
    source: &Path,
) -> Result<M, Error> {
    let names = tensors.keys().cloned().collect();
    let read = |name: &str| Ok(tensors[name].clone());
    fill(module, source, names, read, |_, data| data)
}

fn fill<M: Module>(
    module: M,
    path: &Path,
    unused: BTreeSet<String>,
    read: impl Fn(&str) -> Result<TensorData, Error>,
    convert: impl Fn(&str, TensorData) -> TensorData,
) -> Result<M, Error> {
    let mut filler = Filler {
        path: ModulePath::default(),
        unused,
        read,
        convert,
        mismatch: Mismatch::default(),
        error: None,
    };
    let module = module.map(&mut filler);
    if let Some(error) = filler.error {
        return Err(error);
    }
    let mut mismatch = filler.mismatch;
    mismatch.unused = filler.unused.into_iter().collect();
    if mismatch.is_empty() {
        Ok(module)
    } else {
        Err(Error::Mismatch {
            path: path.to_owned(),
            mismatch: Box::new(mismatch),
        })
    }
}

struct Filler<R, C> {
    path: ModulePath,
    unused: BTreeSet<String>,
    read: R,
    /// Applied to what fits.
    convert: C,
    mismatch: Mismatch,
    error: Option<Error>,
}

impl<R, C> ModuleMapper for Filler<R, C>
where
    R: Fn(&str) -> Result<TensorData, Error>,
    C: Fn(&str, TensorData) -> TensorData,
{
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = self.path.name();
        if !self.unused.remove(&name) {
            self.mismatch.missing.push(name);
            return param;
        }
        let data = match (self.read)(&name) {
            Ok(data) => data,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let expected = param.lazy_shape().to_vec();
        // burn has no tensors without axes; a lone number is a vector of one.
        let data = if data.shape().is_empty() && expected == [1] {
            as_vector(data)
        } else {
            data
        };
        let found = data.shape().to_vec();
        if expected != found {
            self.mismatch.misshapen.push((name, expected, found));
            return param;
        }
        if !data.dtype().is_float() || !is_finite(&data) {
            self.mismatch.not_finite.push(name);
            return param;
        }
        let data = (self.convert)(&name, data);
        let (id, dtype) = (param.id, data.dtype());
        let tensor = Tensor::from_data(data, (&param.lazy_device(), dtype));
        param.transform_for_load(as_convolutions_read(tensor), id)
    }
}

fn as_vector(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, [shape.num_elements()], dtype)
}

/// Whether there is neither a NaN nor an infinity, which both have all bits of their exponent set: the larger a number
/// without its sign, the larger its bits.
fn is_finite(data: &TensorData) -> bool {
    match data.dtype() {
        DType::F32 => all_below(
            data.as_bytes(),
            |bytes| u32::from_le_bytes(bytes) << 1,
            0xff << 24,
        ),
        DType::F16 => all_below(
            data.as_bytes(),
            |bytes| u16::from_le_bytes(bytes) << 1,
            0x1f << 11,
        ),
        DType::BF16 => all_below(
            data.as_bytes(),
            |bytes| u16::from_le_bytes(bytes) << 1,
            0xff << 8,
        ),
        _ => data.iter::<f64>().all(f64::is_finite),
    }
}

/// Whether all numbers are below a bound, by half of the bytes on each of two threads: weights are gigabytes.
fn all_below<const N: usize, T: Ord + Copy + Default + Send + Sync>(
    bytes: &[u8],
    number: impl Fn([u8; N]) -> T + Sync,
    bound: T,
) -> bool {
    const BLOCK: usize = 1 << 14;
    let (numbers, _) = bytes.as_chunks::<N>();
    let below = |numbers: &[[u8; N]]| {
        // A block is looked at whole, which the processor does many numbers at a time.
        numbers.chunks(BLOCK).all(|block| {
            let largest = block
                .iter()
                .fold(T::default(), |max, bytes| max.max(number(*bytes)));
            largest < bound
        })
    };
    let (left, right) = numbers.split_at(numbers.len() / 2);
    if left.len() < BLOCK {
        return below(numbers);
    }
    std::thread::scope(|scope| {
        let left = scope.spawn(|| below(left));
        below(right) && left.join().unwrap_or_default()
    })
}

/// The parameters of a module by name, as they are stored (an adapter and the weight under it are
/// separate tensors).
pub fn named_tensors<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    let mut collector = Collector {
        path: ModulePath::default(),
        tensors: BTreeMap::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

struct Collector {
    path: ModulePath,
    tensors: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.insert(self.path.name(), read(param.base()));
    }
}

/// The numbers of a tensor as they are now.
///
/// [`Tensor::into_data`] of burn's GPU backends leaves them on the device until somebody looks at them
/// (burn-cubecl 0.22.1); if the tensor is updated in place before that, its new numbers are found.
///
/// # Shapes
///
/// - returns: shape and element type of the tensor
///
/// # Panics
///
/// If the device fails.
pub fn read<const D: usize>(tensor: Tensor<D>) -> TensorData {
    let data = tensor.into_data();
    data.as_bytes();
    data
}

/// Number of elements in all parameters, without initialising any of them.
pub fn n_parameters<M: Module>(module: &M) -> usize {
    struct Counter(usize);
    impl ModuleVisitor for Counter {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += param.lazy_shape().num_elements();
        }
    }
    let mut counter = Counter(0);
    module.visit(&mut counter);
    counter.0
}

/// Writes the parameters of a module to a safetensors file in the element type `dtype`, atomically.
///
/// # Errors
///
/// If the file cannot be written.
pub fn save<M: Module>(
    module: &M,
    path: &Path,
    dtype: DType,
    metadata: HashMap<String, String>,
) -> Result<(), Error> {
    let tensors = named_tensors(module)
        .into_iter()
        .map(|(name, data)| LazyTensor::ready(name, data.convert_dtype(dtype)))
        .collect();
    write_tensors(path, tensors, metadata)
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;

    use super::*;

    #[test]
    fn what_was_read_outlives_an_update_in_place() {
        let tensor = Tensor::<1>::from_data([1.0f32, 2.0], &device());
        let before = read(tensor.clone());
        let after = read(tensor * 10.0);
        assert_eq!(before, TensorData::from([1.0f32, 2.0]));
        assert_eq!(after, TensorData::from([10.0f32, 20.0]));
    }
}
