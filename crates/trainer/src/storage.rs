use burn::module::{Module, Param};
use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{NamedMapper, map_named};
use swiftbrush_kernels::release_mapped_weights;

/// Element type in which frozen weights are stored. They are widened where they are used; networks compute in
/// [`Precision`](crate::Precision) in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrozenStorage {
    /// Single precision, 4 bytes for each weight.
    #[default]
    F32,
    /// Half precision, 2 bytes; exact for models published in f16.
    F16,
    /// bfloat16, 2 bytes, for weights beyond the range of f16.
    Bf16,
}

/// The largest magnitude in f16.
const LARGEST_F16: f32 = 65504.0;

impl FrozenStorage {
    /// The element type of a parameter. Embedding tables, whose type is that of the states looked up, biases and
    /// normalisations stay in f32; together they are a fraction of a percent of a denoiser.
    pub(crate) fn dtype(self, name: &str, rank: usize) -> DType {
        let is_table = name.ends_with("embedding.weight") && !name.contains("patch_embedding");
        match self {
            Self::F16 if rank > 1 && !is_table => DType::F16,
            Self::Bf16 if rank > 1 && !is_table => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The module with its f32 weights stored in this type.
    ///
    /// # Errors
    ///
    /// If a weight is beyond the range of the type; the error names it.
    pub(crate) fn store<M: Module>(self, module: M) -> Result<M, String> {
        let mut store = Store {
            storage: self,
            problem: None,
        };
        let module = map_named(module, &mut store);
        store.problem.map_or(Ok(module), Err)
    }
}

struct Store {
    storage: FrozenStorage,
    problem: Option<String>,
}

impl NamedMapper for Store {
    fn float<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = self.storage.dtype(name, D);
        if self.storage == FrozenStorage::F32 || param.base().dtype() != DType::F32 {
            return param;
        }
        if dtype == DType::F32 {
            return owned(param);
        }
        if dtype == DType::F16 {
            let largest = param.base().abs().max().into_scalar::<f32>();
            if largest > LARGEST_F16 {
                self.problem = Some(format!(
                    "{name} has values up to {largest}, but f16 ends at {LARGEST_F16}: set \
                     frozen_weights = \"bf16\" or \"f32\""
                ));
                return param;
            }
        }
        let stored = param.map(|tensor| tensor.cast(FloatDType::from(dtype)));
        release_mapped_weights();
        stored
    }
}

/// A copy of a parameter. A file stays mapped, with all pages that were read, for as long as one of its tensors is in use.
fn owned<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    let copied = param.map(|tensor| {
        // A second handle, because an operation in place would keep the mapping beside its result.
        let copy = tensor.clone().mul_scalar(1.0);
        drop(tensor);
        copy
    });
    // After each parameter, because a network beside its mapped pages takes more memory than a step.
    release_mapped_weights();
    copied
}

/// The module with a copy of each f32 weight.
pub(crate) fn with_owned_weights<M: Module>(module: M) -> M {
    struct Own;
    impl NamedMapper for Own {
        fn float<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            owned(param)
        }
    }
    map_named(module, &mut Own)
}

/// The module with all weights in f32.
pub(crate) fn widened<M: Module>(module: M) -> M {
    struct Widen;
    impl NamedMapper for Widen {
        fn float<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match param.base().dtype() {
                DType::F32 => param,
                _ => param.map(|tensor| tensor.cast(FloatDType::F32)),
            }
        }
    }
    map_named(module, &mut Widen)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use swiftbrush_testing::{device, fill};
    use swiftbrush_unet::UNetConfig;

    use super::*;
    use crate::parameters::parameters;

    fn unet(device: &Device) -> swiftbrush_unet::UNet {
        fill(UNetConfig::tiny().init(device), 0)
    }

    #[test]
    fn matrices_are_stored_narrow_and_vectors_in_f32() {
        let stored = FrozenStorage::F16.store(unet(&device())).unwrap();
        for parameter in parameters(&stored) {
            let expected = match parameter.shape.len() {
                1 => DType::F32,
                _ => DType::F16,
            };
            assert_eq!(parameter.dtype, expected, "{}", parameter.name);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn stored_networks_do_not_keep_their_file_mapped() {
        use swiftbrush_checkpoint::{Weights, load, save};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unet.safetensors");
        save(&unet(&device()), &path, DType::F32, Default::default()).unwrap();
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.contains(path.to_str().unwrap())
        };
        let loaded = || {
            let weights = Weights::open(&path).unwrap();
            load(UNetConfig::tiny().init(&device()), &weights, None).unwrap()
        };
        let mapped = loaded();
        assert!(is_mapped(), "weights are used in place");
        drop(mapped);
        let stored = FrozenStorage::F16.store(loaded()).unwrap();
        assert!(!is_mapped());
        drop(stored);
        let owned = with_owned_weights(loaded());
        assert!(!is_mapped());
        drop(owned);
    }

    #[test]
    fn values_beyond_f16_are_rejected_by_name() {
        let device = device();
        let mut large = unet(&device);
        large = large.map(&mut Scale);
        let error = FrozenStorage::F16.store(large.clone()).unwrap_err();
        assert!(
            error.contains("weight has values up to") && error.contains("bf16"),
            "{error}"
        );
        assert!(FrozenStorage::Bf16.store(large).is_ok());
    }

    struct Scale;

    impl burn::module::ModuleMapper for Scale {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor * 1e6)
        }
    }
}
