//! Weights in int8 against f32: layers of SD 2.1 at 512×512, and whole networks.
//!
//! `cargo bench --bench int8 -- linear`, `-- convolution`, `-- text` or `-- unet`; all without a filter.

use std::path::Path;

use burn::module::ParamId;
use burn::tensor::{Int, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use swiftbrush_checkpoint::quantize;
use swiftbrush_clip::{TextConfig, TextEncoder};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, Int8Weight, Linear, LinearConfig};
use swiftbrush_unet::{UNet, UNetConfig};

mod common;
use common::{device, normal, report, sync};

const FINITE: &str = "random weights are finite";
const CPU: &str = "int8 needs the CPU";

/// Rows, inputs, outputs.
const LINEAR: [[usize; 3]; 8] = [
    [4096, 320, 320],
    [4096, 320, 2560],
    [1024, 640, 5120],
    [1024, 2560, 640],
    [256, 1280, 10240],
    [256, 5120, 1280],
    [77, 1024, 4096],
    [77, 4096, 1024],
];

/// Inputs, outputs, side of the image, side of the kernel.
const CONVOLUTION: [[usize; 4]; 7] = [
    [320, 320, 64, 3],
    [960, 320, 64, 3],
    [640, 640, 32, 3],
    [1280, 1280, 16, 3],
    [2560, 1280, 16, 3],
    [1280, 1280, 8, 3],
    [960, 320, 64, 1],
];

fn linear(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("linear");
    for [rows, inputs, outputs] in LINEAR {
        let plain = LinearConfig::new(inputs, outputs).init(&device);
        let input = normal([rows, inputs], &device);
        let name = format!("{rows}x{inputs}x{outputs}");
        for (kind, layer) in [("f32", plain.clone()), ("int8", quantized(plain))] {
            group.bench_function(BenchmarkId::new(kind, &name), |bencher| {
                bencher.iter(|| sync(layer.forward(input.clone())));
            });
        }
    }
}

fn quantized(mut layer: Linear) -> Linear {
    let weight = Int8Weight::quantize(&layer.weight.val().into_data()).expect(FINITE);
    let tensor = weight.to_tensor(&layer.weight.lazy_device()).expect(CPU);
    layer.weight = layer.weight.transform_for_load(tensor, ParamId::new());
    layer
}

fn convolution(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("convolution");
    for [inputs, outputs, side, kernel] in CONVOLUTION {
        let plain = Conv2dConfig::new(inputs, outputs, kernel)
            .with_padding((kernel / 2, kernel / 2))
            .init(&device);
        let input = normal([1, inputs, side, side], &device);
        let name = format!("{inputs}-{outputs}@{side},{kernel}x{kernel}");
        for (kind, layer) in [("f32", plain.clone()), ("int8", quantized_conv(plain))] {
            group.bench_function(BenchmarkId::new(kind, &name), |bencher| {
                bencher.iter(|| sync(layer.forward(input.clone())));
            });
        }
    }
}

fn quantized_conv(mut layer: Conv2d) -> Conv2d {
    let weight = Int8Weight::quantize(&layer.weight.val().into_data()).expect(FINITE);
    let tensor = weight.to_tensor(&layer.weight.lazy_device()).expect(CPU);
    layer.weight = layer.weight.transform_for_load(tensor, ParamId::new());
    layer
}

fn text_encoder(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("text encoder");
    group.sample_size(10);
    let plain = TextConfig::sd2().init(&device);
    let rule = TextEncoder::is_int8_weight;
    let int8 = quantize(plain.clone(), rule, Path::new("random")).expect(CPU);
    let tokens = Tensor::<2, Int>::zeros([1, 77], &device);
    for (kind, network) in [("f32", plain), ("int8", int8)] {
        group.bench_function(kind, |bencher| {
            bencher.iter(|| sync(network.forward(tokens.clone())));
        });
    }
}

fn unet(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("unet");
    group.sample_size(10);
    let config = UNetConfig::default();
    let side = config.sample_size;
    let latents = normal([1, config.in_channels, side, side], &device);
    let context = normal([1, 77, config.cross_attention_dim], &device);
    let plain = config.init(&device);
    let int8 = quantize(plain.clone(), UNet::is_int8_weight, Path::new("random")).expect(CPU);
    for (kind, network) in [("f32", plain), ("int8", int8)] {
        group.bench_function(kind, |bencher| {
            let steps = Tensor::<1>::full([1], 999.0, &device);
            bencher.iter(|| sync(network.forward(latents.clone(), steps.clone(), context.clone())));
        });
    }
    report();
}

criterion_group!(benches, linear, convolution, text_encoder, unet);
criterion_main!(benches);
