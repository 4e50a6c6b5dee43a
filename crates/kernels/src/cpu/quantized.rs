//! Values in 8 bits: one pass over memory.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use crate::cpu::tensor::{ELEMENTS_PER_TASK, F32, tensor};
use crate::dynamic_map::{DynamicMap, Table};
use crate::options::QUANTIZED_BLOCK as BLOCK;

/// Integers with the codes of a block.
const INTEGERS: usize = BLOCK / 4;

/// Blocks per task of the thread pool.
const BLOCKS: usize = ELEMENTS_PER_TASK / BLOCK;

/// Packed codes and scales of values.
pub(crate) fn quantize(values: &F32, map: DynamicMap) -> (FlexTensor, FlexTensor) {
    let (values, table) = (values.values(), map.table());
    let n_blocks = values.len().div_ceil(BLOCK);
    let (mut packed, mut scales) = (vec![0; n_blocks * INTEGERS], vec![0.0; n_blocks]);
    let outputs = packed.par_chunks_mut(BLOCKS * INTEGERS);
    let outputs = outputs.zip(scales.par_chunks_mut(BLOCKS));
    values
        .par_chunks(BLOCKS * BLOCK)
        .zip(outputs)
        .for_each(|(values, (packed, scales))| {
            let outputs = packed.chunks_mut(INTEGERS).zip(scales);
            for (block, (packed, scale)) in values.chunks(BLOCK).zip(outputs) {
                *scale = quantize_block(block, packed, table);
            }
        });
    let layout = Layout::contiguous(Shape::new([packed.len()]));
    let packed = FlexTensor::new(Bytes::from_elems(packed), layout, DType::I32);
    (packed, tensor(scales, Shape::new([n_blocks])))
}

fn quantize_block(block: &[f32], packed: &mut [i32], table: &Table) -> f32 {
    let scale = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let divisor = if scale > 0.0 { scale } else { 1.0 };
    for (values, packed) in block.chunks(4).zip(packed) {
        let mut codes = [0; 4];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = table.code(value / divisor);
        }
        *packed = i32::from_le_bytes(codes);
    }
    scale
}

/// The values of packed codes and scales.
pub(crate) fn dequantize(
    packed: &FlexTensor,
    scales: &F32,
    size: usize,
    map: DynamicMap,
) -> FlexTensor {
    let packed = packed.to_contiguous();
    let packed: &[i32] = packed.as_slice().expect("codes are contiguous and i32");
    let (scales, table) = (scales.values(), map.table());
    let mut values = vec![0.0f32; size];
    let inputs = packed.par_chunks(BLOCKS * INTEGERS);
    let inputs = inputs.zip(scales.par_chunks(BLOCKS));
    values
        .par_chunks_mut(BLOCKS * BLOCK)
        .zip(inputs)
        .for_each(|(values, (packed, scales))| {
            let inputs = packed.chunks(INTEGERS).zip(scales);
            for (block, (packed, scale)) in values.chunks_mut(BLOCK).zip(inputs) {
                for (values, packed) in block.chunks_mut(4).zip(packed) {
                    for (value, code) in values.iter_mut().zip(packed.to_le_bytes()) {
                        *value = table.values[code as usize] * scale;
                    }
                }
            }
        });
    tensor(values, Shape::new([size]))
}
