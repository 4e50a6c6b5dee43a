//! Weights in int8.

use std::thread;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::backend::Kernels;

/// A weight in int8: one code from −127 to 127 per value and one f32 scale per output, the first axis. A value is `code
/// · scale`.
///
/// The scale of an output is its largest magnitude over 127, and codes are rounded to nearest, ties to even. With such a weight,
/// [`Linear`](crate::Linear) and [`Conv2d`](crate::Conv2d) quantise their input in the same way when they are called: each token
/// of a linear layer, or each pixel of a convolution over its channels, has a scale of its own. Products are summed in i32
/// without rounding. A NaN or an infinity in the input makes the outputs that depend on it NaN.
///
/// Only burn's CPU backend computes with such weights, for inputs in f32 and without autodiff. burn's own operations
/// panic on them.
///
/// # Examples
///
/// ```
/// use burn::module::ParamId;
/// use burn::tensor::{Device, Tensor, TensorData};
/// use swiftbrush_kernels::{Int8Weight, LinearConfig};
///
/// # fn main() -> Result<(), swiftbrush_kernels::Int8Error> {
/// let values = TensorData::new(vec![1.0f32, -0.5, 0.0, 254.0, 2.0, -2.0], [2, 3]);
/// let weight = Int8Weight::quantize(&values)?;
/// assert_eq!(weight.codes(), &TensorData::new(vec![127i8, -64, 0, 127, 1, -1], [2, 3]));
///
/// let device = Device::flex();
/// let mut layer = LinearConfig::new(3, 2).with_bias(false).init(&device);
/// layer.weight = layer.weight.transform_for_load(weight.to_tensor(&device)?, ParamId::new());
/// let output = layer.forward(Tensor::<2>::from_data([[0.0, 0.0, 127.0]], &device));
/// assert_eq!(output.into_data(), TensorData::from([[0.0f32, -254.0]]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Int8Weight {
    codes: TensorData,
    scales: TensorData,
}

/// The reason why values cannot be a weight in int8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Int8Error {
    /// The weight has fewer than two axes, or is empty.
    #[error("expected a weight of at least two axes, none empty, found {0:?}")]
    Shape(Vec<usize>),
    /// The element type is not f32, f16 or bf16.
    #[error("expected a weight in f32, f16 or bf16, found {0:?}")]
    NotFloat(DType),
    /// The weight has a NaN or an infinity.
    #[error("output {0} has a NaN or an infinity")]
    NotFinite(usize),
    /// The weight has more than 65,536 inputs, whose sum would not fit an i32.
    #[error("expected at most {MOST_INPUTS} inputs, found {0}")]
    Inputs(usize),
    /// The codes are not i8.
    #[error("expected codes in I8, found {0:?}")]
    Codes(DType),
    /// A code is −128, which no weight is quantised to.
    #[error("the code at index {0} is -128; expected -127 to 127")]
    CodeRange(usize),
    /// The scales are not one f32 per output.
    #[error("expected {outputs} scales in F32, one per output, found {found:?} in {dtype:?}")]
    Scales {
        /// Number of outputs.
        outputs: usize,
        /// The shape found.
        found: Vec<usize>,
        /// The element type found.
        dtype: DType,
    },
    /// A scale is negative, a NaN or infinite.
    #[error("the scale of output {output} is {found}; expected 0 or more")]
    ScaleRange {
        /// The output.
        output: usize,
        /// The scale, as text.
        found: String,
    },
    /// The device's backend does not compute in int8.
    #[error(
        "weights in int8 are not supported on {0}; use the CPU without autodiff, or f32 or f16"
    )]
    Device(String),
}

