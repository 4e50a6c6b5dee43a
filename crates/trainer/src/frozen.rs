use burn::tensor::{Device, Tensor};
use swiftbrush_clip::{TextEncoder, Tokenizer};
use swiftbrush_scheduler::NoiseSchedule;
use swiftbrush_unet::UNet;

use crate::micro_batch::Sizes;
use crate::{ClipNetworks, Networks, Recipe};

/// Everything that training does not change.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) text_encoder: TextEncoder,
    pub(crate) teacher: UNet,
    pub(crate) schedule: NoiseSchedule,
    pub(crate) student_schedule: NoiseSchedule,
    pub(crate) null_context: Tensor<3>,
    /// For the scores of the watcher.
    pub(crate) clip: Option<ClipNetworks>,
    pub(crate) sizes: Sizes,
}

impl Frozen {
    pub(crate) fn new(recipe: &Recipe, networks: Networks, device: &Device) -> Self {
        let empty = networks.tokenizer.encode_batch(&[""], device);
        let null_context = networks.text_encoder.forward(empty);
        Self {
            null_context: null_context.cast(recipe.precision.dtype()),
            sizes: Sizes {
                latents: networks.latents,
                timesteps: networks.schedule.len(),
                device: device.clone(),
            },
            clip: networks.clip.filter(|_| recipe.watch.is_some()),
            tokenizer: networks.tokenizer,
            text_encoder: networks.text_encoder,
            teacher: networks.teacher,
            schedule: networks.schedule,
            student_schedule: networks.student_schedule,
        }
    }

    /// Encodes prompts in the element type that denoisers compute in.
    pub(crate) fn encode<S: AsRef<str>>(&self, recipe: &Recipe, prompts: &[S]) -> Tensor<3> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.sizes.device);
        let context = self.text_encoder.forward(tokens);
        context.cast(recipe.precision.dtype())
    }
}
