//! What the tests of the workspace share: the device they run on, closeness, golden files, fuzzing.
//!
//! `SWIFTBRUSH_TEST_DEVICE` names the device (`flex`, `wgpu` or `cuda`; `flex` when unset); the
//! backend has to be compiled in with the feature of the same name.

mod fuzz;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::tensor::TensorView;
use tempfile::TempDir;

pub use fuzz::fuzz;

/// How far f32 may lie from a reference computed in f64, relative to the largest magnitude of the
/// tensor: rounding of a few hundred operations in sequence, each within 6e-8.
pub const F32: f64 = 1e-5;

/// The device that `SWIFTBRUSH_TEST_DEVICE` names.
///
/// # Panics
///
/// If the name is unknown or the backend was not compiled in.
pub fn device() -> Device {
    let name = std::env::var("SWIFTBRUSH_TEST_DEVICE").unwrap_or_else(|_| "flex".to_owned());
    match name.as_str() {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        other => {
            panic!("SWIFTBRUSH_TEST_DEVICE is {other:?}: not a device compiled into these tests")
        }
    }
}

/// Normal numbers with a mean of 0.3 and a deviation of 1.5, the same on every device: where a test sums few
/// numbers that nearly cancel, others would fail it once in a while.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let normal = Normal::new(0.3f32, 1.5).expect("the deviation is finite");
    let values = normal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let values: Vec<f32> = values.take(shape.iter().product()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Asserts that two tensors agree within `tolerance` of the largest magnitude expected.
///
/// # Panics
///
/// If the shapes differ, a value is not finite, or one lies farther off; the message names the
/// worst element.
#[track_caller]
pub fn assert_close<const D: usize>(found: Tensor<D>, expected: Tensor<D>, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "the shapes differ");
    assert_values_close(&values(found), &values(expected), tolerance);
}

/// [`assert_close`] on plain numbers.
///
/// # Panics
///
/// As there.
#[track_caller]
pub fn assert_values_close(found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "the lengths differ");
    let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let scale = f64::from(scale).max(f64::MIN_POSITIVE);
    let mut worst = (0, 0.0);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found.is_finite(),
            "element {index} is {found}, expected {expected}"
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

/// The elements of a tensor, row by row, as f32.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Numbers stored by a reference implementation, read from a safetensors file.
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
    /// If `tests/golden/<name>.safetensors` is missing or damaged: a parity test without its numbers
    /// is a failure, not a skipped test.
    pub fn open(directory: &str, name: &str) -> Self {
        let path = Path::new(directory)
            .join("tests/golden")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path)
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

    /// The stored tensor as it is.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn data(&self, name: &str) -> TensorData {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("the golden file has no {name}"))
            .clone()
    }

    /// A float tensor on a device.
    ///
    /// # Panics
    ///
    /// If there is none of that name, or its rank is not `D`.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name).convert_dtype(DType::F32), device)
    }

    /// An integer tensor on a device.
    ///
    /// # Panics
    ///
    /// As [`tensor`](Self::tensor).
    pub fn ints<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name).convert_dtype(DType::I32), device)
    }

    /// A string that the reference stored beside the tensors: a config as JSON, usually.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn metadata(&self, name: &str) -> &str {
        self.metadata
            .get(name)
            .unwrap_or_else(|| panic!("the golden file has no metadata {name}"))
    }

    /// The tensors whose names begin with `prefix`, under the rest of their names.
    pub fn tensors_under(&self, prefix: &str) -> BTreeMap<String, TensorData> {
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, data)| Some((name.strip_prefix(prefix)?.to_owned(), data.clone())))
            .collect()
    }

    /// A model folder on disk with one component: the stored `config` as its `config.json`, the stored
    /// tensors under `weights.` as its weights.
    ///
    /// # Panics
    ///
    /// If there is no such metadata, or the folder cannot be written.
    pub fn model_folder(&self, component: &str) -> TempDir {
        let folder = TempDir::new().expect("a temporary folder can be made");
        let path = folder.path().join(component);
        std::fs::create_dir(&path).expect("the folder is empty");
        std::fs::write(path.join("config.json"), self.metadata("config")).expect("there is room");
        let weights = self.tensors_under("weights.");
        let views = weights.iter().map(|(name, data)| {
            let dtype = safetensors::Dtype::F32;
            let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
            (name, view.expect("the bytes are those of the shape"))
        });
        safetensors::serialize_to_file(views, None, &path.join("model.safetensors"))
            .expect("there is room");
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
        other => panic!("golden files hold f32, f64, i32, i64 or u8, not {other:?}"),
    };
    TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
}
