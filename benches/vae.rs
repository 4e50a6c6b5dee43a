//! Decoding of latents with the full autoencoder and the tiny one.
//!
//! `cargo bench --bench vae -- miniature` or `-- sd-2.1`; both without a filter.

use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{device, miniature, normal, report, sync};
use swiftbrush_vae::{AutoencoderKlConfig, AutoencoderTinyConfig};

const HAS_BOTH: &str = "the miniature has both networks";

fn decoders(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("vae");
    group.sample_size(10);
    let folder = miniature();
    let sizes = [
        (
            "miniature",
            AutoencoderKlConfig::from_model(&folder, "vae").expect(HAS_BOTH),
            AutoencoderTinyConfig::from_model(&folder, "taesd").expect(HAS_BOTH),
            8,
        ),
        (
            "sd-2.1",
            AutoencoderKlConfig::default(),
            AutoencoderTinyConfig::default(),
            64,
        ),
    ];
    for (name, kl_config, tiny_config, side) in sizes {
        group.bench_function(format!("kl decoder/{name}"), |bencher| {
            let vae = kl_config.init(&device);
            let latents = normal([1, 4, side, side], &device);
            bencher.iter(|| sync(vae.decode(latents.clone())));
        });
        group.bench_function(format!("taesd decoder/{name}"), |bencher| {
            let vae = tiny_config.init(&device);
            let latents = normal([1, 4, side, side], &device);
            bencher.iter(|| sync(vae.decode(latents.clone())));
        });
    }
    report();
}

criterion_group!(benches, decoders);
criterion_main!(benches);
