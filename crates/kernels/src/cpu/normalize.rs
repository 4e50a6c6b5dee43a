//! Group and layer normalisation, and their gradients.
#![allow(
    unsafe_code,
    reason = "outputs are not cleared before they are written"
)]

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::loops::{
    Moments, apply, grad_before_affine, grad_of_input, layer_norm_rows, layer_norm_rows_grad,
};
use crate::cpu::tensor::{F32, rows_per_task, tensor, written_in_chunks};
use crate::options::GroupNormOptions;

/// The groups, planes and elements of `[batch, channels, height, width]`.
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

    /// The channels of a group, where groups are numbered over the whole batch.
    fn channels_of(&self, group: usize) -> Range<usize> {
        let first = group * self.channels_per_group % self.channels;
        first..first + self.channels_per_group
    }

    /// The elements of a group.
    fn elements_of(&self, group: usize) -> Range<usize> {
        group * self.group_len()..(group + 1) * self.group_len()
    }
}

/// Group normalisation with one task per group: two passes for its moments while it is in cache, and one that writes.
pub(crate) fn group_norm(
    input: &F32,
    gamma: &F32,
    beta: &F32,
    options: GroupNormOptions,
) -> FlexTensor {
    Kernel::GroupNorm.count();
    let geometry = Geometry::new(&input.shape(), options.groups);
    let (values, gamma, beta) = (input.values(), gamma.values(), beta.values());
    // SAFETY: `apply` writes every element of every plane, and a group consists of planes.
    let output = unsafe {
        written_in_chunks(values.len(), geometry.group_len(), |group, output| {
            let input = &values[geometry.elements_of(group)];
            let moments = Moments::of(input, options.epsilon);
            let planes = output
                .chunks_mut(geometry.plane)
                .zip(input.chunks(geometry.plane));
            for (channel, (output, input)) in geometry.channels_of(group).zip(planes) {
                let scale = moments.reciprocal_deviation * gamma[channel];
                let shift = beta[channel] - moments.mean * scale;
                apply(output, input, scale, shift, options.activation);
            }
        })
    };
    tensor(output, input.shape())
}

/// Gradients of input, gamma and beta.
pub(crate) fn group_norm_grads(
    input: &F32,
    gamma: &F32,
    beta: &F32,
    grad: &F32,
    options: GroupNormOptions,
) -> [FlexTensor; 3] {
    let geometry = Geometry::new(&input.shape(), options.groups);
    let group = Groups {
        geometry: &geometry,
        input: input.values(),
        gamma: gamma.values(),
        beta: beta.values(),
        grad: grad.values(),
        options,
    };
    let mut input_grad = vec![0.0f32; input.values().len()];
    // Σ dy·x̂ and Σ dy of each image and channel.
    let mut sums = vec![(0.0f32, 0.0f32); geometry.batch * geometry.channels];
    input_grad
        .par_chunks_mut(geometry.group_len())
        .zip(sums.par_chunks_mut(geometry.channels_per_group))
        .enumerate()
        .for_each(|(index, (output, sums))| group.grad(index, output, sums));

    let mut parameter_grads = [0, 1].map(|_| vec![0.0f32; geometry.channels]);
    for image in sums.chunks(geometry.channels) {
        for (channel, sum) in image.iter().enumerate() {
            parameter_grads[0][channel] += sum.0;
            parameter_grads[1][channel] += sum.1;
        }
    }
    let [gamma_grad, beta_grad] =
        parameter_grads.map(|grad| tensor(grad, Shape::new([geometry.channels])));
    [tensor(input_grad, input.shape()), gamma_grad, beta_grad]
}

/// The inputs of the gradient of a group.
struct Groups<'a> {
    geometry: &'a Geometry,
    input: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    grad: &'a [f32],
    options: GroupNormOptions,
}

impl Groups<'_> {
    /// Writes the gradient of a group's input, and Σ dy·x̂ and Σ dy for each of its channels.
    fn grad(&self, group: usize, output: &mut [f32], sums: &mut [(f32, f32)]) {
        let geometry = self.geometry;
        let input = &self.input[geometry.elements_of(group)];
        let grad = &self.grad[geometry.elements_of(group)];
        let moments = Moments::of(input, self.options.epsilon);
        let plane = |i: usize| i * geometry.plane..(i + 1) * geometry.plane;
        let activation = self.options.activation;

        let (mut mean, mut projection) = (0.0f64, 0.0f64);
        for (i, (channel, sums)) in geometry.channels_of(group).zip(sums).enumerate() {
            let (gamma, beta) = (self.gamma[channel], self.beta[channel]);
            let (output, input, grad) = (&mut output[plane(i)], &input[plane(i)], &grad[plane(i)]);
            *sums = grad_before_affine(output, input, grad, moments, gamma, beta, activation);
            projection += f64::from(gamma * sums.0);
            mean += f64::from(gamma * sums.1);
        }
        let len = geometry.group_len() as f64;
        let (mean, projection) = ((mean / len) as f32, (projection / len) as f32);
        for (i, channel) in geometry.channels_of(group).enumerate() {
            let (output, input) = (&mut output[plane(i)], &input[plane(i)]);
            grad_of_input(
                output,
                input,
                moments,
                self.gamma[channel],
                mean,
                projection,
            );
        }
    }
}

/// Layer normalisation with about [`ELEMENTS_PER_TASK`](crate::cpu::tensor::ELEMENTS_PER_TASK) elements of whole rows per task.
pub(crate) fn layer_norm(input: &F32, gamma: &F32, beta: &F32, epsilon: f64) -> FlexTensor {
    Kernel::LayerNorm.count();
    let (values, gamma, beta) = (input.values(), gamma.values(), beta.values());
    let chunk = rows_per_task(gamma.len()) * gamma.len();
    // SAFETY: every row is written whole, and a chunk consists of rows.
    let output = unsafe {
        written_in_chunks(values.len(), chunk, |index, output| {
            let input = &values[index * chunk..][..output.len()];
            layer_norm_rows(output, input, gamma, beta, epsilon);
        })
    };
    tensor(output, input.shape())
}

/// Gradients of input, gamma and beta.
pub(crate) fn layer_norm_grads(
    input: &F32,
    gamma: &F32,
    grad: &F32,
    epsilon: f64,
) -> [FlexTensor; 3] {
    let gamma = gamma.values();
    let (width, rows) = (gamma.len(), rows_per_task(gamma.len()));
    let mut input_grad = vec![0.0f32; input.values().len()];
    // Collected in order, so that the sums do not depend on which thread finishes first.
    let partial: Vec<_> = input_grad
        .par_chunks_mut(rows * width)
        .zip(input.values().par_chunks(rows * width))
        .zip(grad.values().par_chunks(rows * width))
        .map(|((output, input), grad)| {
            let [mut gamma_grad, mut beta_grad] = [0, 1].map(|_| vec![0.0; width]);
            let parameters = [&mut gamma_grad[..], &mut beta_grad[..]];
            layer_norm_rows_grad(output, input, grad, gamma, epsilon, parameters);
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
    [tensor(input_grad, input.shape()), gamma_grad, beta_grad]
}
