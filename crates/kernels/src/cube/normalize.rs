//! Group and layer normalisation on a GPU in two launches and one, compared with up to five and four for burn's operations.
//! Images keep their memory layout.
//!
//! ```text
//!  group norm:  group_moments  (parts × groups × batch cubes)      normalize_groups  (blocks × batch cubes)
//!               each cube: count, mean and squared deviations      each cube merges the parts of all groups of its image,
//!               of its part of a group                             then normalises its share of the elements
//!  layer norm:  normalize_rows (a cube per row)
//! ```
//!
//! All arithmetic is in f32. Moments are accumulated by Welford's method (Technometrics 4, 1962) and merged pairwise (Chan,
//! Golub and LeVeque, 1979), so neither a large mean nor an outlier costs precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::options::{Activation, GroupNormOptions};

/// Number of units (threads) in a cube: the maximum that WebGPU guarantees.
const UNITS: usize = 256;
/// Maximum number of groups: each unit merges the moments of one.
pub(super) const MOST_GROUPS: usize = UNITS;
/// Number of elements per unit before a group or an image is split over more cubes.
const ELEMENTS: usize = 8;
/// Maximum number of parts of a group, to keep merging cheap.
const MOST_PARTS: usize = 32;
/// Maximum number of cubes that write an image.
const MOST_BLOCKS: usize = 4096;
/// Maximum number of cubes along one axis of a launch (WebGPU).
const MOST_CUBES: usize = 65_535;

/// See [`crate::group_norm()`]; the output has the memory layout of the input.
pub(super) fn group_norm(
    input: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    options: GroupNormOptions,
) -> CubeTensor {
    let groups = options.groups;
    let [batch, channels, height, width] = input.shape().dims();
    let nhwc = permute_nchw_to_nhwc(input.clone());
    let channels_last = nhwc.is_contiguous() && !input.is_contiguous();
    let input = match channels_last {
        true => nhwc,
        false => into_contiguous(input),
    };
    let dtype = input.dtype;
    let (image, units) = (channels * height * width, UNITS * ELEMENTS);
    let sizes = || SizesLaunch::new(channels, height * width, groups);

    let parts = (image / groups).div_ceil(units).min(MOST_PARTS);
    let moments = empty_like(&input, Shape::new([batch, groups, parts, 3]), DType::F32);
    group_moments::launch(
        &input.client,
        CubeCount::Static(parts as u32, groups as u32, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        input.clone().into_tensor_arg(),
        moments.clone().into_tensor_arg(),
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
        moments.into_tensor_arg(),
        into_contiguous(gamma).into_tensor_arg(),
        into_contiguous(beta).into_tensor_arg(),
        output.clone().into_tensor_arg(),
        sizes(),
        options.epsilon as f32,
        channels_last,
        options.activation == Activation::Silu,
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

/// The channels, pixels and groups of an image.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    channels: usize,
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

    /// The position of an element of a group in its image.
    fn place(&self, group: usize, element: usize, #[comptime] channels_last: bool) -> usize {
        let channels = self.channels_of_group();
        if channels_last {
            element / channels * self.channels + group * channels + element % channels
        } else {
            group * channels * self.pixels + element
        }
    }

    /// The channel of an element of an image.
    fn channel(&self, place: usize, #[comptime] channels_last: bool) -> usize {
        if channels_last {
            place % self.channels
        } else {
            place / self.pixels
        }
    }
}

/// Adds a value to moments: count, mean and sum of squared deviations (Welford).
#[cube]
fn with_value(count: f32, mean: f32, deviations: f32, value: f32) -> (f32, f32, f32) {
    let count = count + 1.0f32;
    let difference = value - mean;
    let mean = mean + difference / count;
    (count, mean, deviations + difference * (value - mean))
}

/// Merges the moments of two sets of values (Chan, Golub and LeVeque); either may be empty.
#[cube]
fn merged(
    count: f32,
    mean: f32,
    deviations: f32,
    other_count: f32,
    other_mean: f32,
    other_deviations: f32,
) -> (f32, f32, f32) {
    let total = count + other_count;
    let share = other_count / total.max(1.0f32);
    let difference = other_mean - mean;
    let between = difference * difference * count * share;
    (
        total,
        mean + difference * share,
        deviations + other_deviations + between,
    )
}

/// Merges the moments of all units of a cube.
#[cube]
fn of_cube(count: f32, mean: f32, deviations: f32, shared: &mut Shared<[f32]>) -> (f32, f32, f32) {
    let unit = UNIT_POS as usize;
    shared[unit] = count;
    shared[unit + UNITS] = mean;
    shared[unit + 2 * UNITS] = deviations;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = unit + half;
            let (count, mean, deviations) = merged(
                shared[unit],
                shared[unit + UNITS],
                shared[unit + 2 * UNITS],
                shared[other],
                shared[other + UNITS],
                shared[other + 2 * UNITS],
            );
            shared[unit] = count;
            shared[unit + UNITS] = mean;
            shared[unit + 2 * UNITS] = deviations;
        }
        sync_cube();
        half /= 2;
    }
    (shared[0], shared[UNITS], shared[2 * UNITS])
}

