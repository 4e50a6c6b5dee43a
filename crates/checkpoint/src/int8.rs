//! Weights in int8: loading, quantisation, and their layout in files.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData, f16};
use half::slice::HalfFloatSliceExt;
use serde_json::{Value, json};
use swiftbrush_kernels::Int8Weight;

use crate::convert::converted;
use crate::error::{Error, abridged};
use crate::finite::is_finite;
use crate::module::{Origin, Values, check_float, fill, is_buffer, load, read};
use crate::named::{NamedMapper, NamedVisitor, map_named, visit_named};
use crate::weights::Weights;
use crate::write::{LazyTensor, write_tensors};

/// Suffix of a weight's name that gives the name of its scales.
const SCALE: &str = "_scale";
/// Key of the layout in the header of a file.
const KEY: &str = "quantization";
/// The only layout.
const LAYOUT: &str = "int8-per-output-v1";

/// The value of `quantization_config` in the configuration of a network whose weights are in int8. diffusers rejects the unknown
/// method instead of reading codes as weights, and transformers warns.
pub fn int8_config() -> Value {
    json!({"quant_method": LAYOUT})
}

/// Returns whether a file has weights in int8, in the layout of [`save_int8`].
///
/// # Errors
///
/// If the header names an unknown layout, or the file has scales or tensors in I8 without a layout in the header.
pub fn is_int8_file(weights: &Weights) -> Result<bool, Error> {
    let failed = |reason: String| Err(unreadable(weights.path(), reason));
    match weights.metadata().get(KEY).map(String::as_str) {
        Some(LAYOUT) => Ok(true),
        Some(other) => failed(format!(
            "unknown layout {KEY} = {other:?} of quantised weights in its header; expected {LAYOUT:?}"
        )),
        None => {
            let is_code = |name: &&str| {
                name.ends_with(&format!(".weight{SCALE}"))
                    || matches!(weights.dtype(name), Ok(DType::I8))
            };
            let found: Vec<_> = weights.names().filter(is_code).collect();
            match found.is_empty() {
                true => Ok(false),
                false => failed(format!(
                    "quantised tensors, but no {KEY} = {LAYOUT:?} in its header: {}; quantise a model in f32 or f16",
                    abridged(found)
                )),
            }
        }
    }
}

/// Loads the parameters of a module by name, strictly, with the weights that `is_int8` selects by name and shape in
/// int8, and everything else in f32. Weights in f32, f16 or bf16 are quantised; a file written by [`save_int8`] is read
/// as it is, except that tensors in int8 that are not selected are widened.
///
/// # Errors
///
/// Same as [`load`](crate::load), or if the weights in int8 in the file are not the selected ones, or the device does
/// not compute in int8.
pub fn load_int8<M: Module>(
    module: M,
    weights: &Weights,
    is_int8: impl Fn(&str, &[usize]) -> bool,
) -> Result<M, Error> {
    let is_stored = is_int8_file(weights)?;
    let selects = |name: &str| {
        weights
            .shape(name)
            .is_some_and(|shape| is_int8(name, shape))
    };
    let read = |name: &str| match is_stored && selects(name) {
        true => read_int8(weights, name).map(Values::Int8),
        false => read_wide(weights, name).map(Values::Plain),
    };
    let convert = |name: &str, data: TensorData| {
        let data = converted(data, DType::F32);
        if !is_stored && selects(name) {
            return quantized(weights.path(), name, &data).map(Values::Int8);
        }
        Ok(Values::Plain(data))
    };
    let names = parameters(weights);
    fill(module, Origin::File(weights), names, read, convert)
}

/// Like [`load`](crate::load), but also reads a file written by [`save_int8`], whose tensors in int8 are widened.
///
/// # Errors
///
/// Same as [`load`](crate::load), or if the file has an unknown layout of quantised weights.
pub fn load_widened<M: Module>(
    module: M,
    weights: &Weights,
    dtype: Option<DType>,
) -> Result<M, Error> {
    if let Some(dtype) = dtype {
        check_float(dtype, "load", weights.path())?;
    }
    if !is_int8_file(weights)? {
        return load(module, weights, dtype);
    }
    let read = |name: &str| read_wide(weights, name).map(Values::Plain);
    let convert = |_: &str, data: TensorData| {
        let data = converted(data, dtype.unwrap_or(DType::F32));
        Ok(Values::Plain(data))
    };
    let names = parameters(weights);
    fill(module, Origin::File(weights), names, read, convert)
}

/// The names of a file's tensors, without buffers and without the scales of tensors in int8.
fn parameters(weights: &Weights) -> BTreeSet<String> {
    let is_scale = |name: &str| {
        let codes = name.strip_suffix(SCALE);
        codes.is_some_and(|codes| weights.dtype(codes).is_ok_and(|dtype| dtype == DType::I8))
    };
    let names = weights.names();
    let names = names.filter(|name| !is_buffer(name) && !is_scale(name));
    names.map(str::to_owned).collect()
}

/// Reads a tensor; one in int8 is widened to f32.
fn read_wide(weights: &Weights, name: &str) -> Result<TensorData, Error> {
    match weights.dtype(name)? {
        DType::I8 => Ok(read_int8(weights, name)?.dequantize()),
        _ => weights.read(name),
    }
}

/// Reads the codes and scales of a weight.
fn read_int8(weights: &Weights, name: &str) -> Result<Int8Weight, Error> {
    let path = weights.path();
    let found = weights.dtype(name)?;
    if found != DType::I8 {
        let reason = format!("{name} is in {found:?}; expected I8, as other weights of its kind");
        return Err(unreadable(path, reason));
    }
    let scales = weights.read(&format!("{name}{SCALE}"))?;
    Int8Weight::from_parts(weights.read(name)?, scales)
        .map_err(|error| Error::damaged(path, format!("{name}: {error}")))
}

