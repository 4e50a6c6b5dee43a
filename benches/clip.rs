//! The text encoder and the vision tower.
//!
//! `cargo bench --bench clip -- miniature` or `-- sd-2.1`; both without a filter.

use burn::tensor::{Int, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{device, miniature, normal, report, sync};
use swiftbrush_clip::{ClipConfig, TextConfig};

const HAS_BOTH: &str = "the miniature has both networks";

fn towers(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("clip");
    group.sample_size(10);
    let folder = miniature();
    let text = TextConfig::from_model(&folder, "text_encoder").expect(HAS_BOTH);
    for (name, config) in [("miniature", text), ("sd-2.1", TextConfig::sd2())] {
        group.bench_function(format!("text encoder/{name}"), |bencher| {
            let encoder = config.init(&device);
            let tokens = Tensor::<2, Int>::zeros([1, config.max_position_embeddings], &device);
            bencher.iter(|| sync(encoder.forward(tokens.clone())));
        });
    }
    let clip = ClipConfig::from_model(&folder, "clip").expect(HAS_BOTH);
    for (name, config) in [("miniature", clip), ("sd-2.1", ClipConfig::default())] {
        group.bench_function(format!("vision tower/{name}"), |bencher| {
            let clip = config.init(&device);
            let images = normal([1, 3, clip.image_size(), clip.image_size()], &device);
            bencher.iter(|| sync(clip.embed_images(images.clone())));
        });
    }
    report();
}

criterion_group!(benches, towers);
criterion_main!(benches);
