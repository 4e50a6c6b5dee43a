use std::fmt;

use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// The text that a denoiser attends to, and optionally a text that it is steered away from.
///
/// [`From`] creates one from text states.
#[derive(Clone, Debug)]
pub struct Context {
    /// States of the text, `[batch, length, cross_attention_dim]`.
    pub states: Tensor<3>,
    /// The text to steer away from, in every cross-attention of the same network call.
    pub negative: Option<Negative>,
}

impl Context {
    /// Steers away from a second text.
    pub fn with_negative(mut self, states: Tensor<3>, method: NegativeMethod) -> Self {
        self.negative = Some(Negative { states, method });
        self
    }

    /// The element type of the states.
    pub fn dtype(&self) -> DType {
        self.states.dtype()
    }
}

impl From<Tensor<3>> for Context {
    fn from(states: Tensor<3>) -> Self {
        Self {
            states,
            negative: None,
        }
    }
}

/// A text that a denoiser is steered away from.
#[derive(Clone, Debug)]
pub struct Negative {
    /// States of the text, `[batch, length, cross_attention_dim]`, or `[1, length, cross_attention_dim]` for all images. The
    /// length may differ from that of the positive text.
    pub states: Tensor<3>,
    /// The rule that combines the two attentions.
    pub method: NegativeMethod,
}

/// Rules that combine the attentions to a positive and to a negative text, `Z₊` and `Z₋`: same queries, keys and values of
/// either text, heads joined, before the output projection.
///
/// Both take one network call, where classifier-free guidance takes two; one-step students need one of them, because
/// guidance at inference ruins their images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NegativeMethod {
    /// `Z₊ − α·Z₋` (NASA; SNOOPI, arXiv 2412.02687, equations 7 to 9).
    Nasa {
        /// α; 0 has no effect.
        scale: f64,
    },
    /// `Z̃ = Z₊ + φ·(Z₊ − Z₋)`, scaled down per token to at most τ times the L1 norm of `Z₊`, then blended:
    /// `a·Ẑ + (1 − a)·Z₊` (Normalized Attention Guidance).
    Nag {
        /// φ; 0 has no effect. The authors' code calls φ + 1 `nag_scale`.
        scale: f64,
        /// τ, at least 1.
        limit: f64,
        /// a, 0 to 1.
        blend: f64,
    },
}

impl NegativeMethod {
    /// NASA with the paper's α for Stable Diffusion 2.1, 0.2.
    pub const NASA: Self = Self::Nasa { scale: 0.2 };
    /// Normalized attention guidance with its authors' values for Stable Diffusion 1.5: φ = 2, τ = 2.5, a = 0.375.
    pub const NAG: Self = Self::Nag {
        scale: 2.0,
        limit: 2.5,
        blend: 0.375,
    };

    /// Replaces α or φ.
    pub fn with_scale(self, scale: f64) -> Self {
        match self {
            Self::Nasa { .. } => Self::Nasa { scale },
            Self::Nag { limit, blend, .. } => Self::Nag {
                scale,
                limit,
                blend,
            },
        }
    }

    /// Checks that every value is in range.
    ///
    /// # Errors
    ///
    /// If one is out of range; the text names it.
    pub fn check(self) -> Result<(), String> {
        let (Self::Nasa { scale } | Self::Nag { scale, .. }) = self;
        if !(scale.is_finite() && scale >= 0.0) {
            return Err(format!(
                "scale {scale} of the negative prompt; expected 0 or more"
            ));
        }
        let Self::Nag { limit, blend, .. } = self else {
            return Ok(());
        };
        if !(limit.is_finite() && limit >= 1.0) {
            return Err(format!(
                "limit {limit} of the negative prompt; expected 1 or more"
            ));
        }
        if !(0.0..=1.0).contains(&blend) {
            return Err(format!(
                "blend {blend} of the negative prompt; expected 0 to 1"
            ));
        }
        Ok(())
    }

    /// Combines two attentions, `[batch, tokens, channels]` each.
    pub(crate) fn combine(self, positive: Tensor<3>, negative: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Nasa { scale } => positive - negative * scale,
            Self::Nag {
                scale,
                limit,
                blend,
            } => {
                let away = positive.clone() + (positive.clone() - negative) * scale;
                // In f32: a thousand channels may sum to more than f16 holds.
                let norm = |x: &Tensor<3>| x.clone().cast(FloatDType::F32).abs().sum_dim(2);
                let highest = norm(&positive) * limit;
                // 0/0 would be a NaN for a token whose attentions are both zero.
                let factor = highest / norm(&away).clamp_min(f32::MIN_POSITIVE);
                let factor = factor.clamp_max(1.0);
                let bounded = away * factor.cast(FloatDType::from(positive.dtype()));
                positive.clone() + (bounded - positive) * blend
            }
        }
    }
}

impl fmt::Display for NegativeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nasa { scale } => write!(f, "nasa {scale}"),
            Self::Nag {
                scale,
                limit,
                blend,
            } => write!(f, "nag {scale} (limit {limit}, blend {blend})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use swiftbrush_testing::{assert_values_close, device, values};

    use super::*;

    fn tokens(values: &[[f32; 2]]) -> Tensor<3> {
        let data = TensorData::new(values.concat(), [1, values.len(), 2]);
        Tensor::from_data(data, &device())
    }

    /// By hand: the L1 norm of the first token, 2, becomes 1.75; that of the second, 1, becomes 6, of which 2.5 remain.
    #[test]
    fn long_tokens_are_scaled_to_the_limit_and_short_ones_are_not() {
        let positive = tokens(&[[1.0, -1.0], [0.5, 0.5]]);
        let negative = tokens(&[[1.25, -1.0], [-0.5, -3.5]]);
        let away = NegativeMethod::Nag {
            scale: 1.0,
            limit: 2.5,
            blend: 0.5,
        };
        let found = values(away.combine(positive, negative));
        let far = [1.5, 4.5].map(|x: f32| 0.5 * (x * 2.5 / 6.0) + 0.25);
        assert_values_close(&found, &[0.875, -1.0, far[0], far[1]], 1e-6);
    }

    #[test]
    fn tokens_without_attention_stay_zero() {
        let zero = tokens(&[[0.0, 0.0]]);
        for method in [NegativeMethod::NASA, NegativeMethod::NAG] {
            assert_eq!(values(method.combine(zero.clone(), zero.clone())), [0.0; 2]);
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let nag = |scale, limit, blend| NegativeMethod::Nag {
            scale,
            limit,
            blend,
        };
        for (method, part) in [
            (NegativeMethod::NASA.with_scale(f64::NAN), "scale NaN"),
            (NegativeMethod::NASA.with_scale(-0.1), "scale -0.1"),
            (NegativeMethod::NAG.with_scale(f64::INFINITY), "scale inf"),
            (nag(1.0, 0.5, 0.5), "limit 0.5"),
            (nag(1.0, 2.5, 1.5), "blend 1.5"),
        ] {
            let error = method.check().expect_err("it is out of range");
            assert!(error.contains(part), "{error}");
        }
        for method in [
            NegativeMethod::NASA,
            NegativeMethod::NAG,
            nag(0.0, 1.0, 1.0),
        ] {
            assert_eq!(method.check(), Ok(()));
        }
    }
}
