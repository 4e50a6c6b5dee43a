use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_kernels::{Int8Weight, is_int8, to_conv_layout};

use crate::convert::converted;
use crate::error::{Error, Mismatch};
use crate::finite::is_finite;
use crate::int8::is_int8_file;
use crate::named::{NamedMapper, NamedVisitor, map_named, visit_named};
use crate::weights::Weights;
use crate::write::{LazyTensor, write_tensors};

/// Loads the parameters of a module by name, strictly.
///
/// Parameters are converted to the element type `dtype`, or keep that of the file if it is `None`. Two kinds of tensors
/// are ignored by name, whatever their type, because no result depends on them: buffers that a module computes itself
/// (`position_ids`, `num_batches_tracked`), and transformer layers beyond those of the module, which transformers also
/// ignores if a configuration has fewer layers.
///
/// # Errors
///
/// If the file cannot be read, lacks a parameter, or has other tensors, tensors of the wrong shape, tensors that are not
/// floating point, or tensors with a NaN, an infinity or a value beyond the range of `dtype`. One error lists all of
/// them.
///
/// # Examples
///
/// ```
/// use std::collections::HashMap;
///
/// use burn::module::{Module, Param};
/// use burn::tensor::{DType, Device, Tensor};
/// use swiftbrush_checkpoint::{Weights, load, save};
///
/// #[derive(Module, Debug)]
/// struct Scale {
///     weight: Param<Tensor<1>>,
/// }
///
/// # fn main() -> Result<(), swiftbrush_checkpoint::Error> {
/// let device = Device::default();
/// let scale = |value: f32| Scale {
///     weight: Param::from_tensor(Tensor::full([3], value, &device)),
/// };
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("scale.safetensors");
/// save(&scale(2.0), &path, DType::F16, HashMap::new())?;
/// let loaded = load(scale(0.0), &Weights::open(&path)?, Some(DType::F32))?;
/// assert_eq!(loaded.weight.val().into_data(), scale(2.0).weight.val().into_data());
/// # Ok(())
/// # }
/// ```
pub fn load<M: Module>(module: M, weights: &Weights, dtype: Option<DType>) -> Result<M, Error> {
    if let Some(dtype) = dtype {
        check_float(dtype, "load", weights.path())?;
    }
    if is_int8_file(weights)? {
        return Err(Error::Quantized {
            path: weights.path().to_owned(),
            reason: "the weights are in int8, but this network is loaded in floating point"
                .to_owned(),
        });
    }
    let names = weights.names().filter(|name| !is_buffer(name));
    let names = names.map(str::to_owned).collect();
    let convert = |_: &str, data: TensorData| match dtype {
        Some(dtype) => Ok(Values::Plain(converted(data, dtype))),
        None => Ok(Values::Plain(data)),
    };
    let read = |name: &str| weights.read(name).map(Values::Plain);
    fill(module, Origin::File(weights), names, read, convert)
}

/// Replaces all parameters of a module with the tensors of those names.
///
/// # Errors
///
/// [`Error::Mismatch`], like [`load`], with `source` as its path.
pub fn with_tensors<M: Module>(
    module: M,
    tensors: &BTreeMap<String, TensorData>,
    source: impl AsRef<Path>,
) -> Result<M, Error> {
    let source = source.as_ref();
    let names = tensors.keys().cloned().collect();
    let read = |name: &str| Ok(Values::Plain(tensors[name].clone()));
    let convert = |_: &str, data| Ok(Values::Plain(data));
    fill(module, Origin::Memory(source), names, read, convert)
}

/// Returns whether a tensor is a buffer, judging by the end of its name. Modules compute buffers themselves, and only some
/// versions of the Python libraries save them. No result depends on them.
pub fn is_buffer(name: &str) -> bool {
    const BUFFERS: [&str; 2] = ["position_ids", "num_batches_tracked"];
    BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// The list of layers that a tensor of a transformer belongs to, and its index in the list.
fn layer_of(name: &str) -> Option<(&str, usize)> {
    const LAYERS: &str = "encoder.layers.";
    const PARTS: [&str; 4] = ["self_attn.", "layer_norm1.", "layer_norm2.", "mlp."];
    let end = name.find(LAYERS)? + LAYERS.len();
    let (index, rest) = name[end..].split_once('.')?;
    // Layers of the same name in the autoencoders are not transformers.
    PARTS.iter().find(|part| rest.starts_with(**part))?;
    Some((&name[..end], index.parse().ok()?))
}

/// Drops tensors of layers beyond the module's last one.
fn without_further_layers(unused: BTreeSet<String>, module: &BTreeSet<String>) -> Vec<String> {
    let mut counts = BTreeMap::new();
    for (list, index) in module.iter().filter_map(|name| layer_of(name)) {
        let count = counts.entry(list).or_insert(0);
        *count = (index + 1).max(*count);
    }
    let is_further = |name: &String| {
        let layer = layer_of(name);
        layer.is_some_and(|(list, index)| counts.get(list).is_some_and(|count| index >= *count))
    };
    let used = unused.into_iter().filter(|name| !is_further(name));
    used.collect()
}

/// The values of a parameter, as read or converted.
pub(crate) enum Values {
    Plain(TensorData),
    Int8(Int8Weight),
}

/// Where the tensors of a module come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    File(&'a Weights),
    /// Tensors in memory, and the path to name in errors.
    Memory(&'a Path),
}

impl Origin<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::File(weights) => weights.path(),
            Self::Memory(path) => path,
        }
    }

    /// The element type in a file.
    fn dtype(&self, name: &str) -> Option<DType> {
        match self {
            Self::File(weights) => weights.dtype(name).ok(),
            Self::Memory(_) => None,
        }
    }

    fn release(&self, name: &str) {
        if let Self::File(weights) = self {
            weights.release(name);
        }
    }
}

