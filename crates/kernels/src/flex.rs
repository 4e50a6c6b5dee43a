//! Native loops for burn's CPU backend: normalisation in two passes over memory, on all cores.
#![allow(
    unsafe_code,
    reason = "memory that is written before it is read, and not cleared before that"
)]

use std::mem::MaybeUninit;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use crate::attention::{self, Mask};
use crate::backend::Kernels;
use crate::group_norm::{self, Activation};
use crate::{Window, convolution, flex_attention, flex_convolution, flex_linear, gelu, layer_norm};

impl Kernels for Flex {
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        let is_square = query.shape()[2] == key.shape()[2];
        if query.dtype() != DType::F32 || (mask == Mask::Causal && !is_square) {
            return attention::forward::<Self>(query, key, value, mask);
        }
        let [query, key, value] = [query, key, value].map(Contiguous::new);
        flex_attention::forward(&query, &key, &value, mask)
    }

    fn linear(input: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let [rows, inputs] = input.shape().dims::<2>();
        let [outputs, _] = weight.shape().dims::<2>();
        let is_small = (1..=flex_linear::ROWS).contains(&rows) && inputs * outputs > 0;
        if input.dtype() == DType::F32 && is_small {
            let (x, w) = (
                Contiguous::new(input.clone()),
                Contiguous::new(weight.clone()),
            );
            if let Some(values) = flex_linear::forward(x.values(), w.values(), inputs) {
                return tensor(values, Shape::new([rows, outputs]));
            }
        }
        Self::float_matmul(input, Self::float_transpose(weight))
    }

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return <Self as ModuleOps<Self>>::conv2d(input, weight, None, window.options());
        }
        let (input, weight) = (Contiguous::new(input), Contiguous::new(weight));
        flex_convolution::forward(&input, &weight, None, window)
    }

    fn convolution_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            let options = window.options();
            return <Self as ModuleOps<Self>>::conv2d(input, weight, Some(bias), options);
        }
        let [input, weight, bias] = [input, weight, bias].map(Contiguous::new);
        flex_convolution::forward(&input, &weight, Some(&bias), window)
    }

    fn doubled(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = input.shape();
        if input.dtype() != DType::F32 || shape.num_elements() == 0 {
            return convolution::doubled::<Self>(input);
        }
        let [batch, channels, height, width] = shape.dims::<4>();
        let input = Contiguous::new(input);
        let mut output = vec![0.0; 4 * input.values().len()];
        let planes = output.par_chunks_mut(4 * height * width);
        let planes = planes.zip(input.values().par_chunks(height * width));
        planes.for_each(|(output, input)| {
            for (rows, row) in output.chunks_mut(4 * width).zip(input.chunks(width)) {
                let (first, second) = rows.split_at_mut(2 * width);
                for (pair, value) in first.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                    *pair = [*value; 2];
                }
                second.copy_from_slice(first);
            }
        });
        tensor(output, Shape::new([batch, channels, 2 * height, 2 * width]))
    }

    fn convolution_input_grad(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 || !flex_convolution::can_turn(&weight.shape(), window) {
            return <Self as ModuleOps<Self>>::conv2d_x_backward(
                input,
                weight,
                grad,
                window.options(),
            );
        }
        let (weight, grad) = (Contiguous::new(weight), Contiguous::new(grad));
        flex_convolution::input_grad(&weight, &grad, window)
    }

    fn convolution_weight_grad(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return <Self as ModuleOps<Self>>::conv2d_weight_backward(
                input,
                weight,
                grad,
                window.options(),
            );
        }
        let (input, grad) = (Contiguous::new(input), Contiguous::new(grad));
        flex_convolution::weight_grad(&input, &grad, weight.shape(), window)
    }

    fn fused_group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return group_norm::forward::<Self>(input, gamma, beta, groups, epsilon, activation);
        }
        let (input, gamma, beta) = (
            Contiguous::new(input),
            Contiguous::new(gamma),
            Contiguous::new(beta),
        );
        let geometry = Geometry::new(&input.shape(), groups);
        let (gamma, beta) = (gamma.values(), beta.values());

        let count = input.values().len();
        let mut output = Vec::with_capacity(count);
        output.spare_capacity_mut()[..count]
            .par_chunks_mut(geometry.group_len())
            .zip(input.values().par_chunks(geometry.group_len()))
            .enumerate()
            .for_each(|(index, (output, input))| {
                let moments = Moments::of(input, epsilon);
                let channels = geometry.channels_of(index);
                let planes = output
                    .chunks_mut(geometry.plane)
                    .zip(input.chunks(geometry.plane));
                for (channel, (output, input)) in channels.zip(planes) {
                    let scale = moments.reciprocal_deviation * gamma[channel];
                    let shift = beta[channel] - moments.mean * scale;
                    apply(output, input, scale, shift, activation);
                }
            });
        // SAFETY: the groups are all of the elements, and each was written.
        unsafe { output.set_len(count) };
        tensor(output, input.shape())
    }

    fn fused_group_norm_backward(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if input.dtype() != DType::F32 {
            return group_norm::backward::<Self>(
                input, gamma, beta, grad, groups, epsilon, activation,
            );
        }
        let (input, grad) = (Contiguous::new(input), Contiguous::new(grad));
        let (gamma, beta) = (Contiguous::new(gamma), Contiguous::new(beta));
        let shape = input.shape();
        let geometry = Geometry::new(&shape, groups);
        let (gamma, beta) = (gamma.values(), beta.values());

        let mut input_grad = vec![0.0f32; input.values().len()];
        // Per image and channel: Σ dy·x̂ and Σ dy.
        let mut sums = vec![(0.0f32, 0.0f32); geometry.batch * geometry.channels];
        input_grad
            .par_chunks_mut(geometry.group_len())
            .zip(input.values().par_chunks(geometry.group_len()))
            .zip(grad.values().par_chunks(geometry.group_len()))
            .zip(sums.par_chunks_mut(geometry.channels_per_group))
            .enumerate()
            .for_each(|(index, (((output, input), grad), sums))| {
                let moments = Moments::of(input, epsilon);
                let channels = geometry.channels_of(index);
                let planes = || {
                    (0..geometry.channels_per_group)
                        .map(|i| i * geometry.plane..(i + 1) * geometry.plane)
                };

                let (mut mean, mut projection) = (0.0f64, 0.0f64);
                for ((channel, plane), sums) in channels.clone().zip(planes()).zip(sums) {
                    let (gamma, beta) = (gamma[channel], beta[channel]);
                    let (output, input, grad) = (
                        &mut output[plane.clone()],
                        &input[plane.clone()],
                        &grad[plane],
                    );
                    *sums =
                        grad_before_affine(output, input, grad, moments, gamma, beta, activation);
                    projection += f64::from(gamma * sums.0);
                    mean += f64::from(gamma * sums.1);
                }
                let len = geometry.group_len() as f64;
                let (mean, projection) = ((mean / len) as f32, (projection / len) as f32);
                for (channel, plane) in channels.zip(planes()) {
                    let gamma = gamma[channel];
                    let (output, input) = (&mut output[plane.clone()], &input[plane]);
                    grad_of_input(output, input, moments, gamma, mean, projection);
                }
            });

        let mut parameter_grads = [
            vec![0.0f32; geometry.channels],
            vec![0.0f32; geometry.channels],
        ];
        for image in sums.chunks(geometry.channels) {
            for (channel, sum) in image.iter().enumerate() {
                parameter_grads[0][channel] += sum.0;
                parameter_grads[1][channel] += sum.1;
            }
        }
        let [gamma_grad, beta_grad] =
            parameter_grads.map(|grad| tensor(grad, Shape::new([geometry.channels])));
        (tensor(input_grad, shape), gamma_grad, beta_grad)
    }

    fn fused_layer_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return layer_norm::forward::<Self>(input, gamma, beta, epsilon);
        }
        let [input, gamma, beta] = [input, gamma, beta].map(Contiguous::new);
        let (gamma, beta) = (gamma.values(), beta.values());
        let (width, rows) = (gamma.len(), rows_per_task(gamma.len()));
        let mut output = vec![0.0f32; input.values().len()];
        output
            .par_chunks_mut(rows * width)
            .zip(input.values().par_chunks(rows * width))
            .for_each(|(output, input)| layer_norm_rows(output, input, gamma, beta, epsilon));
        tensor(output, input.shape())
    }

    fn fused_layer_norm_backward(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if input.dtype() != DType::F32 {
            return layer_norm::backward::<Self>(input, gamma, grad, epsilon);
        }
        let [input, gamma, grad] = [input, gamma, grad].map(Contiguous::new);
        let gamma = gamma.values();
        let (width, rows) = (gamma.len(), rows_per_task(gamma.len()));
        let mut input_grad = vec![0.0f32; input.values().len()];
        // Collected in order, so that the sums do not depend on which thread came first.
        let partial: Vec<_> = input_grad
            .par_chunks_mut(rows * width)
            .zip(input.values().par_chunks(rows * width))
            .zip(grad.values().par_chunks(rows * width))
            .map(|((output, input), grad)| {
                let (mut gamma_grad, mut beta_grad) = (vec![0.0; width], vec![0.0; width]);
                layer_norm_rows_grad(
                    output,
                    input,
                    grad,
                    gamma,
                    epsilon,
                    &mut gamma_grad,
                    &mut beta_grad,
                );
                [gamma_grad, beta_grad]
            })
            .collect();
        let [gamma_grad, beta_grad] = [0, 1].map(|which| {
            let mut sum = vec![0.0f32; width];
            for part in &partial {
                sum.iter_mut()
                    .zip(&part[which])
                    .for_each(|(sum, part)| *sum += part);
            }
            tensor(sum, Shape::new([width]))
        });
        (tensor(input_grad, input.shape()), gamma_grad, beta_grad)
    }

    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return <Self as burn::backend::ops::ActivationOps<Self>>::gelu(input);
        }
        let input = Contiguous::new(input);
        let mut output = vec![0.0f32; input.values().len()];
        output
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(input.values().par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(output, input)| gelu_values(output, input));
        tensor(output, input.shape())
    }

    fn exact_gelu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return gelu::backward::<Self>(input, grad);
        }
        let [input, grad] = [input, grad].map(Contiguous::new);
        let mut output = vec![0.0f32; input.values().len()];
        output
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(input.values().par_chunks(ELEMENTS_PER_TASK))
            .zip(grad.values().par_chunks(ELEMENTS_PER_TASK))
            .for_each(|((output, input), grad)| gelu_grads(output, input, grad));
        tensor(output, input.shape())
    }
}

