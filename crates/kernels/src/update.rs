//! Optimiser updates of whole parameters; on the CPU, each is one pass over memory, in place.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::backend::Kernels;
use crate::options::AdamWUpdate;

/// The weight and its moments after an update: `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
/// `w ← f·w − rate·m/(√v/c + ε)`.
///
/// # Shapes
///
/// - weight, grad, moments and results: `[size]`, f32
///
/// # Panics
///
/// If sizes differ, or a dtype is not f32.
#[track_caller]
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

/// Linear interpolation, `start + factor·(end − start)`. Elements that are equal in both are returned unchanged, bit for bit.
///
/// # Shapes
///
/// - start, end and result: `[size]`, f32
///
/// # Panics
///
/// If sizes differ, or a dtype is not f32.
#[track_caller]
pub fn lerp(start: Tensor<1>, end: Tensor<1>, factor: f64) -> Tensor<1> {
    check(&start, &end);
    let (start, end) = (start.into_dispatch(), end.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::lerp(start, end, factor))
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
/// If the dtype is not f32.
#[track_caller]
pub fn sum_of_squares(values: Tensor<1>) -> Tensor<1> {
    check(&values, &values);
    Tensor::from_dispatch(<Dispatch as Kernels>::sum_of_squares(
        values.into_dispatch(),
    ))
}

#[track_caller]
fn check(one: &Tensor<1>, other: &Tensor<1>) {
    assert_eq!(one.dims(), other.dims(), "the sizes differ");
    assert_eq!(
        [one.dtype(), other.dtype()],
        [DType::F32; 2],
        "parameters are trained in f32"
    );
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{assert_close, assert_values_close, device, random, values};

    use super::*;

    /// More than one task, and not a whole number of vectors.
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
        let before = [&weight, &grad, &first, &second].map(|tensor| values(tensor.clone()));
        let (weight, moments) = adamw(weight, grad, [first, second], update);
        let [w, g, m, v] = before
            .each_ref()
            .map(|values| values.iter().map(|x| f64::from(*x)));
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
    fn interpolation_moves_by_the_factor() {
        let [from, to] = draw();
        // A slice of a longer tensor with shared storage.
        let part = lerp(
            from.clone().narrow(0, 5, 100),
            to.clone().narrow(0, 7, 100),
            0.5,
        );
        let expected = from.clone().narrow(0, 5, 100) + to.clone().narrow(0, 7, 100);
        assert_close(part, expected * 0.5, 1e-6);
        let found = lerp(from.clone(), to.clone(), 0.25);
        assert_close(found, from.clone() * 0.75 + to * 0.25, 1e-6);
        let still = lerp(from.clone(), from.clone(), 0.1);
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
