//! One-step generation from text-encoder states: denoiser and tiny decoder.
//!
//! `cargo bench --bench one_step -- miniature` or `-- sd-2.1`; both without a filter.

use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{device, miniature, normal, report, sync};
use swiftbrush_pipeline::one_step;
use swiftbrush_scheduler::{NoiseSchedule, SchedulerConfig};
use swiftbrush_unet::UNetConfig;
use swiftbrush_vae::AutoencoderTinyConfig;

const HAS_BOTH: &str = "the miniature has both networks";

fn picture(c: &mut Criterion) {
    let device = device();
    let schedule = NoiseSchedule::new(&SchedulerConfig::default());
    let mut group = c.benchmark_group("one step");
    group.sample_size(10);
    let folder = miniature();
    let sizes = [
        (
            "miniature",
            UNetConfig::from_model(&folder, "unet").expect(HAS_BOTH),
            AutoencoderTinyConfig::from_model(&folder, "taesd").expect(HAS_BOTH),
        ),
        (
            "sd-2.1",
            UNetConfig::default(),
            AutoencoderTinyConfig::default(),
        ),
    ];
    for (name, unet_config, vae_config) in sizes {
        group.bench_function(name, |bencher| {
            let (unet, vae) = (unet_config.init(&device), vae_config.init(&device));
            let noise = normal(
                [1, 4, unet_config.sample_size, unet_config.sample_size],
                &device,
            );
            let context = normal([1, 77, unet_config.cross_attention_dim], &device);
            bencher.iter(|| {
                sync(vae.decode(one_step(&unet, &schedule, noise.clone(), context.clone())))
            });
        });
    }
    report();
}

criterion_group!(benches, picture);
criterion_main!(benches);
