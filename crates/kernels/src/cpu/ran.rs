//! Which kernels have run, so that nobody measures one for another.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kernels of this crate for the CPU.
#[derive(Clone, Copy)]
pub(crate) enum Kernel {
    Winograd,
    Unfolded,
    Linear,
    Attention,
    GroupNorm,
    LayerNorm,
    Pointwise,
    /// What burn did because the numbers are not f32 or there are none.
    Burns,
}

const NAMES: [&str; 8] = [
    "convolution by Winograd's F(4x4, 3x3)",
    "convolution of unfolded patches",
    "linear layer by strips",
    "attention in blocks",
    "group normalisation in one call",
    "layer normalisation in one call",
    "activation or upsampling in one call",
    "burn's own",
];

static CALLS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

impl Kernel {
    /// Counts a call.
    pub(crate) fn runs(self) {
        CALLS[self as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each kind of kernel has run on the CPU since the program began, those that have not left out.
///
/// A benchmark prints it, so that nothing else is measured in their place unseen: layers in another element type than f32,
/// for example, are computed by burn. On a GPU everything is, and nothing is counted.
pub fn kernels_that_ran() -> Vec<(&'static str, u64)> {
    let calls = CALLS.iter().map(|calls| calls.load(Ordering::Relaxed));
    NAMES
        .into_iter()
        .zip(calls)
        .filter(|(_, calls)| *calls > 0)
        .collect()
}
