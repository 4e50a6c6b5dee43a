//! The codes of a token.

use crate::cpu::loops::vectorized;
use crate::int8::{Scale, magnitude, nearest};

/// Makes codes unsigned: adding 128 flips the highest bit.
const FLIP: u8 = 0x80;

/// The code of a value plus 128.
#[inline(always)]
pub(super) fn code(value: f32, factor: f32) -> u8 {
    nearest(value, factor) ^ FLIP
}

vectorized! {
    /// Writes the codes of a row plus 128, and zeros after its end; returns its scale.
    pub(super) fn quantize(row: &[f32], codes: &mut [u8]) -> f32 {
        let largest = row.iter().fold(0, |largest, x| magnitude(*x).max(largest));
        let Scale { scale, factor } = Scale::new(largest);
        let (codes, rest) = codes.split_at_mut(row.len());
        codes.iter_mut().zip(row).for_each(|(to, x)| *to = code(*x, factor));
        rest.fill(0);
        scale
    }
}

vectorized! {
    /// Writes the codes of a row less `means`, as the bytes of i8, and zeros after its end; returns its scale and the sum of its
    /// codes.
    pub(super) fn quantize_centered(row: &[f32], means: &[f32], codes: &mut [u8]) -> (f32, f32) {
        let pairs = row.iter().zip(means);
        let largest = pairs.clone().fold(0, |largest, (x, mean)| magnitude(x - mean).max(largest));
        let Scale { scale, factor } = Scale::new(largest);
        let (codes, rest) = codes.split_at_mut(row.len());
        let mut sum = 0;
        for (code, (x, mean)) in codes.iter_mut().zip(pairs) {
            *code = nearest(x - mean, factor);
            sum += i32::from(code.cast_signed());
        }
        rest.fill(0);
        (scale, sum as f32)
    }
}