fn quantized(path: &Path, name: &str, data: &TensorData) -> Result<Int8Weight, Error> {
    Int8Weight::quantize(data).map_err(|error| unreadable(path, format!("{name}: {error}")))
}

fn unreadable(path: &Path, reason: String) -> Error {
    Error::Quantized {
        path: path.to_owned(),
        reason,
    }
}

/// Quantises the weights of a module that `is_int8` selects by name and shape, without their adapters.
///
/// # Errors
///
/// If a weight contains a NaN or an infinity, or the device does not compute in int8; the error names
/// `source`.
pub fn quantize<M: Module>(
    module: M,
    is_int8: impl Fn(&str, &[usize]) -> bool,
    source: &Path,
) -> Result<M, Error> {
    struct Quantizer<'a, F> {
        is_int8: F,
        source: &'a Path,
        error: Option<Error>,
    }
    impl<F: Fn(&str, &[usize]) -> bool> NamedMapper for Quantizer<'_, F> {
        fn float<const D: usize>(
            &mut self,
            name: &str,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            let is_selected = (self.is_int8)(name, param.lazy_shape().as_slice());
            if self.error.is_some() || !is_selected {
                return param;
            }
            if swiftbrush_kernels::is_int8(&param.base()) {
                return param;
            }
            let weight = quantized(self.source, name, &read(param.base()));
            let tensor = weight.and_then(|weight| {
                weight
                    .to_tensor(&param.lazy_device())
                    .map_err(|error| unreadable(self.source, format!("{name}: {error}")))
            });
            match tensor {
                Ok(tensor) => {
                    let id = param.id;
                    param.transform_for_load(tensor, id)
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            }
        }
    }
    let mut quantizer = Quantizer {
        is_int8,
        source,
        error: None,
    };
    let module = map_named(module, &mut quantizer);
    match quantizer.error {
        None => Ok(module),
        Some(error) => Err(error),
    }
}

/// Writes a module to a safetensors file, atomically. Weights already in int8, and those that `is_stored` selects by name and
/// shape, are written in int8. The latter are quantised only in the file; loading widens them, which makes the file smaller but
/// not the module. Each becomes two tensors, `NAME` with the codes in I8 and the shape of the weight, and `NAME_scale` with the scale of
/// each output in F32; all other tensors are in f16 where that is exact, or nearly so in a matrix, otherwise in f32. The header
/// names the layout.
///
/// # Errors
///
/// If the file cannot be written, or a parameter contains a NaN or an infinity.
pub fn save_int8<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    mut metadata: HashMap<String, String>,
    is_stored: impl Fn(&str, &[usize]) -> bool,
) -> Result<(), Error> {
    struct Tensors<'a, F> {
        is_stored: F,
        path: &'a Path,
        tensors: Vec<LazyTensor<'static>>,
        error: Option<Error>,
    }
    impl<F: Fn(&str, &[usize]) -> bool> Tensors<'_, F> {
        /// The weight in int8, or `None` if the parameter is stored in floating point.
        fn weight<const D: usize>(
            &self,
            name: &str,
            values: &Tensor<D>,
        ) -> Result<Option<Int8Weight>, Error> {
            match Int8Weight::of_tensor(values) {
                None if (self.is_stored)(name, &values.dims()) => {
                    quantized(self.path, name, &read(values.clone())).map(Some)
                }
                weight => Ok(weight),
            }
        }
    }
    impl<F: Fn(&str, &[usize]) -> bool> NamedVisitor for Tensors<'_, F> {
        fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            let weight = self.weight(name, &param.base());
            let tensors = &mut self.tensors;
            match weight {
                Ok(Some(weight)) => {
                    tensors.push(LazyTensor::ready(name, weight.codes().clone()));
                    let name = format!("{name}{SCALE}");
                    tensors.push(LazyTensor::ready(name, weight.scales().clone()));
                }
                Ok(None) => {
                    let data = read(param.base());
                    if !is_finite(&data) {
                        self.error.get_or_insert(Error::NotFinite {
                            path: self.path.to_owned(),
                            name: name.to_owned(),
                            reason: "contains a NaN or an infinity".to_owned(),
                        });
                        return;
                    }
                    tensors.push(LazyTensor::ready(name, narrowed(data)));
                }
                Err(error) => {
                    self.error.get_or_insert(error);
                }
            }
        }
    }
    let path = path.as_ref();
    let mut found = Tensors {
        is_stored,
        path,
        tensors: Vec::new(),
        error: None,
    };
    visit_named(module, &mut found);
    if let Some(error) = found.error {
        return Err(error);
    }
    metadata.insert(KEY.to_owned(), LAYOUT.to_owned());
    write_tensors(path, found.tensors, metadata)
}

/// The values in f16 if that is exact, or nearly so in a matrix, whose rounding is small beside that of int8; otherwise in f32.
fn narrowed(data: TensorData) -> TensorData {
    /// Bound of the error relative to the largest magnitude: half a unit in the last place of a value below two.
    const ERROR: f32 = 1.0 / 2048.0;
    let data = converted(data, DType::F32);
    let Ok(values) = data.as_slice::<f32>() else {
        return data;
    };
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let errors = halves.iter().zip(values).map(|(half, x)| half.to_f32() - x);
    let error = largest(errors);
    let bound = match data.shape().num_dims() {
        0 | 1 => 0.0,
        _ => largest(values.iter().copied()) * ERROR,
    };
    match error <= bound {
        true => TensorData::new(halves, data.shape().to_vec()),
        false => data,
    }
}

/// The largest magnitude.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.map(f32::abs).fold(0.0, f32::max)
}