/// Elements that one task of the thread pool works on: enough to hide the hand-over.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

fn rows_per_task(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width.max(1)).max(1)
}

/// A tensor whose elements lie in order.
pub(crate) struct Contiguous(FlexTensor);

impl Contiguous {
    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn new(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice().expect("the tensor is contiguous and f32")
    }
}

pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// How `[batch, channels, height, width]` splits into groups, planes and elements.
struct Geometry {
    batch: usize,
    channels: usize,
    channels_per_group: usize,
    plane: usize,
}

impl Geometry {
    fn new(shape: &Shape, groups: usize) -> Self {
        let [batch, channels, height, width] = shape.dims::<4>();
        Self {
            batch,
            channels,
            channels_per_group: channels / groups,
            plane: height * width,
        }
    }

    fn group_len(&self) -> usize {
        self.channels_per_group * self.plane
    }

    /// Channels of the group with this index, counted over the whole batch.
    fn channels_of(&self, group: usize) -> std::ops::Range<usize> {
        let first = group * self.channels_per_group % self.channels;
        first..first + self.channels_per_group
    }
}

#[derive(Clone, Copy)]
struct Moments {
    mean: f32,
    reciprocal_deviation: f32,
}

impl Moments {
    /// Mean and variance in two passes, so that a large mean costs no precision.
    fn of(values: &[f32], epsilon: f64) -> Self {
        let len = values.len() as f64;
        let mean = (sum(values) / len) as f32;
        let variance = sum_of_squares(values, mean) / len;
        Self {
            mean,
            reciprocal_deviation: (1.0 / (variance + epsilon).sqrt()) as f32,
        }
    }
}

