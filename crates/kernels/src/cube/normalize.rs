//! Group and layer normalisation on a GPU: two launches and one, where burn's operations take up to five and four, and images
//! stay in the order of memory that convolutions leave them in.
//!
//! All arithmetic is in f32. Sums are taken of differences to one of the numbers, so a large mean costs no precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::group_norm::Activation;

/// Units of a cube, which share their sums.
const UNITS: usize = 256;
/// Groups at most whose moments a cube has at hand.
pub(super) const MOST_GROUPS: usize = UNITS;
/// Numbers that a unit is to have before more units share a group or an image.
const NUMBERS: usize = 8;
/// Cubes at most that the sums of a group are taken by, so that adding these up costs little.
const MOST_PARTS: usize = 32;
/// Cubes at most that an image is written by.
const MOST_BLOCKS: usize = 4096;
/// Cubes at most along one axis of a launch (WebGPU).
const MOST_CUBES: usize = 65_535;

/// See [`crate::group_norm()`]; the output lies in memory as the input does.
pub(super) fn group_norm(
    input: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> CubeTensor {
    let [batch, channels, height, width] = input.shape().dims();
    let by_pixels = permute_nchw_to_nhwc(input.clone());
    let channels_last = by_pixels.is_contiguous() && !input.is_contiguous();
    let input = match channels_last {
        true => by_pixels,
        false => into_contiguous(input),
    };
    let dtype = input.dtype;
    let (image, units) = (channels * height * width, UNITS * NUMBERS);
    let sizes = || SizesLaunch::new(channels, height * width, groups);

    let parts = (image / groups).div_ceil(units).min(MOST_PARTS);
    let sums = empty_like(&input, Shape::new([batch, groups, parts, 2]), DType::F32);
    group_sums::launch(
        &input.client,
        CubeCount::Static(parts as u32, groups as u32, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        input.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        sizes(),
        channels_last,
        dtype_to_storage_type(dtype),
    );

    let blocks = image.div_ceil(units).min(MOST_BLOCKS);
    let output = empty_like(&input, input.shape(), dtype);
    normalize_groups::launch(
        &output.client,
        CubeCount::Static(blocks as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        input.into_tensor_arg(),
        sums.into_tensor_arg(),
        into_contiguous(gamma).into_tensor_arg(),
        into_contiguous(beta).into_tensor_arg(),
        output.clone().into_tensor_arg(),
        sizes(),
        epsilon as f32,
        channels_last,
        activation == Activation::Silu,
        dtype_to_storage_type(dtype),
    );
    match channels_last {
        true => permute_nhwc_to_nchw(output),
        false => output,
    }
}

/// See [`crate::layer_norm()`].
pub(super) fn layer_norm(
    input: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    epsilon: f64,
) -> CubeTensor {
    let [batch, tokens, width] = input.shape().dims();
    let rows = batch * tokens;
    let input = into_contiguous(input);
    let output = empty_like(&input, input.shape(), input.dtype);
    let deep = rows.div_ceil(MOST_CUBES);
    normalize_rows::launch(
        &output.client,
        CubeCount::Static(rows.div_ceil(deep) as u32, deep as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        input.into_tensor_arg(),
        into_contiguous(gamma).into_tensor_arg(),
        into_contiguous(beta).into_tensor_arg(),
        output.clone().into_tensor_arg(),
        rows,
        width,
        epsilon as f32,
        dtype_to_storage_type(output.dtype),
    );
    output
}

fn empty_like(tensor: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape, dtype)
}

/// How a batch of images is split.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    channels: usize,
    /// Pixels of an image.
    pixels: usize,
    groups: usize,
}

#[cube]
impl Sizes {
    fn image(&self) -> usize {
        self.channels * self.pixels
    }

    fn channels_of_group(&self) -> usize {
        self.channels / self.groups
    }

    /// Where a number of a group lies in its image.
    fn place(&self, group: usize, number: usize, #[comptime] channels_last: bool) -> usize {
        let channels = self.channels_of_group();
        if channels_last {
            number / channels * self.channels + group * channels + number % channels
        } else {
            group * channels * self.pixels + number
        }
    }

    /// The channel of a number of an image.
    fn channel(&self, place: usize, #[comptime] channels_last: bool) -> usize {
        if channels_last {
            place % self.channels
        } else {
            place / self.pixels
        }
    }
}

/// What all units of a cube have, added up.
#[cube]
fn total(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    // Nobody reads the last sum any longer.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// Mean and reciprocal deviation from the sums of differences to a number and of their squares.
#[cube]
fn moments(first: f32, sum: f32, squares: f32, count: usize, epsilon: f32) -> (f32, f32) {
    let count = f32::cast_from(count);
    let shift = sum / count;
    let variance = (squares / count - shift * shift).max(0.0f32);
    (first + shift, (variance + epsilon).sqrt().recip())
}

/// The sums of a part of each group: of the differences to the group's first number, and of their squares.
#[cube(launch)]
fn group_sums<F: Float>(
    input: &Tensor<F>,
    sums: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] channels_last: bool,
    #[define(F)] _dtype: ElemType,
) {
    let (part, group, image) = (
        CUBE_POS_X as usize,
        CUBE_POS_Y as usize,
        CUBE_POS_Z as usize,
    );
    let units = CUBE_DIM as usize;
    let parts = CUBE_COUNT_X as usize;
    let count = sizes.image() / sizes.groups;
    let start = image * sizes.image();
    let first = f32::cast_from(input[start + sizes.place(group, 0, channels_last)]);

    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    let mut number = part * units + UNIT_POS as usize;
    while number < count {
        let value = input[start + sizes.place(group, number, channels_last)];
        let difference = f32::cast_from(value) - first;
        sum += difference;
        squares += difference * difference;
        number += units * parts;
    }
    let mut shared = Shared::new_slice(UNITS);
    let sum = total(sum, &mut shared);
    let squares = total(squares, &mut shared);
    if UNIT_POS == 0 {
        let at = ((image * sizes.groups + group) * parts + part) * 2;
        sums[at] = sum;
        sums[at + 1] = squares;
    }
}

/// `activation(γ·x̂ + β)` for the numbers of an image, in the order of memory.
#[cube(launch)]
fn normalize_groups<F: Float>(
    input: &Tensor<F>,
    sums: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    output: &mut Tensor<F>,
    sizes: Sizes,
    epsilon: f32,
    #[comptime] channels_last: bool,
    #[comptime] is_silu: bool,
    #[define(F)] _dtype: ElemType,
) {
    let (block, image) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let (units, unit) = (CUBE_DIM as usize, UNIT_POS as usize);
    let start = image * sizes.image();
    let mut means = Shared::new_slice(UNITS);
    let mut reciprocals = Shared::new_slice(UNITS);
    if unit < sizes.groups {
        let parts = sums.shape(2);
        let mut sum = 0.0f32;
        let mut squares = 0.0f32;
        for part in 0..parts {
            let at = ((image * sizes.groups + unit) * parts + part) * 2;
            sum += sums[at];
            squares += sums[at + 1];
        }
        let first = f32::cast_from(input[start + sizes.place(unit, 0, channels_last)]);
        let count = sizes.image() / sizes.groups;
        let (mean, reciprocal) = moments(first, sum, squares, count, epsilon);
        means[unit] = mean;
        reciprocals[unit] = reciprocal;
    }
    sync_cube();

    let mut place = block * units + unit;
    while place < sizes.image() {
        let channel = sizes.channel(place, channels_last);
        let group = channel / sizes.channels_of_group();
        let value = f32::cast_from(input[start + place]);
        let normalized = (value - means[group]) * reciprocals[group];
        let gamma = f32::cast_from(gamma[channel]);
        let mut value = normalized * gamma + f32::cast_from(beta[channel]);
        if is_silu {
            value = value / (1.0f32 + (-value).exp());
        }
        output[start + place] = F::cast_from(value);
        place += units * CUBE_COUNT_X as usize;
    }
}

/// `γ·x̂ + β` for a row.
#[cube(launch)]
fn normalize_rows<F: Float>(
    input: &Tensor<F>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    output: &mut Tensor<F>,
    rows: usize,
    width: usize,
    epsilon: f32,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS as usize;
    if row >= rows {
        terminate!();
    }
    let (units, unit) = (CUBE_DIM as usize, UNIT_POS as usize);
    let start = row * width;
    let first = f32::cast_from(input[start]);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    let mut at = unit;
    while at < width {
        let difference = f32::cast_from(input[start + at]) - first;
        sum += difference;
        squares += difference * difference;
        at += units;
    }
    let mut shared = Shared::new_slice(UNITS);
    let sum = total(sum, &mut shared);
    let squares = total(squares, &mut shared);
    let (mean, reciprocal) = moments(first, sum, squares, width, epsilon);
    let mut at = unit;
    while at < width {
        let normalized = (f32::cast_from(input[start + at]) - mean) * reciprocal;
        let value = normalized * f32::cast_from(gamma[at]) + f32::cast_from(beta[at]);
        output[start + at] = F::cast_from(value);
        at += units;
    }
}
