//! Attention's memory grows linearly with the number of tokens, backward pass and all. On the CPU
//! backend, where every byte is counted by the allocator.
#![cfg(feature = "flex")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Distribution, Tensor};
use swiftbrush_kernels::{Mask, attention};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
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

/// Bytes at the peak of a forward and a backward pass, above what was there before.
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
    let (small, large) = (peak(2048), peak(4096));
    let ratio = large as f64 / small as f64;
    assert!(
        ratio < 2.3,
        "{small} bytes grew to {large}, {ratio:.2} times"
    );
    // One score matrix alone would be 2 heads × 4096² × 4 bytes.
    assert!(large < 2 * 4096 * 4096 * 4 / 2, "{large} bytes");
}
