//! Linear layers and convolutions with weights in int8, and [attention] between them.
//!
//! ```text
//!              codes of the input, packed: inputs / 4 × columns;      scale of each column
//!              a word has four consecutive inputs of a column         (token or pixel), f32
//!              ┌────┬────┬────┬──┐
//!              │    │    │    │  │ strip: STRIP columns
//!   weight     └────┴────┴────┴──┘
//!  ┌───────┐   ┌────┬────┬────┬──┐
//!  │ GROUP │   │tile│    │    │  │ sums in i32, exact; in f32: · column's scale, over taps
//!  ├───────┤   ├────┼────┼────┼──┤                             · row's scale + bias + residual
//!  │ rows, │   │    │    │    │  │
//!  │ as is │   │    │    │    │  │
//! ```
//!
//! Inputs are quantised when a layer is called: `scale = max|x| / 127` of a token or a pixel, codes rounded to nearest, ties to
//! even. The vector instructions multiply unsigned by signed bytes, so 128 is added to these codes, and 128 times the sum of
//! the weight's row is subtracted. Every step is one defined operation, so all vectors give bit-identical results.
//!
//! A convolution is a product for each tap of its kernel, because the pixels under it have different scales. The quantised
//! image has a frame of zeros, so that a tap is an offset in it; see [`pixels`].

mod attention;
mod convolution;
mod linear;
mod pixels;
mod product;
mod rows;
mod scale;
mod weight;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

use crate::cpu::attention::Heads;
use crate::cpu::tensor::F32;

pub(crate) use attention::forward as attention;
pub(crate) use convolution::forward as convolution;
pub(crate) use linear::{forward as linear, gated_gelu};
pub(crate) use weight::{new, parts};

/// Outputs per task: whole tiles of 4, 6, 8, 12 and 16 rows. With 1280 inputs, their codes take 60 KiB of the L2 cache.
pub(crate) const GROUP: usize = 48;
/// Columns of a strip: four AVX-512 vectors, whole tiles of [`product`] at any vector length.
const STRIP: usize = 64;
/// Strips per task.
const STRIPS: usize = 8;

/// The input of a layer.
///
/// # Panics
///
/// If it is not f32, or empty.
pub(crate) fn input(tensor: FlexTensor) -> F32 {
    check(&tensor);
    F32::contiguous(tensor)
}

/// Queries, keys or values.
///
/// # Panics
///
/// If they are not f32, or empty.
pub(crate) fn heads(tensor: FlexTensor) -> Heads {
    check(&tensor);
    Heads::new(tensor)
}

fn check(tensor: &FlexTensor) {
    assert!(
        F32::is_supported(tensor),
        "int8 is computed from values in f32, of at least one; found {:?} of shape {:?}",
        tensor.dtype(),
        tensor.shape()
    );
}
