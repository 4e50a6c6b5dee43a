//! Between the element types that weights come in.

use burn::tensor::{DType, TensorData, bf16, f16};
use half::slice::HalfFloatSliceExt;

/// Numbers below this are not worth a second thread.
const FEW: usize = 1 << 16;

/// The same numbers in another element type. Between half and full precision, which weights of gigabytes go through, by
/// whole registers and on two threads.
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
            Ok(numbers) => narrowed(numbers, shape, f16::ZERO, |from, to: &mut [f16]| {
                to.convert_from_f32_slice(from);
            }),
            Err(_) => data.convert_dtype(dtype),
        },
        (DType::F32, DType::BF16) => match data.as_slice::<f32>() {
            Ok(numbers) => narrowed(numbers, shape, bf16::ZERO, |from, to: &mut [bf16]| {
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

fn narrowed<T: burn::tensor::Element + Send>(
    numbers: &[f32],
    shape: Vec<usize>,
    zero: T,
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) -> TensorData {
    TensorData::new(filled(numbers, zero, convert), shape)
}

/// What `convert` makes of numbers, half of them on each of two threads.
fn filled<A: Sync, B: Clone + Send>(
    from: &[A],
    zero: B,
    convert: impl Fn(&[A], &mut [B]) + Sync,
) -> Vec<B> {
    let mut to = vec![zero; from.len()];
    if from.len() < FEW {
        convert(from, &mut to);
        return to;
    }
    let middle = from.len() / 2;
    let (first, second) = (from.split_at(middle), to.split_at_mut(middle));
    std::thread::scope(|scope| {
        scope.spawn(|| convert(first.0, second.0));
        convert(first.1, second.1);
    });
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back_and_is_what_burn_makes_of_it() {
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
