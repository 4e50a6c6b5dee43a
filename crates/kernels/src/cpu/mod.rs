//! The operations on burn's CPU backend, in f32, on all cores.
#![allow(
    unsafe_code,
    reason = "memory that is written before it is read, and not cleared before that"
)]

mod attention;
mod convolution;
mod epilogue;
mod fetch;
mod linear;
mod loops;
mod multiply;
mod points;
mod product;
mod ran;
mod scratch;
mod stored;
mod target;
mod training;
mod transpose;
mod vectors;
mod winograd;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::{ActivationOps, FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use crate::attention::Mask;
use crate::backend::Kernels;
use crate::group_norm::{self, Activation};
use crate::training::AdamWUpdate;
use crate::{Window, gelu, layer_norm};

pub use ran::kernels_that_ran;
pub use vectors::vectors;

use attention::Heads;
use epilogue::Epilogue;
use loops::{
    Moments, apply, gated_gelu_values, gelu_grads, gelu_values, grad_before_affine, grad_of_input,
    layer_norm_rows, layer_norm_rows_grad, softmax,
};
use ran::Kernel;
use stored::Weight;

impl Kernels for Flex {
    fn blockwise_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask,
    ) -> FloatTensor<Self> {
        let is_square = query.shape()[2] == key.shape()[2];
        let is_empty = query.shape().num_elements() * key.shape().num_elements() == 0;
        if query.dtype() != DType::F32 || is_empty || (mask == Mask::Causal && !is_square) {
            Kernel::Burns.runs();
            return crate::attention::forward::<Self>(query, key, value, mask);
        }
        Kernel::Attention.runs();
        let [query, key, value] = [query, key, value].map(Heads::new);
        attention::forward(&query, &key, &value, mask)
    }

    fn linear(input: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        match linear(&input, &weight, [None, None]) {
            Some(output) => output,
            None => {
                let weight = crate::linear::alike::<Self>(weight, &input);
                Self::float_matmul(input, Self::float_transpose(weight))
            }
        }
    }

