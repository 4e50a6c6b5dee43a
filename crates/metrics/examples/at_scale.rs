//! Precision and recall at the size of COCO's validation set, on random features.
//!
//! ```sh
//! cargo run --release -p swiftbrush-metrics --example at_scale -- 40504 30000 2048
//! ```
#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use std::time::Instant;

use swiftbrush_metrics::{Features, precision_recall};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .map(|size| size.parse())
        .collect::<Result<_, _>>()?;
    let [real, generated, width] = sizes[..] else {
        return Err("expected three numbers: real images, generated images, width".into());
    };
    let mut state = 1u64;
    let mut features = |count: usize| {
        // Approximately normal: sums of four uniform values.
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let values = (0..count * width).map(|_| (0..4).map(|_| uniform()).sum());
        Features::new(width, values.collect())
    };
    let (real, generated) = (features(real)?, features(generated)?);
    let begun = Instant::now();
    let found = precision_recall(&real, &generated, 3)?;
    println!("{found:?} in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
