use burn::tensor::{DType, TensorData};

use crate::parallel::n_threads;

/// Returns whether a tensor contains no NaN and no infinity. Always true for integers.
pub fn is_finite(data: &TensorData) -> bool {
    // NaNs and infinities have all exponent bits set, and without the sign bit, the bits of floats sort like their values.
    match data.dtype() {
        DType::F32 => all_below(
            data.as_bytes(),
            |bytes| u32::from_le_bytes(bytes) << 1,
            0xff << 24,
        ),
        DType::F16 => all_below(
            data.as_bytes(),
            |bytes| u16::from_le_bytes(bytes) << 1,
            0x1f << 11,
        ),
        DType::BF16 => all_below(
            data.as_bytes(),
            |bytes| u16::from_le_bytes(bytes) << 1,
            0xff << 8,
        ),
        dtype if dtype.is_float() => data.iter::<f64>().all(f64::is_finite),
        _ => true,
    }
}

/// Returns whether all values are less than `bound`.
fn all_below<const N: usize, T: Ord + Copy + Default + Send + Sync>(
    bytes: &[u8],
    value: impl Fn([u8; N]) -> T + Sync,
    bound: T,
) -> bool {
    const BLOCK: usize = 1 << 14;
    let (values, _) = bytes.as_chunks::<N>();
    let below = |values: &[[u8; N]]| {
        // The maximum over a block vectorises; a loop with an early exit would not.
        values.chunks(BLOCK).all(|block| {
            let largest = block
                .iter()
                .fold(T::default(), |max, bytes| max.max(value(*bytes)));
            largest < bound
        })
    };
    let part = values.len().div_ceil(n_threads(values.len())).max(1);
    let mut parts = values.chunks(part);
    let last = parts.next_back().unwrap_or_default();
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(|| below(part))).collect();
        let is_below = below(last);
        others
            .into_iter()
            .all(|part| part.join().unwrap_or_default())
            && is_below
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_found_in_every_part() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let count = 300_000;
            for at in [0, 70_000, 150_000, count - 1] {
                let mut values = vec![1.0f32; count];
                let all = TensorData::new(values.clone(), [count]).convert_dtype(dtype);
                assert!(is_finite(&all), "{dtype:?}");
                values[at] = f32::NAN;
                let bad = TensorData::new(values, [count]).convert_dtype(dtype);
                assert!(!is_finite(&bad), "{dtype:?} at {at}");
            }
        }
        assert!(is_finite(&TensorData::from([i64::MAX])));
    }
}
