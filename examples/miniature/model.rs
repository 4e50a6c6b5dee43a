//! Configurations and the model folder, in diffusers' layout.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::{DType, Device, Shape, TensorData};
use serde::Serialize;
use serde_json::{Value, json};
use swiftbrush_checkpoint::{
    LazyTensor, Model, named_tensors, read_json, sha256, write_json, write_tensors,
};
use swiftbrush_pipeline::{Loader, TextToImage};
use swiftbrush_scheduler::SchedulerConfig;
use swiftbrush_unet::{BlockType, OneOrMany, UNetConfig};

use crate::data::SIDE;

pub(crate) fn unet_config() -> UNetConfig {
    use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D};
    UNetConfig {
        sample_size: SIDE / 4,
        down_block_types: vec![CrossAttnDownBlock2D; 2],
        up_block_types: vec![CrossAttnUpBlock2D; 2],
        block_out_channels: vec![64, 128],
        layers_per_block: OneOrMany::One(1),
        attention_head_dim: OneOrMany::Many(vec![2, 4]),
        cross_attention_dim: 64,
        norm_num_groups: 16,
        ..UNetConfig::default()
    }
}

/// Stable Diffusion's betas; the class name selects the sampler.
pub(crate) fn scheduler(class_name: &str) -> SchedulerConfig {
    SchedulerConfig::default().with_class(class_name)
}

/// Writes a component of a model folder: `config.json` with the class, and the weights.
pub(crate) fn write_component<M: Module>(
    folder: &Path,
    class_name: &str,
    config: &impl Serialize,
    module: &M,
    dtype: DType,
) -> Result<()> {
    let mut config = serde_json::to_value(config)?;
    let is_clip = class_name.starts_with("CLIP");
    if let Value::Object(config) = &mut config {
        config.retain(|_, value| !value.is_null());
        let (key, value) = if is_clip {
            ("architectures", json!([class_name]))
        } else {
            ("_class_name", json!(class_name))
        };
        config.insert(key.to_owned(), value);
    }
    write_json(folder.join("config.json"), &config)?;
    let file = if is_clip {
        "model.safetensors"
    } else {
        "diffusion_pytorch_model.safetensors"
    };
    let tensors = named_tensors(module).into_iter().map(|(name, data)| {
        let data = data.convert_dtype(dtype);
        // A scalar in PyTorch.
        let data = if name == "logit_scale" {
            without_axes(data)
        } else {
            data
        };
        LazyTensor::ready(name, data)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(write_tensors(
        folder.join(file),
        tensors.collect(),
        metadata,
    )?)
}

fn without_axes(data: TensorData) -> TensorData {
    let (bytes, _, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, Shape::new([]), dtype)
}

/// Writes the settings that cached results beside `path` depend on, or checks them against those of the results.
pub(crate) fn keep_settings(path: &Path, settings: &Value) -> Result<()> {
    if !path.is_file() {
        return Ok(write_json(path, settings)?);
    }
    let found: Value = read_json(path)?;
    ensure!(
        found == *settings,
        "{}: the results in this folder belong to other weights or another seed; move them away, or use another root\nexpected {settings}\nfound {found}",
        path.display()
    );
    Ok(())
}

/// The training folder: stages with snapshots and logs, and the model.
pub(crate) struct Workshop {
    pub(crate) root: PathBuf,
    pub(crate) device: Device,
    pub(crate) seed: u64,
}

impl Workshop {
    /// Folder of a training stage.
    pub(crate) fn stage(&self, name: &str) -> PathBuf {
        self.root.join("stages").join(name)
    }

    /// Folder of a component of the model.
    pub(crate) fn path(&self, component: &str) -> PathBuf {
        self.root.join("model").join(component)
    }

    /// The model folder with the finished components.
    pub(crate) fn model(&self) -> Result<Model> {
        let path = self.root.join("model");
        std::fs::create_dir_all(&path)?;
        Ok(Model::open(path)?)
    }

    /// Writes the scheduler configuration.
    pub(crate) fn write_scheduler(&self, class_name: &str) -> Result<()> {
        let path = self.path("scheduler").join("scheduler_config.json");
        Ok(write_json(&path, &scheduler(class_name))?)
    }

    /// The SHA-256 of the weights of components, by name.
    pub(crate) fn hashes(&self, components: &[&str]) -> Result<BTreeMap<String, String>> {
        let model = self.model()?;
        let mut hashes = BTreeMap::new();
        for &component in components {
            let files = model.weights(component)?.files();
            let of_files: Result<Vec<_>, _> = files.iter().map(sha256).collect();
            hashes.insert(component.to_owned(), of_files?.concat());
        }
        Ok(hashes)
    }

    /// The model folder with one of its denoisers.
    pub(crate) fn pipeline(&self, denoiser: &str) -> Result<TextToImage> {
        let loader = Loader::new(self.model()?, &self.device);
        Ok(loader.with_denoiser(denoiser).load()?)
    }
}