/// Replaces all parameters of a module with the tensors named in `unused`. `convert` is applied to plain tensors that fit.
///
/// Pages of a file stay resident only for tensors whose values are used as they are.
pub(crate) fn fill<M: Module>(
    module: M,
    origin: Origin<'_>,
    unused: BTreeSet<String>,
    read: impl Fn(&str) -> Result<Values, Error>,
    convert: impl Fn(&str, TensorData) -> Result<Values, Error>,
) -> Result<M, Error> {
    let mut filler = Filler {
        origin,
        unused,
        seen: BTreeSet::new(),
        read,
        convert,
        mismatch: Mismatch::default(),
        error: None,
    };
    let module = map_named(module, &mut filler);
    if let Some(error) = filler.error {
        return Err(error);
    }
    let mut mismatch = filler.mismatch;
    mismatch.unused = without_further_layers(filler.unused, &filler.seen);
    if mismatch.is_empty() {
        Ok(module)
    } else {
        Err(Error::Mismatch {
            path: origin.path().to_owned(),
            mismatch: Box::new(mismatch),
        })
    }
}

struct Filler<'a, R, C> {
    origin: Origin<'a>,
    unused: BTreeSet<String>,
    /// Names of the module's parameters seen so far.
    seen: BTreeSet<String>,
    read: R,
    convert: C,
    mismatch: Mismatch,
    error: Option<Error>,
}

impl<R, C> NamedMapper for Filler<'_, R, C>
where
    R: Fn(&str) -> Result<Values, Error>,
    C: Fn(&str, TensorData) -> Result<Values, Error>,
{
    fn float<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        self.seen.insert(name.to_owned());
        if !self.unused.remove(name) {
            self.mismatch.missing.push(name.to_owned());
            return param;
        }
        match self.tensor(name, &param) {
            Ok(Some(tensor)) => {
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Ok(None) => param,
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

impl<R, C> Filler<'_, R, C>
where
    R: Fn(&str) -> Result<Values, Error>,
    C: Fn(&str, TensorData) -> Result<Values, Error>,
{
    /// Reads a parameter's tensor, or records a mismatch.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        param: &Param<Tensor<D>>,
    ) -> Result<Option<Tensor<D>>, Error> {
        let (expected, device) = (param.lazy_shape().to_vec(), param.lazy_device());
        let values = match (self.read)(name)? {
            Values::Plain(data) => match self.fitting(name, data, expected) {
                Some(data) => self.converted(name, data)?,
                None => return Ok(None),
            },
            Values::Int8(weight) if self.has_shape(name, weight.codes(), expected) => {
                Values::Int8(weight)
            }
            Values::Int8(_) => return Ok(None),
        };
        Ok(Some(match values {
            Values::Plain(data) => {
                let dtype = data.dtype();
                let tensor = to_conv_layout(Tensor::from_data(data, (&device, dtype)));
                if self.origin.dtype(name) != Some(dtype) {
                    self.origin.release(name);
                }
                tensor
            }
            Values::Int8(weight) => {
                let tensor = weight.to_tensor(&device);
                self.origin.release(name);
                tensor.map_err(|error| Error::Quantized {
                    path: self.origin.path().to_owned(),
                    reason: format!("{name}: {error}"),
                })?
            }
        }))
    }

    /// Returns the tensor if it fits the parameter; otherwise records the mismatch.
    fn fitting(
        &mut self,
        name: &str,
        data: TensorData,
        expected: Vec<usize>,
    ) -> Option<TensorData> {
        // burn has no tensors of rank 0, so scalars become vectors of one element.
        let data = match data.shape().is_empty() && expected == [1] {
            true => as_vector(data),
            false => data,
        };
        if !self.has_shape(name, &data, expected) {
            return None;
        }
        if !data.dtype().is_float() {
            let found = format!("{:?}", data.dtype());
            self.mismatch.not_float.push((name.to_owned(), found));
            return None;
        }
        // Checked before the conversion, because an overflow in it would hide the cause.
        if !is_finite(&data) {
            self.mismatch.not_finite.push(name.to_owned());
            return None;
        }
        Some(data)
    }

    /// Converts a tensor, and records values beyond the range of the new element type.
    fn converted(&mut self, name: &str, data: TensorData) -> Result<Values, Error> {
        let before = data.dtype();
        let values = (self.convert)(name, data)?;
        if let Values::Plain(data) = &values
            && data.dtype().size() < before.size()
            && !is_finite(data)
        {
            let beyond = format!("{:?}", data.dtype());
            self.mismatch.out_of_range.push((name.to_owned(), beyond));
        }
        Ok(values)
    }

    /// Returns whether a tensor has a shape; otherwise records the mismatch.
    fn has_shape(&mut self, name: &str, data: &TensorData, expected: Vec<usize>) -> bool {
        let found = data.shape().to_vec();
        if expected == found {
            return true;
        }
        let misshapen = (name.to_owned(), expected, found);
        self.mismatch.misshapen.push(misshapen);
        false
    }
}

fn as_vector(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, [shape.num_elements()], dtype)
}

/// The parameters of a module by name, as they are stored: an adapter and the weight it adapts are separate tensors.
pub fn named_tensors<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    struct Tensors(BTreeMap<String, TensorData>);
    impl NamedVisitor for Tensors {
        fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.insert(name.to_owned(), read(param.base()));
        }
    }
    let mut tensors = Tensors(BTreeMap::new());
    visit_named(module, &mut tensors);
    tensors.0
}

