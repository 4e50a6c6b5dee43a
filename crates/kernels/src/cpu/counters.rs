//! Per-kernel call counters, so that a benchmark can name the code path it measured.

use std::sync::atomic::{AtomicU64, Ordering};

/// This crate's CPU kernels.
#[derive(Clone, Copy)]
pub(crate) enum Kernel {
    Winograd,
    Unfolded,
    Linear,
    Int8Linear,
    Int8Convolution,
    Attention,
    Int8Attention,
    GroupNorm,
    LayerNorm,
    Pointwise,
    /// burn's own operations, because a tensor is not f32 or is empty.
    Burn,
}

const NAMES: [&str; 11] = [
    "convolution by Winograd's F(4x4, 3x3)",
    "convolution of unfolded patches",
    "linear layer",
    "linear layer in int8",
    "convolution in int8",
    "attention",
    "attention in int8",
    "group normalisation",
    "layer normalisation",
    "activation or upsampling",
    "burn's own",
];

static CALLS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

impl Kernel {
    /// Counts a call.
    pub(crate) fn count(self) {
        CALLS[self as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the number of calls of each CPU kernel since the program started, without those that were never called.
///
/// Print it with benchmark results: for example, layers in element types other than f32 are computed by burn. Nothing is
/// counted on a GPU.
pub fn kernel_calls() -> Vec<(&'static str, u64)> {
    let calls = CALLS.iter().map(|calls| calls.load(Ordering::Relaxed));
    NAMES
        .into_iter()
        .zip(calls)
        .filter(|(_, calls)| *calls > 0)
        .collect()
}
