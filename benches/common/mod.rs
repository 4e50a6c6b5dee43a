//! Shared by the benchmarks: device, inputs and synchronisation.
#![allow(dead_code, reason = "each benchmark uses only some of it")]
#![allow(clippy::print_stderr, reason = "a benchmark talks to its user")]

use burn::tensor::{Device, Distribution, Tensor};
use swiftbrush_checkpoint::Model;

/// Returns the device of this build: CUDA, else wgpu, else the CPU. On the CPU, `SWIFTBRUSH_VECTORS` selects the vectors
/// (`avx2` or `portable`).
pub(crate) fn device() -> Device {
    swiftbrush_kernels::keep_compiled_kernels();
    #[cfg(feature = "flex")]
    match std::env::var("SWIFTBRUSH_VECTORS").as_deref() {
        Err(_) => {}
        Ok("avx2") => swiftbrush_kernels::set_vectors(swiftbrush_kernels::Vectors::Avx2),
        Ok("portable") => swiftbrush_kernels::set_vectors(swiftbrush_kernels::Vectors::Portable),
        Ok(other) => panic!("SWIFTBRUSH_VECTORS is {other:?}: expected avx2 or portable"),
    }
    #[cfg(feature = "cuda")]
    return Device::cuda(0);
    #[cfg(all(feature = "wgpu", not(feature = "cuda")))]
    return Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    Device::flex()
}

/// Prints the code paths that were measured.
pub(crate) fn report() {
    #[cfg(feature = "flex")]
    {
        let kernels = swiftbrush_kernels::kernel_calls();
        let kernels = kernels
            .iter()
            .map(|(kernel, calls)| format!("{calls} × {kernel}"));
        let kernels = kernels.collect::<Vec<_>>().join(", ");
        eprintln!("With {}: {kernels}.", swiftbrush_kernels::vectors());
    }
    #[cfg(not(feature = "flex"))]
    eprintln!("With burn's GPU kernels, and normalisation by swiftbrush-kernels.");
}

/// The miniature model in the repository.
pub(crate) fn miniature() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/miniature/model");
    Model::open(path).expect("it is part of the repository")
}

pub(crate) fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Waits for a tensor by reading one element.
pub(crate) fn sync<const D: usize>(tensor: Tensor<D>) -> f32 {
    let flat = tensor.flatten::<1>(0, D - 1).narrow(0, 0, 1);
    flat.into_data().iter::<f32>().sum()
}
