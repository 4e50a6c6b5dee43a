//! Values in 8 bits.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::DynamicMap;
use crate::backend::Kernels;
use crate::options::QUANTIZED_BLOCK;

/// Values in 8 bits, quantised in blocks of 256: one code of a [`DynamicMap`] per value and the largest magnitude of
/// each block, like the moments of bitsandbytes' optimisers (Dettmers et al., arXiv 2110.02861).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_kernels::{DynamicMap, Quantized};
///
/// let values = Tensor::<1>::from_data([0.5, -2.0, 0.0], &Device::flex());
/// let quantized = Quantized::new(values, DynamicMap::Signed);
/// assert_eq!(quantized.codes().as_bytes(), [201, 0, 127]);
/// let restored: Vec<f32> = quantized.values().into_data().iter().collect();
/// assert!((restored[0] - 0.5).abs() < 0.02 && (restored[1] + 2.0).abs() < 0.02);
/// ```
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Four codes in an integer, the first in its lowest bits; whole blocks.
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    size: usize,
    map: DynamicMap,
}

impl Quantized {
    /// Quantises values: `[size]`, f32.
    ///
    /// # Panics
    ///
    /// If the dtype is not f32.
    #[track_caller]
    pub fn new(values: Tensor<1>, map: DynamicMap) -> Self {
        assert_eq!(values.dtype(), DType::F32, "values in f32 are quantised");
        let [size] = values.dims();
        let (codes, scales) = <Dispatch as Kernels>::quantize(values.into_dispatch(), map);
        Self {
            codes: Tensor::from_dispatch(codes),
            scales: Tensor::from_dispatch(scales),
            size,
            map,
        }
    }

    /// The values: `[size]`, f32.
    pub fn values(&self) -> Tensor<1> {
        let (codes, scales) = (self.codes.clone(), self.scales.clone());
        let (codes, scales) = (codes.into_dispatch(), scales.into_dispatch());
        let values = <Dispatch as Kernels>::dequantize(codes, scales, self.size, self.map);
        Tensor::from_dispatch(values)
    }

    /// The codes on the host: `[size]`, u8.
    pub fn codes(&self) -> TensorData {
        let packed = self.codes.to_data();
        let codes = packed.iter::<i32>().flat_map(i32::to_le_bytes);
        TensorData::new(codes.take(self.size).collect::<Vec<u8>>(), [self.size])
    }

    /// The largest magnitude of each block.
    pub fn scales(&self) -> Tensor<1> {
        self.scales.clone()
    }

    /// Values from their [`codes`](Self::codes) and [`scales`](Self::scales).
    ///
    /// # Panics
    ///
    /// If the codes are not u8, or there is not one scale for each 256 of them.
    #[track_caller]
    pub fn from_parts(
        codes: &TensorData,
        scales: TensorData,
        map: DynamicMap,
        device: &Device,
    ) -> Self {
        assert_eq!(codes.dtype(), DType::U8, "codes are u8");
        let size = codes.num_elements();
        let n_blocks = size.div_ceil(QUANTIZED_BLOCK);
        assert_eq!(
            scales.num_elements(),
            n_blocks,
            "there is a scale per block"
        );
        let mut bytes = codes.as_bytes().to_vec();
        bytes.resize(n_blocks * QUANTIZED_BLOCK, 0);
        let (packed, _) = bytes.as_chunks::<4>();
        let packed: Vec<i32> = packed
            .iter()
            .map(|&codes| i32::from_le_bytes(codes))
            .collect();
        let packed = TensorData::new(packed, [n_blocks * QUANTIZED_BLOCK / 4]);
        Self {
            codes: Tensor::from_data(packed, (device, DType::I32)),
            scales: Tensor::from_data(scales, (device, DType::F32)),
            size,
            map,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Returns true if there are no values.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use swiftbrush_testing::{assert_values_close, device, random, values};

    use super::*;

    /// Blocks of several magnitudes, one of them zero, and a part of a block at the end.
    fn draw() -> Tensor<1> {
        let device = device();
        let parts = [1e-6, 0.0, 1.0, 1e4].map(|scale| random([256], 1, &device) * scale);
        let rest = random([77], 2, &device);
        Tensor::cat([parts.to_vec(), vec![rest]].concat(), 0)
    }

    #[test]
    fn codes_and_scales_are_those_of_the_rule() {
        for (map, drawn) in [
            (DynamicMap::Signed, draw()),
            (DynamicMap::Unsigned, draw().abs()),
        ] {
            let quantized = Quantized::new(drawn.clone(), map);
            let (found, scales) = (quantized.codes(), values(quantized.scales()));
            let drawn = values(drawn);
            let mut expected = Vec::new();
            for (block, scale) in drawn.chunks(QUANTIZED_BLOCK).zip(&scales) {
                let largest = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                assert_eq!(largest, *scale);
                let divisor = if largest > 0.0 { largest } else { 1.0 };
                expected.extend(block.iter().map(|x| map.table().code(x / divisor)));
            }
            assert_eq!(found.as_bytes(), expected);
            let restored: Vec<f32> = expected
                .iter()
                .enumerate()
                .map(|(index, &code)| map.values()[code as usize] * scales[index / QUANTIZED_BLOCK])
                .collect();
            assert_values_close(&values(quantized.values()), &restored, 1e-7);
            let again =
                Quantized::from_parts(&found, quantized.scales().into_data(), map, &device());
            assert_eq!(values(again.values()), values(quantized.values()));
        }
    }
}
