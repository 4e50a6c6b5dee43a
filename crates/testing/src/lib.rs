//! Shared by the tests of the workspace: the test device, tolerances, golden files, fuzzing.
//!
//! `SWIFTBRUSH_TEST_DEVICE` selects the device: `flex` (the default), `wgpu` or `cuda`. The feature of
//! the same name compiles its backend in.

mod fill;
mod fuzz;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::tensor::TensorView;
use tempfile::TempDir;

pub use fill::fill;
pub use fuzz::fuzz;

/// Tolerance of f32 results against a reference in f64, relative to the tensor's largest magnitude:
/// the rounding errors of a few hundred consecutive operations, 6e-8 each.
pub const F32: f64 = 1e-5;

/// The device selected by `SWIFTBRUSH_TEST_DEVICE`.
///
/// # Panics
///
/// If the name is unknown or its backend is not compiled in.
pub fn device() -> Device {
    limit_vectors();
    let name = std::env::var("SWIFTBRUSH_TEST_DEVICE").unwrap_or_else(|_| "flex".to_owned());
    match name.as_str() {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        other => {
            panic!("SWIFTBRUSH_TEST_DEVICE={other}: no such device is compiled into these tests")
        }
    }
}

/// The CPU, whichever device [`device`] selects: for what other devices do not have, such as int8.
///
/// # Panics
///
/// If the feature `flex` is off.
pub fn cpu() -> Device {
    limit_vectors();
    Device::flex()
}

/// Limits the CPU kernels to the vectors that `SWIFTBRUSH_VECTORS` names (`avx2` or `portable`), once per process.
fn limit_vectors() {
    #[cfg(feature = "flex")]
    {
        use std::sync::Once;
        use swiftbrush_kernels::{Vectors, set_vectors};

        static ONCE: Once = Once::new();
        ONCE.call_once(|| match std::env::var("SWIFTBRUSH_VECTORS").as_deref() {
            Err(_) => {}
            Ok("avx2") => set_vectors(Vectors::Avx2),
            Ok("portable") => set_vectors(Vectors::Portable),
            Ok(other) => panic!("SWIFTBRUSH_VECTORS is {other:?}: expected avx2 or portable"),
        });
    }
}

/// Normal values with mean 0.3 and standard deviation 1.5, the same on every device.
///
/// The caller fixes the seed, because sums of a few values that nearly cancel would otherwise fail
/// occasionally.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let normal = Normal::new(0.3f32, 1.5).expect("the deviation is finite");
    let values = normal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let values: Vec<f32> = values.take(shape.iter().product()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Asserts that two tensors agree within `tolerance`, relative to the largest magnitude of `expected`.
///
/// # Panics
///
/// If the shapes differ, a value on either side is not finite, or an element differs by more than the
/// tolerance; the message names the worst element.
#[track_caller]
pub fn assert_close<const D: usize>(found: Tensor<D>, expected: Tensor<D>, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "the shapes differ");
    assert_values_close(&values(found), &values(expected), tolerance);
}

/// [`assert_close`] on slices.
///
/// # Panics
///
/// Same as [`assert_close`].
#[track_caller]
pub fn assert_values_close(found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "the lengths differ");
    let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let scale = f64::from(scale).max(f64::MIN_POSITIVE);
    let mut worst = (0, 0.0);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found.is_finite() && expected.is_finite(),
            "element {index} is {found}, expected {expected}: both must be finite"
        );
        let error = f64::from((found - expected).abs()) / scale;
        if error > worst.1 {
            worst = (index, error);
        }
    }
    let (index, error) = worst;
    assert!(
        error <= tolerance,
        "element {index} is {}, expected {}: off by {error:.3e} of the largest magnitude, allowed {tolerance:.1e}",
        found[index],
        expected[index],
    );
}

/// The elements of a tensor as f32, in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Tensors stored by a reference implementation in a safetensors file.
#[derive(Debug)]
pub struct Golden {
    tensors: HashMap<String, TensorData>,
    metadata: HashMap<String, String>,
}