impl Int8Weight {
    /// Quantises a weight: `[outputs, …]`, in f32, f16 or bf16. Outputs of magnitudes up to 1.5e-36 become zeros.
    ///
    /// # Errors
    ///
    /// If the weight has fewer than two axes, is empty, is not in f32, f16 or bf16, or contains a NaN or an infinity.
    pub fn quantize(weight: &TensorData) -> Result<Self, Int8Error> {
        let shape = check_shape(weight)?;
        if !matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(Int8Error::NotFloat(weight.dtype()));
        }
        let (outputs, row) = (shape[0], weight.num_elements() / shape[0]);
        let weight = weight.clone().convert_dtype(DType::F32);
        let values: &[f32] = weight.as_slice().expect("the weight is in f32");
        let (mut codes, mut scales) = (vec![0; values.len()], vec![0.0; outputs]);
        quantize_rows(values, row, &mut codes, &mut scales);
        match scales.iter().position(|scale| scale.is_nan()) {
            Some(output) => Err(Int8Error::NotFinite(output)),
            None => Ok(Self {
                codes: TensorData::new(codes, shape),
                scales: TensorData::new(scales, [outputs]),
            }),
        }
    }

    /// A weight from its [`codes`](Self::codes) and [`scales`](Self::scales).
    ///
    /// # Errors
    ///
    /// If the codes are not i8 of at least two axes, one of them is −128, or there is not one finite scale of 0 or more in f32
    /// for each output.
    pub fn from_parts(codes: TensorData, scales: TensorData) -> Result<Self, Int8Error> {
        let shape = check_shape(&codes)?;
        if codes.dtype() != DType::I8 {
            return Err(Int8Error::Codes(codes.dtype()));
        }
        if let Some(index) = out_of_range(codes.as_bytes()) {
            return Err(Int8Error::CodeRange(index));
        }
        if scales.dtype() != DType::F32 || scales.shape().to_vec() != shape[..1] {
            return Err(Int8Error::Scales {
                outputs: shape[0],
                found: scales.shape().to_vec(),
                dtype: scales.dtype(),
            });
        }
        let is_scale = |scale: f32| scale.is_finite() && scale >= 0.0;
        let bad = scales
            .iter::<f32>()
            .enumerate()
            .find(|(_, scale)| !is_scale(*scale));
        match bad {
            None => Ok(Self { codes, scales }),
            Some((output, scale)) => Err(Int8Error::ScaleRange {
                output,
                found: scale.to_string(),
            }),
        }
    }

    /// The codes: the shape of the weight, i8.
    pub fn codes(&self) -> &TensorData {
        &self.codes
    }

    /// The scales: `[outputs]`, f32.
    pub fn scales(&self) -> &TensorData {
        &self.scales
    }

    /// The values: the shape of the weight, f32.
    pub fn dequantize(&self) -> TensorData {
        let shape = self.codes.shape().to_vec();
        let row = self.codes.num_elements() / shape[0];
        let mut values = vec![0.0; self.codes.num_elements()];
        let rows = self.codes.as_bytes().chunks(row);
        let rows = rows.zip(values.chunks_mut(row));
        for ((codes, values), scale) in rows.zip(self.scales.iter::<f32>()) {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = f32::from(code.cast_signed()) * scale;
            }
        }
        TensorData::new(values, shape)
    }

    /// Checks that layers compute in int8 on a device.
    ///
    /// # Errors
    ///
    /// If the device is not the CPU, or tracks gradients.
    pub fn check_device(device: &Device) -> Result<(), Int8Error> {
        match is_supported(device) {
            true => Ok(()),
            false => Err(Int8Error::Device(format!("{device:?}"))),
        }
    }

    /// Copies the weight to a tensor for the parameter of a layer.
    ///
    /// # Errors
    ///
    /// If the device is not the CPU, or tracks gradients, or the weight has more than 65,536 inputs, whose sum would not fit an
    /// i32.
    ///
    /// # Panics
    ///
    /// If `D` is not the rank of the weight, 2 or 4.
    pub fn to_tensor<const D: usize>(&self, device: &Device) -> Result<Tensor<D>, Int8Error> {
        let found = self.codes.shape().num_dims();
        assert!(
            D == found && (D == 2 || D == 4),
            "expected a weight of {D} axes, 2 or 4, found {found}"
        );
        let inputs = self.codes.shape()[1];
        if inputs > MOST_INPUTS {
            return Err(Int8Error::Inputs(inputs));
        }
        Self::check_device(device)?;
        let codes = Tensor::<D, Int>::from_data(self.codes.clone(), (device, DType::I8));
        let scales = Tensor::<1>::from_data(self.scales.clone(), (device, DType::F32));
        let (codes, scales) = (codes.into_dispatch(), scales.into_dispatch());
        Ok(Tensor::from_dispatch(<Dispatch as Kernels>::int8_weight(
            codes, scales,
        )))
    }

    /// The weight of a tensor, if it [is in int8](is_int8).
    pub fn of_tensor<const D: usize>(weight: &Tensor<D>) -> Option<Self> {
        if !is_int8(weight) {
            return None;
        }
        let (codes, scales) = <Dispatch as Kernels>::int8_parts(weight.clone().into_dispatch());
        Some(Self {
            codes: Tensor::<D, Int>::from_dispatch(codes).into_data(),
            scales: Tensor::<1>::from_dispatch(scales).into_data(),
        })
    }
}

/// Returns whether a tensor is a weight in [int8](Int8Weight).
pub fn is_int8<const D: usize>(weight: &Tensor<D>) -> bool {
    matches!(weight.dtype(), DType::QFloat(_))
}

