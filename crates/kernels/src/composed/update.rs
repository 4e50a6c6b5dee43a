//! Updates of whole parameters.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use crate::options::AdamWUpdate;

/// Weight, first and second moment after an update.
pub(crate) fn adamw<B: Backend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    update: AdamWUpdate,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let times = |tensor, factor: f64| B::float_mul_scalar(tensor, factor.into());
    let AdamWUpdate { beta1, beta2, .. } = update;
    let grad = times(grad, update.grad_factor);
    let square = B::float_mul(grad.clone(), grad.clone());
    let first = B::float_add(times(first, beta1), times(grad, 1.0 - beta1));
    let second = B::float_add(times(second, beta2), times(square, 1.0 - beta2));
    let deviation = B::float_sqrt(second.clone());
    let deviation = B::float_div_scalar(deviation, update.deviation_correction.into());
    let deviation = B::float_add_scalar(deviation, update.epsilon.into());
    let step = times(B::float_div(first.clone(), deviation), update.rate);
    let weight = B::float_sub(times(weight, update.weight_factor), step);
    (weight, first, second)
}

/// `start + factor·(end − start)`
pub(crate) fn lerp<B: Backend>(
    start: FloatTensor<B>,
    end: FloatTensor<B>,
    factor: f64,
) -> FloatTensor<B> {
    let difference = B::float_sub(end, start.clone());
    B::float_add(start, B::float_mul_scalar(difference, factor.into()))
}

/// The sum of all squares.
pub(crate) fn sum_of_squares<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum(B::float_mul(values.clone(), values))
}
