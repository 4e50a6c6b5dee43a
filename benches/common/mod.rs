//! What the benches share: the device, inputs, and waiting for a result.
#![allow(dead_code, reason = "each bench uses a part")]
#![allow(clippy::print_stderr, reason = "what runs benches talks to its user")]

use burn::tensor::{Device, Distribution, Tensor};
use swiftbrush_checkpoint::Model;

/// The first backend of this build.
pub(crate) fn device() -> Device {
    swiftbrush_kernels::keep_compiled_kernels();
    #[cfg(feature = "cuda")]
    return Device::cuda(0);
    #[cfg(all(feature = "wgpu", not(feature = "cuda")))]
    return Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    Device::flex()
}

/// Says what computed what was measured.
pub(crate) fn report() {
    #[cfg(feature = "flex")]
    {
        let kernels = swiftbrush_kernels::kernels_that_ran();
        let kernels = kernels
            .iter()
            .map(|(kernel, calls)| format!("{calls} × {kernel}"));
        let kernels = kernels.collect::<Vec<_>>().join(", ");
        eprintln!("With {}: {kernels}.", swiftbrush_kernels::vectors());
    }
    #[cfg(not(feature = "flex"))]
    eprintln!("With burn's kernels for GPUs, and our own for normalisation.");
}

/// The model that ships with the examples.
pub(crate) fn miniature() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/miniature/model");
    Model::open(path).expect("it is part of the repository")
}

pub(crate) fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Reads one element, which cannot be had before the rest is computed.
pub(crate) fn sync<const D: usize>(tensor: Tensor<D>) -> f32 {
    let flat = tensor.flatten::<1>(0, D - 1).narrow(0, 0, 1);
    flat.into_data().iter::<f32>().sum()
}