/// Maximum number of inputs for which sums fit an i32: each adds up to 255 · 127.
const MOST_INPUTS: usize = 1 << 16;

fn check_shape(weight: &TensorData) -> Result<Vec<usize>, Int8Error> {
    let shape = weight.shape().to_vec();
    match shape.len() < 2 || weight.num_elements() == 0 {
        true => Err(Int8Error::Shape(shape)),
        false => Ok(shape),
    }
}

/// The index of a code of −128. Chunks without one are passed over at the speed of memory.
fn out_of_range(codes: &[u8]) -> Option<usize> {
    const CHUNK: usize = 4096;
    let is_bad = |code: &u8| *code == 0x80;
    let has_bad = |codes: &[u8]| codes.iter().fold(false, |found, code| found | is_bad(code));
    let mut chunks = codes.chunks(CHUNK).enumerate();
    let (chunk, codes) = chunks.find(|(_, codes)| has_bad(codes))?;
    let place = codes.iter().position(is_bad)?;
    Some(chunk * CHUNK + place)
}

fn is_supported(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "the variants depend on burn's features"
        )]
        _ => false,
    }
}

/// Quantises rows in parallel, in equal shares. The caller takes the last share, which is everything where there are no threads.
fn quantize_rows(values: &[f32], row: usize, codes: &mut [i8], scales: &mut [f32]) {
    let n_threads = thread::available_parallelism().map_or(1, usize::from);
    let share = scales.len().div_ceil(n_threads);
    let quantize = |((values, codes), scales): ((&[f32], &mut [i8]), &mut [f32])| {
        let rows = values.chunks(row).zip(codes.chunks_mut(row));
        for ((values, codes), scale) in rows.zip(scales) {
            *scale = quantize_row(values, codes);
        }
    };
    let parts = values
        .chunks(share * row)
        .zip(codes.chunks_mut(share * row))
        .zip(scales.chunks_mut(share));
    let mut parts: Vec<_> = parts.collect();
    let last = parts.pop();
    thread::scope(|scope| {
        for part in parts {
            scope.spawn(move || quantize(part));
        }
        last.into_iter().for_each(quantize);
    });
}

/// Writes the codes of a row; returns its scale.
fn quantize_row(values: &[f32], codes: &mut [i8]) -> f32 {
    let largest = values.iter().map(|x| magnitude(*x)).max();
    let Scale { scale, factor } = Scale::new(largest.unwrap_or_default());
    let pairs = codes.iter_mut().zip(values);
    pairs.for_each(|(code, x)| *code = nearest(*x, factor).cast_signed());
    scale
}

/// The largest code; −128 is never used, so that codes are symmetric.
const LARGEST: f32 = 127.0;
/// Added to a value below 2²², it leaves the nearest integer, ties to even, in the lowest bits: 1.5 · 2²³.
pub(crate) const ROUNDER: f32 = 12_582_912.0;
/// Largest magnitude that counts as zero: above it, the scale is a normal number and its reciprocal is finite.
const NEGLIGIBLE: f32 = LARGEST * f32::MIN_POSITIVE;

/// The scale of some values, and the factor that turns them into codes.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) scale: f32,
    pub(crate) factor: f32,
}

impl Scale {
    /// The scale of values whose largest [`magnitude`] is given. With a NaN or an infinity among them, the scale is NaN.
    #[inline(always)]
    pub(crate) fn new(largest: u32) -> Self {
        let largest = f32::from_bits(largest);
        let (scale, factor) = match largest.is_finite() {
            false => (f32::NAN, 0.0),
            true if largest <= NEGLIGIBLE => (0.0, 0.0),
            true => (largest / LARGEST, LARGEST / largest),
        };
        Self { scale, factor }
    }
}

