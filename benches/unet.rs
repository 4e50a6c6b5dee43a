//! One call of the denoiser.
//!
//! `cargo bench --bench unet -- miniature` or `-- sd-2.1`; both without a filter.

use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use burn::tensor::Tensor;
use common::{device, miniature, normal, report, sync};
use swiftbrush_unet::UNetConfig;

fn miniature_config() -> UNetConfig {
    UNetConfig::from_model(&miniature(), "unet").expect("the miniature has a denoiser")
}

fn unet(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("unet");
    group.sample_size(10);
    for (name, config, length) in [
        ("miniature", miniature_config(), 20),
        ("sd-2.1", UNetConfig::default(), 77),
    ] {
        let mut network = None;
        group.bench_function(name, |bencher| {
            let network = network.get_or_insert_with(|| config.init(&device));
            let latents = normal(
                [
                    1,
                    config.in_channels,
                    config.sample_size,
                    config.sample_size,
                ],
                &device,
            );
            let context = normal([1, length, config.cross_attention_dim], &device);
            let timesteps = Tensor::<1>::from_data([999.0], &device);
            bencher.iter(|| {
                sync(network.forward(latents.clone(), timesteps.clone(), context.clone()))
            });
        });
    }
    report();
}

criterion_group!(benches, unet);
criterion_main!(benches);
