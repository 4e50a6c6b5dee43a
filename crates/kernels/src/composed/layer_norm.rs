//! Layer normalisation.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use crate::composed::{narrow, widen};

/// The normalised values and the reciprocal of the standard deviation, in at least f32.
fn normalize<B: Backend>(input: FloatTensor<B>, epsilon: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = widen::<B>(input);
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 2));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 2);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let reciprocal = B::float_recip(deviation);
    (B::float_mul(centred, reciprocal.clone()), reciprocal)
}

fn per_element<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let width = tensor.shape().num_elements();
    B::float_reshape(widen::<B>(tensor), Shape::new([1, 1, width]))
}

/// Normalises rows.
pub(crate) fn forward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let dtype = FloatDType::from(input.dtype());
    let (normalized, _) = normalize::<B>(input, epsilon);
    let scaled = B::float_mul(normalized, per_element::<B>(gamma));
    narrow::<B>(B::float_add(scaled, per_element::<B>(beta)), dtype)
}

/// Gradients of input, gamma and beta: `dx = (dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)) / deviation` with
/// `dx̂ = γ·dy` and means over a row.
pub(crate) fn backward<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> [FloatTensor<B>; 3] {
    let dtype = FloatDType::from(input.dtype());
    let [_, _, width] = input.shape().dims::<3>();
    let (normalized, reciprocal) = normalize::<B>(input, epsilon);
    let grad = widen::<B>(grad);

    let row_sum = |tensor: FloatTensor<B>| {
        let sum = B::float_sum_dims(tensor, &[0, 1]);
        B::float_cast(B::float_reshape(sum, Shape::new([width])), dtype)
    };
    let gamma_grad = row_sum(B::float_mul(grad.clone(), normalized.clone()));
    let beta_grad = row_sum(grad.clone());

    let grad = B::float_mul(grad, per_element::<B>(gamma));
    let mean = B::float_mean_dim(grad.clone(), 2);
    let projection = B::float_mean_dim(B::float_mul(grad.clone(), normalized.clone()), 2);
    let grad = B::float_sub(
        B::float_sub(grad, mean),
        B::float_mul(normalized, projection),
    );
    let input_grad = B::float_cast(B::float_mul(grad, reciprocal), dtype);
    [input_grad, gamma_grad, beta_grad]
}
