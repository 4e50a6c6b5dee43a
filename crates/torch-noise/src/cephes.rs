//! Logarithm, sine and cosine in f32 as in PyTorch's vectorised code for x86 (AVX2 with FMA): the polynomials of the
//! Cephes library (S. L. Moshier, 1992), with the same order of operations.
//!
//! The last bits of the noise depend on which multiplications are fused, so they are the same as in PyTorch.

/// Natural logarithm of a positive normal number.
pub(crate) fn ln(x: f32) -> f32 {
    /// ln 2, as the sum of a number with few bits and a small remainder.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // x = 2ᵉ·(1 + m) with 1 + m between √½ and √2.
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 126;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0.5f32.to_bits());
    let (exponent, m) = if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        (exponent - 1, (mantissa - 1.0) + mantissa)
    } else {
        (exponent, mantissa - 1.0)
    };
    let (exponent, square) = (exponent as f32, m * m);
    let cubic = polynomial(&COEFFICIENTS, m) * m;
    let rest = cubic.mul_add(square, exponent * LN_2[1]);
    let rest = square.mul_add(-0.5, rest);
    exponent.mul_add(LN_2[0], m + rest)
}

/// Sine and cosine of a small non-negative angle.
pub(crate) fn sin_cos(x: f32) -> (f32, f32) {
    /// −π/4, as the sum of two numbers with few bits and a small remainder.
    const QUARTER: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    // Subtracts the nearest even multiple of π/4.
    let octant = ((x * std::f32::consts::FRAC_2_PI * 2.0) as i32 + 1) & !1;
    let x = QUARTER
        .into_iter()
        .fold(x, |x, part| (octant as f32).mul_add(part, x));
    let square = x * x;
    let cos = polynomial(&COS, square) * square;
    let cos = cos.mul_add(square, -(square * 0.5)) + 1.0;
    let sin = (polynomial(&SIN, square) * square).mul_add(x, x);
    match octant & 6 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Evaluates a polynomial by Horner's rule with fused multiply-adds, highest power first.
fn polynomial(coefficients: &[f32], x: f32) -> f32 {
    let terms = coefficients.iter().copied();
    terms
        .reduce(|sum, next| sum.mul_add(x, next))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_approximate_logarithm_sine_and_cosine() {
        for i in 1..=10_000 {
            let share = i as f32 / 10_000.0;
            assert!((ln(share) - share.ln()).abs() <= 2.0 * f32::EPSILON * share.ln().abs());
            let angle = share * std::f32::consts::TAU;
            let ((sin, cos), exact) = (sin_cos(angle), f64::from(angle).sin_cos());
            assert!((f64::from(sin) - exact.0).abs() < 2e-7, "sine of {angle}");
            assert!((f64::from(cos) - exact.1).abs() < 2e-7, "cosine of {angle}");
        }
    }
}