/// Computes the moments of a part of each group.
#[cube(launch)]
fn group_moments<F: Float>(
    input: &Tensor<F>,
    moments: &mut Tensor<f32>,
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
    let elements = sizes.image() / sizes.groups;
    let start = image * sizes.image();

    let mut count = 0.0f32;
    let mut mean = 0.0f32;
    let mut deviations = 0.0f32;
    let mut element = part * units + UNIT_POS as usize;
    while element < elements {
        let value = f32::cast_from(input[start + sizes.place(group, element, channels_last)]);
        let (new_count, new_mean, new_deviations) = with_value(count, mean, deviations, value);
        count = new_count;
        mean = new_mean;
        deviations = new_deviations;
        element += units * parts;
    }
    let mut shared = Shared::new_slice(3 * UNITS);
    let (count, mean, deviations) = of_cube(count, mean, deviations, &mut shared);
    if UNIT_POS == 0 {
        let at = ((image * sizes.groups + group) * parts + part) * 3;
        moments[at] = count;
        moments[at + 1] = mean;
        moments[at + 2] = deviations;
    }
}

/// Computes `activation(γ·x̂ + β)` for the elements of an image, in memory order.
#[cube(launch)]
fn normalize_groups<F: Float>(
    input: &Tensor<F>,
    moments: &Tensor<f32>,
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
        let parts = moments.shape(2);
        let mut count = 0.0f32;
        let mut mean = 0.0f32;
        let mut deviations = 0.0f32;
        for part in 0..parts {
            let at = ((image * sizes.groups + unit) * parts + part) * 3;
            let (new_count, new_mean, new_deviations) = merged(
                count,
                mean,
                deviations,
                moments[at],
                moments[at + 1],
                moments[at + 2],
            );
            count = new_count;
            mean = new_mean;
            deviations = new_deviations;
        }
        let reciprocal = (deviations / count + epsilon).sqrt().recip();
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

/// Computes `γ·x̂ + β` for a row.
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
    let mut count = 0.0f32;
    let mut mean = 0.0f32;
    let mut deviations = 0.0f32;
    let mut at = unit;
    while at < width {
        let value = f32::cast_from(input[start + at]);
        let (new_count, new_mean, new_deviations) = with_value(count, mean, deviations, value);
        count = new_count;
        mean = new_mean;
        deviations = new_deviations;
        at += units;
    }
    let mut shared = Shared::new_slice(3 * UNITS);
    let (count, mean, deviations) = of_cube(count, mean, deviations, &mut shared);
    let reciprocal = (deviations / count + epsilon).sqrt().recip();
    let mut at = unit;
    while at < width {
        let normalized = (f32::cast_from(input[start + at]) - mean) * reciprocal;
        let value = normalized * f32::cast_from(gamma[at]) + f32::cast_from(beta[at]);
        output[start + at] = F::cast_from(value);
        at += units;
    }
}