/// Compiles the body as it stands, for AVX2 with FMA, and for AVX-512, and takes what the machine has. Nothing in it is
/// fused or put in another order, so all three give every bit of the same.
macro_rules! for_this_machine {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    #[allow(unsafe_code, reason = "the function is compiled for AVX-512")]
                    // SAFETY: all four features were detected on this machine just now.
                    return unsafe { with_avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    #[allow(unsafe_code, reason = "the function is compiled for AVX2")]
                    // SAFETY: both features were detected on this machine just now.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

pub(crate) use for_this_machine;

/// Elements summed side by side; their sums are then added in f64.
const LANES: usize = 32;
/// Elements after which the f32 lanes are emptied into the f64 total.
const BLOCK: usize = 4096;

#[inline(always)]
fn lanewise<const N: usize>(
    len: usize,
    mut add: impl FnMut(usize, usize, &mut [[f32; LANES]; N]),
) -> [f64; N] {
    let mut totals = [0.0f64; N];
    for start in (0..len).step_by(BLOCK) {
        let end = (start + BLOCK).min(len);
        let mut lanes = [[0.0f32; LANES]; N];
        let mut at = start;
        while at < end {
            let width = LANES.min(end - at);
            add(at, width, &mut lanes);
            at += width;
        }
        for (total, lanes) in totals.iter_mut().zip(lanes) {
            *total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
    }
    totals
}

for_this_machine! {
    fn sum(values: &[f32]) -> f64 {
        lanewise::<1>(values.len(), |at, width, lanes| {
            for (lane, value) in lanes[0].iter_mut().zip(&values[at..at + width]) {
                *lane += value;
            }
        })[0]
    }
}

for_this_machine! {
    fn sum_of_squares(values: &[f32], mean: f32) -> f64 {
        lanewise::<1>(values.len(), |at, width, lanes| {
            for (lane, value) in lanes[0].iter_mut().zip(&values[at..at + width]) {
                *lane += (value - mean) * (value - mean);
            }
        })[0]
    }
}

for_this_machine! {
    /// `activation(scale·x + shift)`.
    fn apply(
        output: &mut [MaybeUninit<f32>],
        input: &[f32],
        scale: f32,
        shift: f32,
        activation: Activation,
    ) {
        assert_eq!(output.len(), input.len(), "every element is written");
        match activation {
            Activation::Identity => {
                for (output, input) in output.iter_mut().zip(input) {
                    output.write(input * scale + shift);
                }
            }
            Activation::Silu => {
                for (output, input) in output.iter_mut().zip(input) {
                    let y = input * scale + shift;
                    output.write(y * sigmoid(y));
                }
            }
        }
    }
}

for_this_machine! {
    /// Writes `dy`, the gradient before the activation, and returns `(Σ dy·x̂, Σ dy)`.
    fn grad_before_affine(
        output: &mut [f32],
        input: &[f32],
        grad: &[f32],
        moments: Moments,
        gamma: f32,
        beta: f32,
        activation: Activation,
    ) -> (f32, f32) {
        if activation == Activation::Silu {
            let scale = moments.reciprocal_deviation * gamma;
            let shift = beta - moments.mean * scale;
            for ((output, input), grad) in output.iter_mut().zip(input).zip(grad) {
                let y = input * scale + shift;
                let s = sigmoid(y);
                *output = grad * s * (1.0 + y * (1.0 - s));
            }
        } else {
            output.copy_from_slice(grad);
        }
        let [projection, total] = lanewise::<2>(input.len(), |at, width, lanes| {
            let [projection, total] = lanes;
            let values = input[at..at + width].iter().zip(&output[at..at + width]);
            for ((projection, total), (input, grad)) in projection.iter_mut().zip(total).zip(values) {
                *projection += grad * (input - moments.mean);
                *total += grad;
            }
        });
        ((projection * f64::from(moments.reciprocal_deviation)) as f32, total as f32)
    }
}

for_this_machine! {
    /// `dx` from the `dy` that `output` holds.
    fn grad_of_input(
        output: &mut [f32],
        input: &[f32],
        moments: Moments,
        gamma: f32,
        mean: f32,
        projection: f32,
    ) {
        let deviation = moments.reciprocal_deviation;
        for (output, input) in output.iter_mut().zip(input) {
            let normalized = (input - moments.mean) * deviation;
            *output = (gamma * *output - mean - normalized * projection) * deviation;
        }
    }
}

for_this_machine! {
    fn layer_norm_rows(output: &mut [f32], input: &[f32], gamma: &[f32], beta: &[f32], epsilon: f64) {
        let width = gamma.len();
        for (output, input) in output.chunks_mut(width).zip(input.chunks(width)) {
            let moments = Moments::of(input, epsilon);
            for (((output, input), gamma), beta) in output.iter_mut().zip(input).zip(gamma).zip(beta) {
                *output = (input - moments.mean) * moments.reciprocal_deviation * gamma + beta;
            }
        }
    }
}

for_this_machine! {
    fn layer_norm_rows_grad(
        output: &mut [f32],
        input: &[f32],
        grad: &[f32],
        gamma: &[f32],
        epsilon: f64,
        gamma_grad: &mut [f32],
        beta_grad: &mut [f32],
    ) {
        let width = gamma.len();
        let rows = output.chunks_mut(width).zip(input.chunks(width)).zip(grad.chunks(width));
        for ((output, input), grad) in rows {
            let moments = Moments::of(input, epsilon);
            let deviation = moments.reciprocal_deviation;
            for (((grad, input), gamma), beta) in grad.iter().zip(input).zip(&mut *gamma_grad).zip(&mut *beta_grad) {
                *gamma += grad * (input - moments.mean) * deviation;
                *beta += grad;
            }
            let [mean, projection] = lanewise::<2>(width, |at, len, lanes| {
                let [mean, projection] = lanes;
                let values = grad[at..at + len].iter().zip(&gamma[at..at + len]).zip(&input[at..at + len]);
                for ((mean, projection), ((grad, gamma), input)) in mean.iter_mut().zip(projection).zip(values) {
                    *mean += grad * gamma;
                    *projection += grad * gamma * (input - moments.mean);
                }
            });
            let mean = (mean / width as f64) as f32;
            let projection = (projection * f64::from(deviation) / width as f64) as f32;
            for (((output, grad), gamma), input) in output.iter_mut().zip(grad).zip(gamma).zip(input) {
                let normalized = (input - moments.mean) * deviation;
                *output = (grad * gamma - mean - normalized * projection) * deviation;
            }
        }
    }
}

for_this_machine! {
    fn gelu_values(output: &mut [f32], input: &[f32]) {
        for (output, &x) in output.iter_mut().zip(input) {
            *output = x * normal_cdf(x, exp(-0.5 * x * x));
        }
    }
}

for_this_machine! {
    fn gelu_grads(output: &mut [f32], input: &[f32], grad: &[f32]) {
        for ((output, &x), grad) in output.iter_mut().zip(input).zip(grad) {
            let bell = exp(-0.5 * x * x);
            *output = grad * (normal_cdf(x, bell) + x * bell * 0.398_942_3);
        }
    }
}

/// Φ(x) given exp(−x²/2), within 1e-7: Abramowitz and Stegun, 7.1.26, for the error function of x/√2.
#[inline(always)]
fn normal_cdf(x: f32, bell: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    let p = 1.061_405_4 * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// eˣ without a branch or a call, so that loops over it vectorise; within 2 units in the last place.
///
/// x = n·ln 2 + r with n whole; the polynomial for eʳ is Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to a whole number
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    f32::from_bits(p.to_bits().wrapping_add(exponent))
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -86_000..88_000 {
            let x = i as f32 * 1e-3;
            let (found, expected) = (super::exp(x), f64::from(x).exp() as f32);
            assert!(
                (found - expected).abs() <= 2.5e-7 * expected,
                "exp({x}) = {found}, not {expected}"
            );
        }
        assert!(super::exp(-1e30) < 1.3e-38 && super::exp(1e30).is_finite());
    }
}