impl Golden {
    /// Reads a golden file; `directory` is usually `env!("CARGO_MANIFEST_DIR")`.
    ///
    /// # Panics
    ///
    /// If `tests/golden/<name>.safetensors` is missing or damaged: a parity test without its reference
    /// fails instead of being skipped.
    pub fn open(directory: &str, name: &str) -> Self {
        let path = Path::new(directory)
            .join("tests/golden")
            .join(format!("{name}.safetensors"));
        let bytes = read::read(&path)
            .unwrap_or_else(|error| panic!("golden file {}: {error}", path.display()));
        let file = safetensors::SafeTensors::deserialize(&bytes)
            .unwrap_or_else(|error| panic!("golden file {}: {error}", path.display()));
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, data(&view)))
            .collect();
        let metadata = safetensors::SafeTensors::read_metadata(&bytes)
            .ok()
            .and_then(|(_, header)| header.metadata().clone())
            .unwrap_or_default();
        Self { tensors, metadata }
    }

    /// The tensor in its stored element type.
    ///
    /// # Panics
    ///
    /// If no tensor has that name.
    pub fn data(&self, name: &str) -> TensorData {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("the golden file has no tensor {name:?}"))
            .clone()
    }

    /// The tensor in f32 on a device.
    ///
    /// # Panics
    ///
    /// If no tensor has that name, or its rank is not `D`.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name).convert_dtype(DType::F32), device)
    }

    /// The tensor in i32 on a device.
    ///
    /// # Panics
    ///
    /// Same as [`tensor`](Self::tensor).
    pub fn ints<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name).convert_dtype(DType::I32), device)
    }

    /// A string stored in the file's header, usually a configuration as JSON.
    ///
    /// # Panics
    ///
    /// If the header has no such key.
    pub fn metadata(&self, name: &str) -> &str {
        self.metadata
            .get(name)
            .unwrap_or_else(|| panic!("the golden file has no metadata {name:?}"))
    }

    /// The tensors whose names begin with `prefix`, which is stripped.
    pub fn tensors_under(&self, prefix: &str) -> BTreeMap<String, TensorData> {
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, data)| Some((name.strip_prefix(prefix)?.to_owned(), data.clone())))
            .collect()
    }

    /// A temporary model folder with one component: the header's `config` as `config.json`, the tensors
    /// below `weights.` as its weights.
    ///
    /// # Panics
    ///
    /// If the header has no `config`, or the folder cannot be written.
    pub fn model_folder(&self, component: &str) -> TempDir {
        let folder = TempDir::new().expect("a temporary folder can be created");
        let path = folder.path().join(component);
        std::fs::create_dir(&path).expect("the folder is empty");
        std::fs::write(path.join("config.json"), self.metadata("config"))
            .expect("a writable folder");
        let weights = self.tensors_under("weights.");
        let views = weights.iter().map(|(name, data)| {
            let dtype = safetensors::Dtype::F32;
            let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
            (name, view.expect("the bytes are those of the shape"))
        });
        safetensors::serialize_to_file(views, None, &path.join("model.safetensors"))
            .expect("a writable folder");
        folder
    }
}

fn data(view: &safetensors::tensor::TensorView<'_>) -> TensorData {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F64 => DType::F64,
        safetensors::Dtype::I64 => DType::I64,
        safetensors::Dtype::I32 => DType::I32,
        safetensors::Dtype::U8 => DType::U8,
        other => {
            panic!("unsupported element type {other:?}: golden files hold f32, f64, i32, i64 or u8")
        }
    };
    TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
}

#[cfg(test)]
mod tests {
    use super::assert_values_close;

    #[test]
    fn values_within_the_tolerance_are_close() {
        assert_values_close(&[1.0, 2.00001], &[1.0, 2.0], 1e-5);
    }

    #[test]
    #[should_panic(expected = "element 1 is 2.1, expected 2")]
    fn the_worst_element_is_named() {
        assert_values_close(&[1.01, 2.1], &[1.0, 2.0], 1e-5);
    }

    #[test]
    #[should_panic(expected = "both must be finite")]
    fn a_nan_in_the_result_fails() {
        assert_values_close(&[1.0, f32::NAN], &[1.0, 2.0], 1.0);
    }

    #[test]
    #[should_panic(expected = "both must be finite")]
    fn a_nan_in_the_reference_fails() {
        assert_values_close(&[1.0, 2.0], &[1.0, f32::NAN], 1.0);
    }

    #[test]
    #[should_panic(expected = "both must be finite")]
    fn an_infinity_in_the_reference_fails() {
        assert_values_close(&[1.0, 2.0], &[1.0, f32::INFINITY], 1.0);
    }
}
