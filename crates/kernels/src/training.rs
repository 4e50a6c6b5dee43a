//! What an optimiser does with whole parameters, each in one pass over memory where the backend has one.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch};
use burn::tensor::{DType, Tensor};

use crate::backend::Kernels;

/// The numbers of one update of AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWUpdate {
    /// What the gradient is multiplied by first.
    pub grad_factor: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// What the weight is multiplied by: one less learning rate times weight decay.
    pub weight_factor: f64,
    /// Learning rate over `1 − β₁ᵗ`.
    pub rate: f64,
    /// `√(1 − β₂ᵗ)`.
    pub deviation_correction: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// The weight and its moments after an update: `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
/// `w ← f·w − rate·m/(√v/c + ε)`.
///
/// # Shapes
///
/// - weight, grad, moments and what is returned: `[size]`, f32
///
/// # Panics
///
/// If sizes or dtypes differ from that.
pub fn adamw(
    weight: Tensor<1>,
    grad: Tensor<1>,
    moments: [Tensor<1>; 2],
    update: AdamWUpdate,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let [first, second] = moments;
    for tensor in [&grad, &first, &second] {
        check(&weight, tensor);
    }
    let (weight, first, second) = <Dispatch as Kernels>::adamw(
        weight.into_dispatch(),
        grad.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        update,
    );
    let moments = [first, second].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(weight), moments)
}

/// `from + share·(to − from)`: where the two are alike they stay so, to the bit.
///
/// # Shapes
///
/// - from, to and what is returned: `[size]`, f32
///
/// # Panics
///
/// If sizes or dtypes differ from that.
pub fn moved_towards(from: Tensor<1>, to: Tensor<1>, share: f64) -> Tensor<1> {
    check(&from, &to);
    let (from, to) = (from.into_dispatch(), to.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::moved_towards(from, to, share))
}

/// The sum of all squares.
///
/// # Shapes
///
/// - values: `[size]`, f32
/// - returns: `[1]`
///
/// # Panics
///
/// If the dtype differs from that.
pub fn sum_of_squares(values: Tensor<1>) -> Tensor<1> {
    check(&values, &values);
    Tensor::from_dispatch(<Dispatch as Kernels>::sum_of_squares(
        values.into_dispatch(),
    ))
}

fn check(one: &Tensor<1>, other: &Tensor<1>) {
    assert_eq!(one.dims(), other.dims(), "the sizes differ");
    assert_eq!(
        [one.dtype(), other.dtype()],
        [DType::F32; 2],
        "parameters are trained in f32"
    );
}

pub(crate) fn composed_adamw<B: Backend>(
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
    let moved = times(B::float_div(first.clone(), deviation), update.rate);
    let weight = B::float_sub(times(weight, update.weight_factor), moved);
    (weight, first, second)
}

pub(crate) fn composed_moved_towards<B: Backend>(
    from: FloatTensor<B>,
    to: FloatTensor<B>,
    share: f64,
) -> FloatTensor<B> {
    let difference = B::float_sub(to, from.clone());
    B::float_add(from, B::float_mul_scalar(difference, share.into()))
}

pub(crate) fn composed_sum_of_squares<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum(B::float_mul(values.clone(), values))
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, assert_values_close, device, random, values};

    use super::*;

    /// More than one thread's share, and not a whole number of vectors.
    const SIZE: usize = 70_001;

    fn draw<const N: usize>() -> [Tensor<1>; N] {
        std::array::from_fn(|seed| random([SIZE], seed as u64, &device()))
    }

    #[test]
    fn an_update_is_that_of_the_paper() {
        let [weight, grad, first, second] = draw();
        let second = second.powi_scalar(2);
        let update = AdamWUpdate {
            grad_factor: 0.5,
            beta1: 0.9,
            beta2: 0.99,
            weight_factor: 0.75,
            rate: 0.1,
            deviation_correction: 0.3,
            epsilon: 1e-2,
        };
        let numbers = [&weight, &grad, &first, &second].map(|tensor| values(tensor.clone()));
        let (weight, moments) = adamw(weight, grad, [first, second], update);
        let [w, g, m, v] = numbers
            .each_ref()
            .map(|numbers| numbers.iter().map(|x| f64::from(*x)));
        let expected = w.zip(g).zip(m.zip(v)).map(|((w, g), (m, v))| {
            let g = 0.5 * g;
            let (m, v) = (0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g);
            [0.75 * w - 0.1 * m / (v.sqrt() / 0.3 + 1e-2), m, v].map(|x| x as f32)
        });
        let expected: Vec<_> = expected.collect();
        let [first, second] = moments;
        for (which, found) in [weight, first, second].into_iter().enumerate() {
            let expected: Vec<f32> = expected.iter().map(|triple| triple[which]).collect();
            assert_values_close(&values(found), &expected, 1e-6);
        }
    }

    #[test]
    fn an_average_moves_by_its_share() {
        let [from, to] = draw();
        // A part of a longer tensor, and one that is held elsewhere too.
        let part = moved_towards(
            from.clone().narrow(0, 5, 100),
            to.clone().narrow(0, 7, 100),
            0.5,
        );
        let expected = from.clone().narrow(0, 5, 100) + to.clone().narrow(0, 7, 100);
        assert_close(part, expected * 0.5, 1e-6);
        let found = moved_towards(from.clone(), to.clone(), 0.25);
        assert_close(found, from.clone() * 0.75 + to * 0.25, 1e-6);
        let still = moved_towards(from.clone(), from.clone(), 0.1);
        assert_eq!(values(still), values(from));
    }

    #[test]
    fn squares_are_summed() {
        let [tensor] = draw();
        let squares = values(tensor.clone())
            .into_iter()
            .map(|x| f64::from(x).powi(2));
        let expected = squares.sum::<f64>() as f32;
        assert_values_close(&values(sum_of_squares(tensor)), &[expected], 1e-6);
    }
}
