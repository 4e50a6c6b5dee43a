//! Every operation and gradient composed of burn's own operations, for backends without a native kernel.

pub(crate) mod attention;
pub(crate) mod convolution;
pub(crate) mod group_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod pointwise;
pub(crate) mod quantized;
pub(crate) mod update;

mod cast;

pub(crate) use cast::{cast_like, narrow, widen};