    fn linear_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let ([rows, outputs], [_, inputs]) = (grad.shape().dims(), weight.shape().dims());
        if !is_ours(&grad, &weight) || rows * inputs * outputs == 0 {
            Kernel::Burns.runs();
            return Self::float_matmul(grad, weight);
        }
        let (grad, weight) = (Contiguous::new(grad), Weight::of(&weight));
        let values = linear::input_grad(grad.values(), weight.stored(), outputs);
        tensor(values, Shape::new([rows, inputs]))
    }

    fn linear_weight_grad(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let ([rows, outputs], [_, inputs]) = (grad.shape().dims(), input.shape().dims());
        if input.dtype() != DType::F32 || rows * inputs * outputs == 0 {
            Kernel::Burns.runs();
            return Self::float_matmul(Self::float_transpose(grad), input);
        }
        let [input, grad] = [input, grad].map(Contiguous::new);
        let values = linear::weight_grad(input.values(), grad.values(), rows);
        tensor(values, Shape::new([outputs, inputs]))
    }

    fn linear_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if let Some(output) = linear(&input, &weight, [Some(&bias), None]) {
            return output;
        }
        crate::linear::biased::<Self>(<Self as Kernels>::linear(input, weight), bias)
    }

    fn linear_added(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match linear(&input, &weight, [Some(&bias), Some(&residual)]) {
            Some(output) => output,
            None => Self::float_add(residual, Self::linear_with_bias(input, weight, bias)),
        }
    }

    fn gated_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let [rows, twice] = input.shape().dims::<2>();
        if input.dtype() != DType::F32 || rows * twice == 0 {
            Kernel::Burns.runs();
            return gelu::gated::<Self>(input);
        }
        Kernel::Pointwise.runs();
        let input = Contiguous::new(input);
        let width = twice / 2;
        let mut output = vec![0.0f32; rows * width];
        let rows_per_task = rows_per_task(width);
        let input_rows = input.values().par_chunks(rows_per_task * twice);
        let tasks = output.par_chunks_mut(rows_per_task * width).zip(input_rows);
        tasks.for_each(|(output, input)| {
            for (output, input) in output.chunks_mut(width).zip(input.chunks(twice)) {
                let (values, gates) = input.split_at(width);
                gated_gelu_values(output, values, gates);
            }
        });
        tensor(output, Shape::new([rows, width]))
    }

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        convolution(&input, &weight, [None, None], window, false)
            .unwrap_or_else(|| burns_convolution(input, weight, window))
    }

    fn convolution_with_bias(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        let extras = [Some(&bias), None];
        convolution(&input, &weight, extras, window, is_rectified).unwrap_or_else(|| {
            let output = burns_convolution(input, weight, window);
            crate::convolution::finish::<Self>(output, bias, is_rectified)
        })
    }

    fn convolution_added(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        window: Window,
        is_rectified: bool,
    ) -> FloatTensor<Self> {
        let extras = [Some(&bias), Some(&residual)];
        convolution(&input, &weight, extras, window, is_rectified).unwrap_or_else(|| {
            let output = Self::float_add(residual, burns_convolution(input, weight, window));
            crate::convolution::finish::<Self>(output, bias, is_rectified)
        })
    }

    fn convolution_of_doubled(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if is_ours(&input, &weight) {
            let (input, weight) = (Contiguous::of(&input), Weight::of(&weight));
            let extras = [Some(Contiguous::of(&bias)), None];
            let epilogue = epilogue(&extras, false);
            let output = convolution::forward_doubled(&input, &weight, epilogue, window);
            if let Some(output) = output {
                return output;
            }
        }
        let input = <Self as Kernels>::doubled(input);
        Self::convolution_with_bias(input, weight, bias, window, false)
    }

    fn doubled(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = input.shape();
        if input.dtype() != DType::F32 || shape.num_elements() == 0 {
            Kernel::Burns.runs();
            return crate::convolution::doubled::<Self>(input);
        }
        Kernel::Pointwise.runs();
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
        if input.dtype() != DType::F32 || !convolution::can_turn(&weight.shape(), window) {
            Kernel::Burns.runs();
            return <Self as ModuleOps<Self>>::conv2d_x_backward(
                input,
                weight,
                grad,
                window.options(),
            );
        }
        let (weight, grad) = (Contiguous::new(weight), Contiguous::new(grad));
        convolution::input_grad(&weight, &grad, window)
    }

    fn convolution_weight_grad(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            Kernel::Burns.runs();
            return <Self as ModuleOps<Self>>::conv2d_weight_backward(
                input,
                weight,
                grad,
                window.options(),
            );
        }
        let (input, grad) = (Contiguous::new(input), Contiguous::new(grad));
        convolution::weight_grad(&input, &grad, weight.shape(), window)
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
            Kernel::Burns.runs();
            return group_norm::forward::<Self>(input, gamma, beta, groups, epsilon, activation);
        }
        Kernel::GroupNorm.runs();
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
            Kernel::Burns.runs();
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
            Kernel::Burns.runs();
            return layer_norm::forward::<Self>(input, gamma, beta, epsilon);
        }
        Kernel::LayerNorm.runs();
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
            Kernel::Burns.runs();
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

    fn softmax_of_rows(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let [rows, width] = input.shape().dims::<2>();
        if input.dtype() != DType::F32 || rows * width == 0 {
            Kernel::Burns.runs();
            return Self::softmax(input, 1);
        }
        Kernel::Pointwise.runs();
        let input = Contiguous::new(input);
        let at_once = rows_per_task(width) * width;
        let mut output = Vec::with_capacity(rows * width);
        output.spare_capacity_mut()[..rows * width]
            .par_chunks_mut(at_once)
            .zip(input.values().par_chunks(at_once))
            .for_each(|(output, input)| {
                let rows = output.chunks_mut(width).zip(input.chunks(width));
                rows.for_each(|(output, input)| softmax(output, input));
            });
        // SAFETY: the rows are all of the elements, and each was written.
        unsafe { output.set_len(rows * width) };
        tensor(output, input.shape())
    }

    fn silu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            Kernel::Burns.runs();
            return Self::float_mul(input.clone(), Self::sigmoid(input));
        }
        Kernel::Pointwise.runs();
        let input = Contiguous::new(input);
        let count = input.values().len();
        let mut output = Vec::with_capacity(count);
        output.spare_capacity_mut()[..count]
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(input.values().par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(output, input)| apply(output, input, 1.0, 0.0, Activation::Silu));
        // SAFETY: the chunks are all of the elements, and each was written.
        unsafe { output.set_len(count) };
        tensor(output, input.shape())
    }

    fn adamw(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [weight, first, second] = training::adamw(weight, [grad, first, second], update);
        (weight, first, second)
    }

    fn moved_towards(
        from: FloatTensor<Self>,
        to: FloatTensor<Self>,
        share: f64,
    ) -> FloatTensor<Self> {
        training::moved_towards(from, to, share)
    }

    fn sum_of_squares(values: FloatTensor<Self>) -> FloatTensor<Self> {
        let sum = training::sum_of_squares(Contiguous::new(values).values());
        tensor(vec![sum], Shape::new([1]))
    }

    fn exact_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            Kernel::Burns.runs();
            return <Self as ActivationOps<Self>>::gelu(input);
        }
        Kernel::Pointwise.runs();
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
            Kernel::Burns.runs();
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

