//! Convolution, and the image operations between convolutions.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use crate::composed::cast_like;
use crate::options::{Extras, Window};

/// burn's convolution. A bias shared by all images is added by burn's kernel.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    extras: Extras<B>,
    window: Window,
    relu: bool,
) -> FloatTensor<B> {
    let weight = cast_like::<B>(weight, &input);
    let (bias, residual) = extras.split();
    let (shared, own) = match bias {
        Some(bias) if bias.shape()[0] == 1 => (Some(flat::<B>(bias)), None),
        bias => (None, bias),
    };
    let output = B::conv2d(input, weight, shared, window.options());
    finish::<B>(output, Extras::new(own, residual), relu)
}

/// `[1, channels]` → `[channels]`
fn flat<B: Backend>(bias: FloatTensor<B>) -> FloatTensor<B> {
    let channels = bias.shape().num_elements();
    B::float_reshape(bias, Shape::new([channels]))
}

/// Adds bias and residual to the output of a convolution; then, with `relu`, sets negative values to 0.
pub(crate) fn finish<B: Backend>(
    output: FloatTensor<B>,
    extras: Extras<B>,
    relu: bool,
) -> FloatTensor<B> {
    let (bias, residual) = extras.split();
    let output = match residual {
        None => output,
        Some(residual) => B::float_add(residual, output),
    };
    let output = match bias {
        None => output,
        Some(bias) => {
            let [batch, channels] = bias.shape().dims::<2>();
            let bias = B::float_reshape(bias, Shape::new([batch, channels, 1, 1]));
            B::float_add(output, bias)
        }
    };
    if relu { B::relu(output) } else { output }
}

/// The gradient of the input, of which only the shape is needed.
pub(crate) fn input_grad<B: Backend>(
    shape: Shape,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    window: Window,
) -> FloatTensor<B> {
    let weight = cast_like::<B>(weight, &grad);
    let dtype = FloatDType::from(grad.dtype());
    // burn takes the input, but reads only its shape.
    let input = B::float_empty(shape, &grad.device(), dtype);
    B::conv2d_x_backward(input, weight, grad, window.options())
}

/// The gradient of the weight, of which only the shape is needed.
pub(crate) fn weight_grad<B: Backend>(
    input: FloatTensor<B>,
    shape: Shape,
    grad: FloatTensor<B>,
    window: Window,
) -> FloatTensor<B> {
    let dtype = FloatDType::from(grad.dtype());
    // burn takes the weight, but reads only its shape.
    let weight = B::float_empty(shape, &grad.device(), dtype);
    B::conv2d_weight_backward(input, weight, grad, window.options())
}

/// Nearest-neighbour upsampling by 2.
pub(crate) fn upsample_nearest_2x<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let shape = upsampled_shape(&input.shape());
    let [batch, channels, height, width] = input.shape().dims::<4>();
    let apart = Shape::new([batch, channels, height, 1, width, 1]);
    let twice = Shape::new([batch, channels, height, 2, width, 2]);
    let input = B::float_expand(B::float_reshape(input, apart), twice);
    B::float_reshape(input, shape)
}

pub(crate) fn upsampled_shape(input: &Shape) -> Shape {
    let [batch, channels, height, width] = input.dims::<4>();
    Shape::new([batch, channels, 2 * height, 2 * width])
}

#[cfg(feature = "fusion")]
pub(crate) fn joined_shape(first: &Shape, second: &Shape) -> Shape {
    let ([batch, channels, height, width], [_, more, _, _]) = (first.dims(), second.dims());
    Shape::new([batch, channels + more, height, width])
}
