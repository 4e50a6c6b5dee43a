//! 8-bit floating-point formats, which are widened to half precision.

use burn::tensor::f16;
use safetensors::tensor::Dtype;

/// An 8-bit floating-point format, whose values are all representable in f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float8 {
    /// 4 exponent bits, 3 mantissa bits, no infinities (arXiv 2209.05433).
    E4M3,
    /// 5 exponent bits, 2 mantissa bits: the upper half of an f16.
    E5M2,
    /// E4M3 with a bias of 8, and without −0 and infinities (arXiv 2206.02915).
    E4M3Fnuz,
    /// E5M2 with a bias of 16, and without −0 and infinities.
    E5M2Fnuz,
}

impl Float8 {
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8_E4M3 => Some(Self::E4M3),
            Dtype::F8_E5M2 => Some(Self::E5M2),
            Dtype::F8_E4M3FNUZ => Some(Self::E4M3Fnuz),
            Dtype::F8_E5M2FNUZ => Some(Self::E5M2Fnuz),
            _ => None,
        }
    }

    /// The format of a PyTorch element type, named without `torch.`.
    pub(crate) fn of_torch(dtype: &str) -> Option<Self> {
        match dtype {
            "float8_e4m3fn" => Some(Self::E4M3),
            "float8_e5m2" => Some(Self::E5M2),
            "float8_e4m3fnuz" => Some(Self::E4M3Fnuz),
            "float8_e5m2fnuz" => Some(Self::E5M2Fnuz),
            _ => None,
        }
    }

    /// The name of the format in safetensors files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::E4M3 => "F8_E4M3",
            Self::E5M2 => "F8_E5M2",
            Self::E4M3Fnuz => "F8_E4M3FNUZ",
            Self::E5M2Fnuz => "F8_E5M2FNUZ",
        }
    }

    /// Widens values to f16, exactly.
    pub(crate) fn widen(self, bytes: &[u8]) -> Vec<f16> {
        let table: [f16; 256] = std::array::from_fn(|byte| f16::from_f32(self.value(byte as u8)));
        bytes.iter().map(|&byte| table[usize::from(byte)]).collect()
    }

    fn value(self, byte: u8) -> f32 {
        let (mantissa_bits, bias) = match self {
            Self::E4M3 => (3, 7),
            Self::E4M3Fnuz => (3, 8),
            Self::E5M2 => (2, 15),
            Self::E5M2Fnuz => (2, 16),
        };
        let exponent = i32::from((byte & 0x7f) >> mantissa_bits);
        let mantissa = f32::from(byte & ((1 << mantissa_bits) - 1));
        let is_special = match self {
            Self::E4M3 => byte & 0x7f == 0x7f,
            Self::E5M2 => exponent == 31,
            Self::E4M3Fnuz | Self::E5M2Fnuz => byte == 0x80,
        };
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        if is_special {
            let is_infinite = self == Self::E5M2 && mantissa == 0.0;
            return if is_infinite {
                sign * f32::INFINITY
            } else {
                f32::NAN
            };
        }
        let fraction = mantissa / f32::from(1u8 << mantissa_bits);
        let magnitude = match exponent {
            0 => fraction * 2f32.powi(1 - bias),
            _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
        };
        sign * magnitude
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::Golden;

    use super::*;

    /// `tests/golden/make_float8.py` writes every byte as PyTorch reads it.
    #[test]
    fn every_byte_is_the_value_of_pytorch() {
        let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "float8");
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for format in [
            Float8::E4M3,
            Float8::E5M2,
            Float8::E4M3Fnuz,
            Float8::E5M2Fnuz,
        ] {
            let expected: Vec<f32> = golden.data(format.name()).iter().collect();
            assert_eq!(expected.len(), 256);
            let found = format.widen(&bytes);
            for (byte, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let found = found.to_f32();
                let same =
                    found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(same, "{format:?} {byte:#x}: {found}, expected {expected}");
            }
        }
    }
}
