#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// Codes of −127 to 127 or, with `extreme`, only those two.
fn draw(count: usize, seed: u64, extreme: bool) -> Vec<i8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match extreme {
            true => 127 * (state % 2 * 2) as i32 - 127,
            false => (state % 255) as i32 - 127,
        }
    };
    std::iter::repeat_with(next)
        .map(|code| code as i8)
        .take(count)
        .collect()
}

fn kinds() -> Vec<unsafe fn(Product<'_>)> {
    let mut kinds: Vec<unsafe fn(Product<'_>)> = vec![|product| unsafe { product.portable() }];
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    kinds.push(|product| unsafe { wasm32::with_simd128(product) });
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        if is_x86_feature_detected!("avx2") {
            kinds.push(|product| unsafe { x86::with_avx2(product) });
        }
        if is_x86_feature_detected!("avx2") && x86::has_avx_vnni() {
            kinds.push(|product| unsafe { x86::with_avx_vnni(product) });
        }
        if is_x86_feature_detected!("avx512bw") && x86::has_avx512_vnni() {
            kinds.push(|product| unsafe { x86::with_avx512_vnni(product) });
        }
    }
    kinds
}

/// Sums in i64, and the same operations in f32 in the same order.
fn check(rows: usize, inputs: usize, taps: &[usize], count: usize, extreme: bool) {
    let (column, depth) = (3, inputs.div_ceil(CODES));
    let line = column + count.next_multiple_of(16) + taps.iter().max().unwrap();
    let weight = draw(rows * taps.len() * inputs, 1, extreme);
    let input = draw(inputs * line, 2, extreme);
    let scale = |index: usize| 0.01 + index as f32 * 0.37;
    let scales: Vec<f32> = (0..rows).map(scale).collect();
    let column_scales: Vec<f32> = (0..line).map(scale).collect();
    let sums: Vec<f32> = weight
        .chunks(inputs)
        .map(|codes| codes.iter().map(|x| f32::from(*x)).sum())
        .collect();
    let words: Vec<f32> = (0..depth * line)
        .map(|place| {
            let code = |i: usize| input.get((place / line * CODES + i) * line + place % line);
            let byte = |i: usize| code(i).map_or(0, |x| x.cast_unsigned() ^ 0x80);
            f32::from_ne_bytes(std::array::from_fn(byte))
        })
        .collect();
    let packed = Packed {
        words: &words,
        scales: &column_scales,
        line,
    };
    let int8 = Int8 {
        codes: &weight,
        scales: &scales,
        sums: &sums,
        inputs,
        taps: taps.len(),
    };
    let mut expected = vec![0.0; rows * STRIDE];
    for (place, expected) in expected.iter_mut().enumerate() {
        let (row, at) = (place / STRIDE, place % STRIDE);
        for (tap, &offset) in taps.iter().enumerate() {
            let column = column + at + offset;
            let products = (0..inputs).filter(|_| at < count).map(|k| {
                let weight = weight[(row * taps.len() + tap) * inputs + k];
                i64::from(weight) * i64::from(input[k * line + column])
            });
            let sum: i64 = products.sum();
            *expected += sum as f32 * column_scales.get(column).unwrap_or(&0.0);
        }
        *expected *= scales[row];
    }
    let mut padded = Scratch::default();
    let group = Group::new(&int8, 0..rows, &mut padded);
    for kind in kinds() {
        let mut found = vec![0.0; rows * STRIDE];
        let product = Product::new(
            &group,
            packed,
            taps,
            (column..column + count).into(),
            &mut found,
        );
        // SAFETY: the sizes have been checked, and the CPU has the features of the kind.
        unsafe { kind(product) };
        for (found, expected) in found.chunks(STRIDE).zip(expected.chunks(STRIDE)) {
            assert_eq!(found[..count], expected[..count], "{rows}×{inputs}×{count}");
        }
    }
}

#[test]
fn all_vectors_give_the_exact_product() {
    for count in [1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64] {
        for (rows, inputs) in [(1, 1), (5, 3), (17, 4), (48, 37)] {
            check(rows, inputs, &[0], count, false);
        }
    }
    check(7, 12, &[0, 1, 2, 20, 21, 22, 40, 41, 42], 64, false);
    check(3, 5, &[2, 0], 20, false);
}

#[test]
fn no_sum_saturates() {
    for inputs in [2, 4, 64, 5120] {
        check(4, inputs, &[0], 16, true);
    }
}
