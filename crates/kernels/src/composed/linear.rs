//! The linear layer.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use crate::composed::cast_like;
use crate::options::Extras;

/// `r + (x·Wᵀ + b)`, with optional bias and residual.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    extras: Extras<B>,
) -> FloatTensor<B> {
    let weight = cast_like::<B>(weight, &input);
    finish::<B>(B::float_matmul(input, B::float_transpose(weight)), extras)
}

/// Adds bias and residual to a product.
pub(crate) fn finish<B: Backend>(product: FloatTensor<B>, extras: Extras<B>) -> FloatTensor<B> {
    let (bias, residual) = extras.split();
    let output = match bias {
        None => product,
        Some(bias) => {
            let outputs = bias.shape().num_elements();
            B::float_add(product, B::float_reshape(bias, Shape::new([1, outputs])))
        }
    };
    match residual {
        None => output,
        Some(residual) => B::float_add(residual, output),
    }
}

/// `dy·W`
pub(crate) fn input_grad<B: Backend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let weight = cast_like::<B>(weight, &grad);
    B::float_matmul(grad, weight)
}

/// `dyᵀ·x`
pub(crate) fn weight_grad<B: Backend>(
    input: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_matmul(B::float_transpose(grad), input)
}