/// The current values of a tensor.
///
/// burn's GPU backends leave the result of [`Tensor::into_data`] on the device until its bytes are accessed
/// (burn-cubecl 0.22.1), so an in-place update before that changes them. This function accesses them immediately.
///
/// # Shapes
///
/// - returns: the shape and element type of the tensor
///
/// # Panics
///
/// If the device fails, or the tensor is a weight in int8, whose codes are not its values; see
/// [`Int8Weight::of_tensor`](swiftbrush_kernels::Int8Weight::of_tensor).
#[track_caller]
pub fn read<const D: usize>(tensor: Tensor<D>) -> TensorData {
    assert!(
        !is_int8(&tensor),
        "a weight in int8 is read by `Int8Weight::of_tensor`, and saved by `save_int8`"
    );
    let data = tensor.into_data();
    data.as_bytes();
    data
}

/// The total number of elements of all parameters. Does not initialise them.
pub fn n_parameters<M: Module>(module: &M) -> usize {
    struct Count(usize);
    impl NamedVisitor for Count {
        fn float<const D: usize>(&mut self, _name: &str, param: &Param<Tensor<D>>) {
            self.0 += param.lazy_shape().num_elements();
        }
    }
    let mut count = Count(0);
    visit_named(module, &mut count);
    count.0
}

/// Writes the parameters of a module to a safetensors file with element type `dtype`, atomically and one at a time, so
/// that a module on a device is never copied to the host as a whole.
///
/// # Errors
///
/// If `dtype` is not a float type, the file cannot be written, or a parameter contains a NaN or an infinity or exceeds the
/// range of `dtype`.
pub fn save<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    dtype: DType,
    metadata: HashMap<String, String>,
) -> Result<(), Error> {
    let path = path.as_ref();
    check_float(dtype, "save", path)?;
    let mut tensors = Parameters {
        path,
        dtype,
        tensors: Vec::new(),
    };
    visit_named(module, &mut tensors);
    write_tensors(path, tensors.tensors, metadata)
}

pub(crate) fn check_float(dtype: DType, action: &str, path: &Path) -> Result<(), Error> {
    match dtype.is_float() {
        true => Ok(()),
        false => Err(Error::Config {
            path: path.to_owned(),
            reason: format!("cannot {action} weights as {dtype:?}; expected F32, F16, BF16 or F64"),
        }),
    }
}

struct Parameters<'a> {
    path: &'a Path,
    dtype: DType,
    tensors: Vec<LazyTensor<'a>>,
}

impl NamedVisitor for Parameters<'_> {
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let (tensor, path, dtype) = (param.base(), self.path, self.dtype);
        let shape = param.lazy_shape().to_vec();
        let key = name.to_owned();
        let data = move || {
            let data = converted(read(tensor.clone()), dtype);
            match is_finite(&data) {
                true => Ok(data),
                false => Err(Error::NotFinite {
                    path: path.to_owned(),
                    name: key.clone(),
                    reason: format!("contains a NaN, an infinity or a value beyond {dtype:?}"),
                }),
            }
        };
        self.tensors.push(LazyTensor::new(name, shape, dtype, data));
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;

    use super::*;

    #[test]
    fn values_that_were_read_survive_an_in_place_update() {
        let tensor = Tensor::<1>::from_data([1.0f32, 2.0], &device());
        let before = read(tensor.clone());
        let after = read(tensor * 10.0);
        assert_eq!(before, TensorData::from([1.0f32, 2.0]));
        assert_eq!(after, TensorData::from([10.0f32, 20.0]));
    }

    #[test]
    fn layers_are_recognised_by_name() {
        let list = "text_model.encoder.layers.";
        assert_eq!(
            layer_of("text_model.encoder.layers.11.mlp.fc1.weight"),
            Some((list, 11))
        );
        assert_eq!(layer_of("encoder.layers.3.conv1.weight"), None);
        assert_eq!(layer_of("encoder.layers.x.mlp.fc1.weight"), None);
    }
}
