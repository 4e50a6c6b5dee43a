//! Gradients of one training step: of a whole network, and of adapters on a frozen one, through the low-rank path and through the
//! composed weight.
//!
//! `cargo bench --bench train_step -- miniature` or `-- sd-2.1` (over 20 GB); both without a filter.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{device, miniature, normal, report, sync};
use swiftbrush_kernels::LinearConfig;
use swiftbrush_lora::{LoraConfig, attach};
use swiftbrush_trainer::NamedGradients;
use swiftbrush_unet::{UNet, UNetConfig};

fn gradients(unet: &UNet, config: &UNetConfig, device: &Device) -> f64 {
    let latents = normal(
        [
            1,
            config.in_channels,
            config.sample_size,
            config.sample_size,
        ],
        device,
    );
    let context = normal([1, 77, config.cross_attention_dim], device);
    let timesteps = Tensor::<1>::from_data([500.0], device);
    let loss = unet
        .forward(latents, timesteps, context)
        .powi_scalar(2)
        .mean();
    NamedGradients::take(unet, &mut loss.backward()).norm()
}

fn steps(c: &mut Criterion) {
    let device = device().autodiff();
    let mut group = c.benchmark_group("train step");
    group.sample_size(10);
    let miniature = UNetConfig::from_model(&miniature(), "unet");
    let miniature = miniature.expect("the miniature has a denoiser");
    for (name, config) in [("miniature", miniature), ("sd-2.1", UNetConfig::default())] {
        group.bench_function(format!("all weights/{name}"), |bencher| {
            let unet = config.init(&device);
            bencher.iter(|| gradients(&unet, &config, &device));
        });
        group.bench_function(format!("adapters/{name}"), |bencher| {
            let lora = LoraConfig::new(64, 128.0, ["to_q", "to_v"]);
            let unet = attach(config.init(&device), &lora, 0).expect("it has such layers");
            bencher.iter(|| gradients(&unet, &config, &device));
        });
    }
}

/// One adapted layer at the size of Stable Diffusion's second level: 4 images of 1024 tokens.
fn lora_paths(c: &mut Criterion) {
    let device = device().autodiff();
    let mut group = c.benchmark_group("lora");
    let layer = attach(
        LinearConfig::new(640, 640).init(&device),
        &LoraConfig::new(64, 128.0, [""]),
        0,
    )
    .expect("the layer itself is named so");
    let input = normal([4 * 1024, 640], &device.clone().inner())
        .autodiff()
        .require_grad();
    group.bench_function("low-rank path", |bencher| {
        bencher.iter(|| {
            let mut grads = layer.forward(input.clone()).sum().backward();
            sync(input.grad(&grads).expect("it is a leaf"));
            NamedGradients::take(&layer, &mut grads).norm()
        });
    });
    group.bench_function("composed weight", |bencher| {
        bencher.iter(|| {
            let output = input.clone().matmul(layer.weight.val().transpose());
            let mut grads = output.sum().backward();
            sync(input.grad(&grads).expect("it is a leaf"));
            NamedGradients::take(&layer.clone().train(), &mut grads).norm()
        });
    });
    report();
}

criterion_group!(benches, steps, lora_paths);
criterion_main!(benches);
