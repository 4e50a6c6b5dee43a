//! Which vectors of the processor the kernels compute with.

use std::sync::OnceLock;

/// From none that are known here to the longest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vectors {
    /// What the compiler finds.
    Any,
    /// AVX2 with fused multiplication and addition.
    Avx2,
    /// AVX-512 with its extensions F, BW, DQ and VL.
    Avx512,
}

/// The longest that the processor has; `SWIFTBRUSH_VECTORS`, which is `avx2` or `any`, asks for shorter ones.
pub(crate) fn longest() -> Vectors {
    static LONGEST: OnceLock<Vectors> = OnceLock::new();
    *LONGEST.get_or_init(|| {
        let at_most = match std::env::var("SWIFTBRUSH_VECTORS").as_deref() {
            Ok("avx2") => Vectors::Avx2,
            Ok("any") => Vectors::Any,
            _ => Vectors::Avx512,
        };
        at_most.min(of_processor())
    })
}

fn of_processor() -> Vectors {
    #[cfg(target_arch = "x86_64")]
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
    Vectors::Any
}

/// The vectors that this crate's kernels for the CPU compute with: the longest of those known here that the processor has,
/// or shorter ones if the environment variable `SWIFTBRUSH_VECTORS` is `avx2` or `any`.
pub fn vectors() -> &'static str {
    match longest() {
        Vectors::Any => "what the compiler found",
        Vectors::Avx2 => "AVX2",
        Vectors::Avx512 => "AVX-512",
    }
}
