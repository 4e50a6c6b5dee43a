//! The vector instructions used by the kernels.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// Vector instructions of a processor, shortest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// None in particular: loops vectorised by the compiler.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 with the extensions F, BW, DQ and VL.
    Avx512,
}

impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable loops",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        })
    }
}

/// The choice, encoded by [`code`]; 0 until it is first read.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

fn code(vectors: Vectors) -> u8 {
    vectors as u8 + 1
}

/// The vectors used by this crate's CPU kernels: the longest that the CPU supports, or shorter ones after [`set_vectors`].
pub fn vectors() -> Vectors {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Vectors::Portable,
        2 => Vectors::Avx2,
        3 => Vectors::Avx512,
        _ => {
            let longest = of_processor();
            CHOSEN.store(code(longest), Ordering::Relaxed);
            longest
        }
    }
}

/// Limits this crate's CPU kernels to these vectors, for tests and benchmarks. AVX2 and AVX-512 give bit-identical results,
/// except in gradients of convolution weights.
pub fn set_vectors(at_most: Vectors) {
    CHOSEN.store(code(at_most.min(of_processor())), Ordering::Relaxed);
}

fn of_processor() -> Vectors {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let is_long = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if is_long {
            Vectors::Avx512
        } else {
            Vectors::Avx2
        };
    }
    Vectors::Portable
}
