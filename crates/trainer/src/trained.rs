use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use swiftbrush_lora::{LoraConfig, attach};
use swiftbrush_unet::UNet;

use crate::parameters::with_trained;
use crate::shards::Shards;
use crate::{AdamW, Communicator, Error, NamedGradients};

/// A denoiser under training, on the autodiff device, with its optimiser.
#[derive(Debug)]
pub(crate) struct Trained {
    /// `None` only during an update: an optimiser that is the only owner of the weights overwrites them in place.
    unet: Option<UNet>,
    adamw: AdamW,
}

impl Trained {
    pub(crate) fn new(unet: UNet, adamw: AdamW) -> Self {
        Self {
            unet: Some(unet),
            adamw,
        }
    }

    pub(crate) fn unet(&self) -> &UNet {
        let unet = self.unet.as_ref();
        unet.expect("an update puts the network back")
    }

    pub(crate) fn adamw(&self) -> &AdamW {
        &self.adamw
    }

    /// The network without autodiff.
    pub(crate) fn plain(&self) -> UNet {
        self.unet().valid()
    }

    /// Gives the network its own leaves, because burn processes graphs that share leaves sequentially.
    pub(crate) fn own(&self) -> UNet {
        self.plain().train()
    }

    pub(crate) fn update(&mut self, grads: NamedGradients, learning_rate: f64) {
        let unet = self.unet.take();
        self.unet = unet.map(|unet| self.adamw.step(unet, grads, learning_rate));
    }

    pub(crate) fn retain_moments(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.adamw.retain(is_kept);
    }

    /// Replaces the parameters that other ranks have updated.
    pub(crate) fn gather(
        &mut self,
        shards: &Shards,
        communicator: &dyn Communicator,
    ) -> Result<(), Error> {
        let unet = self.unet.take();
        let unet = unet.map(|unet| shards.gather(communicator, unet));
        self.unet = unet.transpose()?;
        Ok(())
    }

    /// Replaces the weights and then the optimiser, so that two networks are never beside the moments.
    ///
    /// # Errors
    ///
    /// Same as [`with_trained`].
    pub(crate) fn restore(
        self,
        tensors: BTreeMap<String, TensorData>,
        adamw: impl FnOnce() -> AdamW,
        source: &Path,
    ) -> Result<Self, Error> {
        let unet = self.unet.map(|unet| with_trained(unet, tensors, source));
        let unet = unet.transpose()?;
        let adamw = adamw();
        Ok(Self { unet, adamw })
    }
}

/// A network on the autodiff device, in which all weights are trained or only adapters.
///
/// # Errors
///
/// If the adapters fit no layer.
pub(crate) fn trainable(base: &UNet, lora: Option<&LoraConfig>, seed: u64) -> Result<UNet, Error> {
    let unet = base.clone().train().unfreeze();
    Ok(match lora {
        Some(lora) => attach(unet, lora, seed)?,
        None => unet,
    })
}
