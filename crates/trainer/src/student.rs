use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use swiftbrush_checkpoint::save;
use swiftbrush_lora::{Adapters, LoraConfig, materialize};
use swiftbrush_unet::UNet;

use crate::fingerprint::{RECIPE, hash, saved_fingerprint};
use crate::networks::stored;
use crate::parameters::with_trained;
use crate::storage::widened;
use crate::trained::trainable;
use crate::{Ema, Error, Recipe, Snapshot};

/// A trained student with its adapters, if it has any, and its averaged weights; without autodiff.
#[derive(Clone, Debug)]
pub struct Student {
    unet: UNet,
    lora: Option<LoraConfig>,
    ema: Ema,
}

impl Student {
    pub(crate) fn new(unet: UNet, lora: Option<LoraConfig>, ema: Ema) -> Self {
        Self { unet, lora, ema }
    }

    /// Reads the student of a snapshot; `base` is the network that the run started from, in f32.
    ///
    /// # Errors
    ///
    /// If the snapshot has no recipe or belongs to another base network; `source` is the file named in
    /// the error.
    pub fn from_snapshot(
        snapshot: &Snapshot,
        source: impl AsRef<Path>,
        base: &UNet,
    ) -> Result<Self, Error> {
        let source = source.as_ref();
        let bad = |reason: String| Error::Snapshot {
            path: source.to_owned(),
            reason,
        };
        let fingerprint = saved_fingerprint(snapshot, source)?;
        let recipe = snapshot.text(RECIPE).unwrap_or_default();
        let recipe: Recipe = serde_json::from_str(recipe)
            .map_err(|error| bad(format!("{RECIPE} in its header: {error}")))?;
        let base = &stored(recipe.student_storage(), "student", base.clone())?;
        let (expected, found) = (fingerprint.get("student"), hash(base));
        if expected != Some(&found) {
            return Err(bad(format!(
                "its run started from another student: expected weights with the hash {}, found {found}",
                expected.unwrap_or("none")
            )));
        }
        let student = trainable(base, recipe.student_lora.as_ref(), recipe.seed)?;
        let unet = with_trained(student, snapshot.group("student"), source)?;
        let device = parameters_device(base);
        Ok(Self {
            unet: unet.valid(),
            ema: snapshot.ema("ema", recipe.ema_decay, &device),
            lora: recipe.student_lora,
        })
    }

    /// Returns the student with its averaged weights as its weights.
    pub fn averaged(self) -> Self {
        Self {
            unet: self.ema.apply(self.unet),
            ..self
        }
    }

    /// The denoiser with its adapters beside its weights, some of which may be stored in half precision.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// The denoiser with its adapters merged, in f32.
    pub fn merged(&self) -> UNet {
        materialize(widened(self.unet.clone()))
    }

    /// Writes the denoiser with its adapters merged to a safetensors file of element type `dtype`, atomically. Weights in half
    /// precision are widened one at a time, so that this takes less memory than a step.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or a weight contains a NaN or an infinity or exceeds the range of `dtype`.
    pub fn save(
        &self,
        path: impl AsRef<Path>,
        dtype: DType,
        metadata: HashMap<String, String>,
    ) -> Result<(), Error> {
        let merged = materialize(self.unet.clone());
        Ok(save(&merged, path, dtype, metadata)?)
    }

    /// The adapters; `None` if all weights were trained.
    pub fn adapters(&self) -> Option<Adapters> {
        let lora = self.lora.as_ref()?;
        Some(Adapters::from_module(&self.unet, lora.alpha))
    }
}

fn parameters_device(unet: &UNet) -> burn::tensor::Device {
    let devices = unet.devices();
    let device = devices.into_iter().next();
    device.expect("a denoiser has parameters")
}
