//! Options of the operations: plain values used by every layer of this crate.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType};
use burn::tensor::ops::ConvOptions;

/// The keys that each query attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those at the query's own position and before it (text encoders).
    Causal,
}

/// The activation that follows a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// None.
    Identity,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
}

/// The stride and padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Distance between two applications of the kernel, in pixels.
    pub stride: usize,
    /// Zero padding of the input: above and to the left, below and to the right.
    pub padding: (usize, usize),
}

impl Window {
    /// Height or width of the output, given those of the input and the kernel.
    pub(crate) fn output(self, size: usize, kernel: usize) -> usize {
        (size + self.padding.0 + self.padding.1 - kernel) / self.stride + 1
    }

    pub(crate) fn options(self) -> ConvOptions<2> {
        ConvOptions::new_with_padding([self.stride; 2], [self.padding; 2], [1, 1], 1)
    }
}

/// Groups, epsilon and activation of a group normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNormOptions {
    pub(crate) groups: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
}

/// Tensors that a linear layer or a convolution adds to its product.
///
/// The bias of a linear layer is `[outputs]`, that of a convolution `[batch or 1, channels]`; the residual has the shape of
/// the output.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum Extras<B: Backend> {
    None,
    Bias(FloatTensor<B>),
    Residual(FloatTensor<B>),
    Both {
        bias: FloatTensor<B>,
        residual: FloatTensor<B>,
    },
}

impl<B: Backend> Extras<B> {
    pub(crate) fn new(bias: Option<FloatTensor<B>>, residual: Option<FloatTensor<B>>) -> Self {
        match (bias, residual) {
            (None, None) => Self::None,
            (Some(bias), None) => Self::Bias(bias),
            (None, Some(residual)) => Self::Residual(residual),
            (Some(bias), Some(residual)) => Self::Both { bias, residual },
        }
    }

    /// Bias and residual.
    pub(crate) fn split(self) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
        match self {
            Self::None => (None, None),
            Self::Bias(bias) => (Some(bias), None),
            Self::Residual(residual) => (None, Some(residual)),
            Self::Both { bias, residual } => (Some(bias), Some(residual)),
        }
    }
}

/// The scalars of one AdamW update (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWUpdate {
    /// Factor of the gradient, applied first.
    pub grad_factor: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Factor of the weight: `1 − learning rate · weight decay`.
    pub weight_factor: f64,
    /// Learning rate over `1 − β₁ᵗ`.
    pub rate: f64,
    /// `√(1 − β₂ᵗ)`.
    pub deviation_correction: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
}

/// Elements that share a scale in [`crate::Quantized`], as in bitsandbytes' optimisers.
pub(crate) const QUANTIZED_BLOCK: usize = 256;
