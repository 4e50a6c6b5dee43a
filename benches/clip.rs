//! The text encoder, and both towers.
//!
//! `cargo bench --bench clip -- tiny` or `-- sd-2.1`; without a filter both.

use burn::tensor::{Int, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{device, normal, sync};
use swiftbrush_clip::{ClipConfig, TextConfig};

fn towers(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("clip");
    group.sample_size(10);
    for (name, config) in [("tiny", TextConfig::tiny()), ("sd-2.1", TextConfig::sd2())] {
        group.bench_function(format!("text encoder/{name}"), |bencher| {
            let encoder = config.init(&device);
            let tokens = Tensor::<2, Int>::zeros([1, config.max_position_embeddings], &device);
            bencher.iter(|| sync(encoder.forward(tokens.clone())));
        });
    }
    for (name, config) in [
        ("tiny", ClipConfig::tiny()),
        ("sd-2.1", ClipConfig::default()),
    ] {
        group.bench_function(format!("vision tower/{name}"), |bencher| {
            let clip = config.init(&device);
            let images = normal([1, 3, clip.image_size(), clip.image_size()], &device);
            bencher.iter(|| sync(clip.embed_images(images.clone())));
        });
    }
}

criterion_group!(benches, towers);
criterion_main!(benches);
