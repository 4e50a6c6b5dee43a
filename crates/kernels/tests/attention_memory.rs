//! Memory of the forward and backward pass on the CPU backend, measured by a counting allocator: attention memory grows
//! linearly with the number of tokens, and frozen layers keep no inputs.
#![cfg(feature = "flex")]
#![allow(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use swiftbrush_kernels::{Conv2dConfig, LinearConfig, Mask, attention};

struct Counting;

/// Held by the test that is counting.
static COUNTING: Mutex<()> = Mutex::new(());
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak memory of a forward and a backward pass in bytes, on top of what was allocated before.
fn peak(tokens: usize) -> usize {
    let device = Device::flex().autodiff();
    let random = || {
        let shape = [1, 2, tokens, 8];
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad()
    };
    let (query, key, value) = (random(), random(), random());
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let output = attention(query.clone(), key, value, Mask::None);
    let grads = output.powi_scalar(2).sum().backward();
    assert!(query.grad(&grads).is_some());
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn twice_the_tokens_take_twice_the_memory() {
    let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let (small, large) = (peak(2048), peak(4096));
    let ratio = large as f64 / small as f64;
    assert!(
        ratio < 2.3,
        "{small} bytes grew to {large}, {ratio:.2} times"
    );
    // A single score matrix would take 2 heads × 4096² × 4 bytes.
    assert!(large < 2 * 4096 * 4096 * 4 / 2, "{large} bytes");
}

/// Bytes that eight applications of a layer keep for the backward pass, including the last output.
fn kept<const D: usize>(input: &Tensor<D>, layer: impl Fn(Tensor<D>) -> Tensor<D>) -> usize {
    // The first call allocates scratch buffers.
    drop(layer(input.clone()));
    let before = NOW.load(Ordering::Relaxed);
    let output = (0..8).fold(input.clone(), |hidden, _| layer(hidden));
    let kept = NOW.load(Ordering::Relaxed) - before;
    let grads = output.sum().backward();
    assert!(input.grad(&grads).is_some());
    kept
}

#[test]
fn frozen_layers_keep_no_inputs() {
    let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Device::flex().autodiff();
    let random = Distribution::Normal(0.0, 1.0);
    const SIZE: usize = 1 << 20;

    let layer = LinearConfig::new(256, 256).init(&device);
    let frozen = LinearConfig::new(256, 256).init(&device).no_grad();
    let rows = Tensor::<2>::random([1024, 256], random, &device).require_grad();
    let (trained, frozen) = (
        kept(&rows, |x| layer.forward(x)),
        kept(&rows, |x| frozen.forward(x)),
    );
    assert!(trained >= 7 * SIZE, "{trained} bytes");
    assert!(frozen < 2 * SIZE, "{frozen} bytes");

    let layer = Conv2dConfig::same3x3(64, 64).init(&device);
    let frozen = Conv2dConfig::same3x3(64, 64).init(&device).no_grad();
    let images = Tensor::<4>::random([1, 64, 64, 64], random, &device).require_grad();
    let (trained, frozen) = (
        kept(&images, |x| layer.forward(x)),
        kept(&images, |x| frozen.forward(x)),
    );
    assert!(trained >= 7 * SIZE, "{trained} bytes");
    assert!(frozen < 2 * SIZE, "{frozen} bytes");
}

#[test]
fn frozen_weights_in_half_precision_are_not_copied() {
    let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Device::flex().autodiff();
    // In f32, the weight takes 4 MiB and an activation 64 KiB.
    let random = Distribution::Normal(0.0, 0.03);
    let weight = Tensor::<2>::random([1024, 1024], random, &device.clone().inner());
    let half = weight.cast(FloatDType::F16).autodiff();
    let wide = half.clone().cast(FloatDType::F32);
    let rows = Tensor::<2>::random([16, 1024], Distribution::Normal(0.0, 1.0), &device);
    let rows = rows.require_grad();
    let product =
        |weight: &Tensor<2>| swiftbrush_kernels::linear(rows.clone(), weight.clone(), None);
    assert_eq!(half.dtype(), DType::F16);
    let bytes = kept(&rows, |x| swiftbrush_kernels::linear(x, half.clone(), None));
    assert!(bytes < 1 << 20, "{bytes} bytes");
    let grad = |weight: &Tensor<2>| {
        let grads = product(weight).powi_scalar(2).sum().backward();
        rows.grad(&grads).unwrap()
    };
    swiftbrush_testing::assert_close(grad(&half), grad(&wide), 1e-6);
}
