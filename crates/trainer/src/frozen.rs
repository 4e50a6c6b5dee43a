use burn::tensor::{Device, Tensor};
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;

use crate::ahead::PromptEncoder;
use crate::micro_batch::Sizes;
use crate::{ClipNetworks, LpipsNetworks, Networks, Recipe};

/// Everything that training does not change.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) encoder: PromptEncoder,
    pub(crate) teacher: UNet,
    pub(crate) schedule: NoiseSchedule,
    pub(crate) student_schedule: NoiseSchedule,
    pub(crate) null_context: Tensor<3>,
    /// For the scores of the watcher.
    pub(crate) clip: Option<ClipNetworks>,
    /// For a regression with LPIPS.
    pub(crate) lpips: Option<LpipsNetworks>,
    pub(crate) sizes: Sizes,
}

impl Frozen {
    pub(crate) fn new(recipe: &Recipe, networks: Networks, device: &Device) -> Self {
        let encoder = PromptEncoder {
            tokenizer: networks.tokenizer,
            network: networks.text_encoder,
            dtype: recipe.precision.dtype(),
            device: device.clone(),
        };
        Self {
            null_context: encoder.encode(&[""]),
            encoder,
            sizes: Sizes {
                latents: networks.latents,
                timesteps: networks.schedule.len(),
                device: device.clone(),
            },
            lpips: networks.lpips.filter(|_| recipe.uses_lpips()),
            clip: networks.clip.filter(|_| recipe.watch.is_some()),
            teacher: networks.teacher,
            schedule: networks.schedule,
            student_schedule: networks.student_schedule,
        }
    }
}
