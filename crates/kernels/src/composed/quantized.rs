//! Values in 8 bits.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, IntDType, Shape, Slice, TensorData};

use crate::dynamic_map::DynamicMap;
use crate::options::QUANTIZED_BLOCK as BLOCK;

/// Codes in an integer.
const PACKED: usize = 4;

/// Packed codes and scales of values; see [`crate::Quantized`].
pub(crate) fn quantize<B: Backend>(
    values: FloatTensor<B>,
    map: DynamicMap,
) -> (IntTensor<B>, FloatTensor<B>) {
    let (size, device) = (values.shape().num_elements(), values.device());
    let n_blocks = size.div_ceil(BLOCK);
    let padding = Shape::new([n_blocks * BLOCK - size]);
    let padding = B::float_zeros(padding, &device, FloatDType::F32);
    let values = B::float_cat(vec![values, padding], 0);
    let blocks = B::float_reshape(values, Shape::new([n_blocks, BLOCK]));
    let scales = B::float_max_dim(B::float_abs(blocks.clone()), 1);
    // A block of zeros is divided by 1.
    let is_zero = B::float_neg(B::float_sub_scalar(
        B::float_sign(scales.clone()),
        1.0.into(),
    ));
    let scaled = B::float_div(blocks, B::float_add(scales.clone(), is_zero));
    let codes = search::<B>(
        B::float_reshape(scaled, Shape::new([n_blocks * BLOCK])),
        map,
    );
    (
        pack::<B>(codes),
        B::float_reshape(scales, Shape::new([n_blocks])),
    )
}

/// The values of packed codes and scales.
pub(crate) fn dequantize<B: Backend>(
    packed: IntTensor<B>,
    scales: FloatTensor<B>,
    size: usize,
    map: DynamicMap,
) -> FloatTensor<B> {
    let n_blocks = scales.shape().num_elements();
    let values = table::<B>(&map.table().values, &scales);
    let values = B::float_select(values, 0, unpack::<B>(packed));
    let blocks = B::float_reshape(values, Shape::new([n_blocks, BLOCK]));
    let blocks = B::float_mul(blocks, B::float_reshape(scales, Shape::new([n_blocks, 1])));
    let values = B::float_reshape(blocks, Shape::new([n_blocks * BLOCK]));
    B::float_slice(values, &[Slice::from(0..size)])
}

/// Codes of the nearest values by bisection: the number of boundaries below each value.
fn search<B: Backend>(values: FloatTensor<B>, map: DynamicMap) -> IntTensor<B> {
    let bounds = table::<B>(&map.table().bounds, &values);
    let device = values.device();
    let mut codes = B::int_zeros(values.shape(), &device, IntDType::I32);
    for half in [128, 64, 32, 16, 8, 4, 2, 1] {
        let next = B::int_add_scalar(codes.clone(), (half - 1).into());
        let bound = B::float_select(bounds.clone(), 0, next);
        // 1 above the boundary, otherwise 0.
        let above = B::relu(B::float_sign(B::float_sub(values.clone(), bound)));
        let above = B::float_into_int(above, IntDType::I32);
        codes = B::int_add(codes, B::int_mul_scalar(above, half.into()));
    }
    codes
}

fn table<B: Backend>(values: &[f32], like: &FloatTensor<B>) -> FloatTensor<B> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    B::float_from_data(data, &like.device())
}

fn pack<B: Backend>(codes: IntTensor<B>) -> IntTensor<B> {
    let rows = codes.shape().num_elements() / PACKED;
    let codes = B::int_reshape(codes, Shape::new([rows, PACKED]));
    let shifted = (0..PACKED).map(|place| {
        let column = Slice::from(place..place + 1);
        let codes = B::int_slice(codes.clone(), &[Slice::from(0..rows), column]);
        B::bitwise_left_shift_scalar(codes, (8 * place as i32).into())
    });
    let packed = shifted
        .reduce(B::bitwise_or)
        .expect("there are four columns");
    B::int_reshape(packed, Shape::new([rows]))
}

fn unpack<B: Backend>(packed: IntTensor<B>) -> IntTensor<B> {
    let rows = packed.shape().num_elements();
    let packed = B::int_reshape(packed, Shape::new([rows, 1]));
    let columns = (0..PACKED).map(|place| {
        let shifted = B::bitwise_right_shift_scalar(packed.clone(), (8 * place as i32).into());
        B::bitwise_and_scalar(shifted, 255.into())
    });
    let codes = B::int_cat(columns.collect(), 1);
    B::int_reshape(codes, Shape::new([rows * PACKED]))
}