/// The bits of a magnitude, which have the same order as magnitudes, with infinities and NaNs last.
#[inline(always)]
pub(crate) fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The code of a value, as the byte of an i8.
#[inline(always)]
pub(crate) fn nearest(value: f32, factor: f32) -> u8 {
    (value * factor + ROUNDER).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use burn::tensor::{bf16, f16};
    use swiftbrush_testing::{device, random, values};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn codes(row: &[f32]) -> (Vec<i8>, f32) {
        let weight = TensorData::new(row.to_vec(), [1, row.len()]);
        let weight = Int8Weight::quantize(&weight).unwrap();
        (
            weight.codes().iter().collect(),
            weight.scales().iter().next().unwrap(),
        )
    }

    #[test]
    fn codes_are_symmetric_and_ties_go_to_even() {
        assert_eq!(
            codes(&[-127.0, 0.5, 1.5, 2.5, -0.5, 127.0]),
            (vec![-127, 0, 2, 2, 0, 127], 1.0)
        );
        // The reciprocal of 3 is rounded; the largest magnitude is still 127.
        assert_eq!(codes(&[-3.0, 3.0, 1.0]).0, [-127, 127, 42]);
        for seed in 0..200 {
            let row = values(random([40], seed, &device()));
            let (codes, scale) = codes(&row);
            assert!(codes.iter().all(|code| *code != i8::MIN));
            assert!(codes.iter().any(|code| code.unsigned_abs() == 127));
            for (code, x) in codes.iter().zip(&row) {
                assert!((f32::from(*code) * scale - x).abs() <= 0.500_01 * scale);
            }
        }
    }

    #[test]
    fn rows_that_are_zero_or_nearly_so_have_the_scale_zero() {
        for row in [[0.0, -0.0], [1.4e-36, -1e-40]] {
            assert_eq!(codes(&row), (vec![0, 0], 0.0));
        }
        let (found, scale) = codes(&[1.6e-36, -1.6e-36]);
        assert!(found == [127, -127] && scale.is_normal());
        assert_eq!(codes(&[f32::MAX, -1.0]).0, [127, 0]);
    }

    #[test]
    fn other_element_types_have_the_codes_of_their_values() {
        let row = [0.3f32, -1.75, 0.01, 4.0];
        let f16 = row.map(f16::from_f32);
        let bf16 = row.map(bf16::from_f32);
        for (data, row) in [
            (TensorData::new(f16.to_vec(), [1, 4]), f16.map(f32::from)),
            (TensorData::new(bf16.to_vec(), [1, 4]), bf16.map(f32::from)),
        ] {
            let found = Int8Weight::quantize(&data).unwrap();
            assert_eq!(found.codes().iter().collect::<Vec<i8>>(), codes(&row).0);
        }
    }

    #[test]
    fn codes_are_widened_by_the_scale_of_their_output() {
        let codes = TensorData::from([[1i8, -2], [3, 127]]);
        let weight = Int8Weight::from_parts(codes, TensorData::from([0.5f32, 2.0])).unwrap();
        assert_eq!(
            weight.dequantize(),
            TensorData::from([[0.5f32, -1.0], [6.0, 254.0]])
        );
    }

    #[test]
    fn bad_values_are_named() {
        let data = |values: &[f32]| TensorData::new(values.to_vec(), [2, values.len() / 2]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = Int8Weight::quantize(&data(&[1.0, 2.0, bad, 3.0])).unwrap_err();
            assert_eq!(found, Int8Error::NotFinite(1));
        }
        let flat = Int8Weight::quantize(&TensorData::from([1.0f32])).unwrap_err();
        assert_eq!(flat, Int8Error::Shape(vec![1]));
        let whole = Int8Weight::quantize(&TensorData::from([[1i32]])).unwrap_err();
        assert_eq!(whole, Int8Error::NotFloat(DType::I32));
        let check = |codes: [i8; 4], scales: &[f32], expected: &str| {
            let codes = TensorData::new(codes.to_vec(), [2, 2]);
            let scales = TensorData::new(scales.to_vec(), [scales.len()]);
            let found = Int8Weight::from_parts(codes, scales)
                .unwrap_err()
                .to_string();
            assert!(found.contains(expected), "{found}");
        };
        check([1, 2, -128, 4], &[1.0, 1.0], "code at index 2 is -128");
        check([1, 2, 3, 4], &[1.0], "expected 2 scales in F32");
        check([1, 2, 3, 4], &[1.0, -0.5], "output 1 is -0.5");
        check([1, 2, 3, 4], &[f32::NAN, 0.5], "output 0 is NaN");
        let wide = TensorData::zeros::<f32, _>([1, MOST_INPUTS + 1]);
        let wide = Int8Weight::quantize(&wide).unwrap();
        let found = wide.to_tensor::<2>(&swiftbrush_testing::cpu()).unwrap_err();
        assert_eq!(found, Int8Error::Inputs(MOST_INPUTS + 1));
        let mut many = vec![5i8; 10_000];
        many[9000] = -128;
        let parts = (
            TensorData::new(many, [1, 10_000]),
            TensorData::from([1.0f32]),
        );
        let found = Int8Weight::from_parts(parts.0, parts.1).unwrap_err();
        assert_eq!(found, Int8Error::CodeRange(9000));
        let parts = (TensorData::from([[1u8]]), TensorData::from([1.0f32]));
        let found = Int8Weight::from_parts(parts.0, parts.1).unwrap_err();
        assert_eq!(found, Int8Error::Codes(DType::U8));
    }
}