/// `x·Wᵀ`, with bias and residual if there are; none if it is burn's to do.
fn linear(
    input: &FlexTensor,
    weight: &FlexTensor,
    extras: [Option<&FlexTensor>; 2],
) -> Option<FlexTensor> {
    let [rows, inputs] = input.shape().dims::<2>();
    let [outputs, _] = weight.shape().dims::<2>();
    if !is_ours(input, weight) || rows * inputs * outputs == 0 {
        Kernel::Burns.runs();
        return None;
    }
    let (input, weight) = (Contiguous::of(input), Weight::of(weight));
    let extras = extras.map(|extra| extra.map(Contiguous::of));
    let epilogue = epilogue(&extras, false);
    let values = linear::forward(input.values(), weight.stored(), inputs, epilogue);
    Some(tensor(values, Shape::new([rows, outputs])))
}

/// What follows a layer: a bias and a residual, if they are there.
fn epilogue(extras: &[Option<Contiguous>; 2], is_rectified: bool) -> Epilogue<'_> {
    let [bias, residual] = extras
        .each_ref()
        .map(|extra| extra.as_ref().map(Contiguous::values));
    Epilogue {
        bias,
        residual,
        is_rectified,
    }
}

/// Whether a layer's numbers are those that the kernels here compute with.
fn is_ours(input: &FlexTensor, weight: &FlexTensor) -> bool {
    input.dtype() == DType::F32 && Weight::is_readable(weight)
}

/// Convolution in f32, with bias and residual if there are; none if it is burn's to do.
fn convolution(
    input: &FlexTensor,
    weight: &FlexTensor,
    extras: [Option<&FlexTensor>; 2],
    window: Window,
    is_rectified: bool,
) -> Option<FlexTensor> {
    if !is_ours(input, weight) {
        Kernel::Burns.runs();
        return None;
    }
    let (input, weight) = (Contiguous::of(input), Weight::of(weight));
    let extras = extras.map(|extra| extra.map(Contiguous::of));
    let epilogue = epilogue(&extras, is_rectified);
    Some(convolution::forward(&input, &weight, epilogue, window))
}

/// Burn's convolution.
fn burns_convolution(input: FlexTensor, weight: FlexTensor, window: Window) -> FlexTensor {
    let weight = crate::linear::alike::<Flex>(weight, &input);
    <Flex as ModuleOps<Flex>>::conv2d(input, weight, None, window.options())
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

    fn of(tensor: &FlexTensor) -> Self {
        Self::new(tensor.clone())
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
