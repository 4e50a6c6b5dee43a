//! Conversions between the element types of weights.

use burn::tensor::{DType, Element, TensorData, bf16, f16};
use half::slice::HalfFloatSliceExt;

use crate::parallel::n_threads;

/// Converts values to another element type. Conversions between half and full precision, which process gigabytes of
/// weights, are vectorised and use all threads.
pub(crate) fn converted(data: TensorData, dtype: DType) -> TensorData {
    if data.dtype() == dtype {
        return data;
    }
    let shape = data.shape().to_vec();
    match (data.dtype(), dtype) {
        (DType::F16, DType::F32) => match data.as_slice::<f16>() {
            Ok(halves) => widened(halves, shape, |from, to| from.convert_to_f32_slice(to)),
            Err(_) => data.convert_dtype(dtype),
        },
        (DType::BF16, DType::F32) => match data.as_slice::<bf16>() {
            Ok(halves) => widened(halves, shape, |from, to| from.convert_to_f32_slice(to)),
            Err(_) => data.convert_dtype(dtype),
        },
        (DType::F32, DType::F16) => match data.as_slice::<f32>() {
            Ok(values) => narrowed(values, shape, f16::ZERO, |from, to: &mut [f16]| {
                to.convert_from_f32_slice(from);
            }),
            Err(_) => data.convert_dtype(dtype),
        },
        (DType::F32, DType::BF16) => match data.as_slice::<f32>() {
            Ok(values) => narrowed(values, shape, bf16::ZERO, |from, to: &mut [bf16]| {
                to.convert_from_f32_slice(from);
            }),
            Err(_) => data.convert_dtype(dtype),
        },
        _ => data.convert_dtype(dtype),
    }
}

fn widened<T: Sync>(
    halves: &[T],
    shape: Vec<usize>,
    convert: impl Fn(&[T], &mut [f32]) + Sync,
) -> TensorData {
    TensorData::new(filled(halves, 0.0f32, convert), shape)
}

fn narrowed<T: Element + Send>(
    values: &[f32],
    shape: Vec<usize>,
    zero: T,
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) -> TensorData {
    TensorData::new(filled(values, zero, convert), shape)
}

/// Applies `convert` on all threads, each with an equal share of the values.
fn filled<A: Sync, B: Clone + Send>(
    from: &[A],
    zero: B,
    convert: impl Fn(&[A], &mut [B]) + Sync,
) -> Vec<B> {
    let mut to = vec![zero; from.len()];
    let part = from.len().div_ceil(n_threads(from.len())).max(1);
    let mut parts = from.chunks(part).zip(to.chunks_mut(part));
    let last = parts.next_back();
    std::thread::scope(|scope| {
        for (from, to) in parts {
            scope.spawn(|| convert(from, to));
        }
        if let Some((from, to)) = last {
            convert(from, to);
        }
    });
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::FEW;

    #[test]
    fn every_half_survives_a_round_trip_and_equals_burns_conversion() {
        for dtype in [DType::F16, DType::BF16] {
            let bytes: Vec<u8> = (0..=u16::MAX)
                .cycle()
                .take(3 * FEW)
                .flat_map(u16::to_le_bytes)
                .collect();
            let halves = TensorData::from_bytes_vec(bytes, [3, FEW], dtype);
            let wide = converted(halves.clone(), DType::F32);
            let expected: Vec<f32> = halves.clone().convert_dtype(DType::F32).iter().collect();
            let found: Vec<f32> = wide.iter().collect();
            let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
            assert!(found.iter().zip(&expected).all(same), "{dtype:?}");
            let again: Vec<f32> = converted(wide, dtype)
                .convert_dtype(DType::F32)
                .iter()
                .collect();
            assert!(again.iter().zip(&expected).all(same), "{dtype:?}");
        }
    }
}
