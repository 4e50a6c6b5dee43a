use serde::{Deserialize, Serialize};
use swiftbrush_scheduler::{PredictionType, SchedulerConfig, TimestepSpacing};

/// The families of models that are distributed as a single file, without a scheduler configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x. Predicts noise unless the file's header says otherwise.
    #[serde(rename = "sd1.5")]
    Sd1,
    /// Stable Diffusion 2.x at 512 pixels, which predicts noise.
    #[serde(rename = "sd2.1-base")]
    Sd2Base,
    /// Stable Diffusion 2.x at 768 pixels, which predicts velocity.
    #[serde(rename = "sd2.1")]
    Sd2,
    /// SD-Turbo, which generates in one step.
    #[serde(rename = "sd-turbo")]
    SdTurbo,
}

/// Width of the text states of Stable Diffusion 1.x.
const WIDTH_OF_1: usize = 768;
/// Width of the text states of Stable Diffusion 2.x.
const WIDTH_OF_2: usize = 1024;

impl Family {
    /// The scheduler of the family's folder on the hub.
    pub fn scheduler(self) -> SchedulerConfig {
        let leading = SchedulerConfig::default()
            .with_class("PNDMScheduler")
            .with_spacing(TimestepSpacing::Leading);
        match self {
            Self::Sd1 | Self::Sd2Base => leading,
            Self::Sd2 => leading
                .with_class("DDIMScheduler")
                .with_prediction_type(PredictionType::VPrediction),
            Self::SdTurbo => SchedulerConfig::default(),
        }
    }

    /// The family of a denoiser with this width and the prediction type named by its file; `None` if it is ambiguous.
    pub(crate) fn guess(width: usize, predicts: Option<PredictionType>) -> Option<Self> {
        match predicts {
            _ if width == WIDTH_OF_1 => Some(Self::Sd1),
            Some(PredictionType::VPrediction) => Some(Self::Sd2),
            _ => None,
        }
    }

    /// The reason why a denoiser with this width, and the prediction type named by its file, is not of this family.
    pub(crate) fn contradiction(
        self,
        width: usize,
        predicts: Option<PredictionType>,
    ) -> Option<String> {
        let is_1 = self == Self::Sd1;
        if (is_1 && width == WIDTH_OF_2) || (!is_1 && width == WIDTH_OF_1) {
            return Some(format!("its denoiser reads states of width {width}"));
        }
        // For 1.x, both prediction types are in use.
        let predicts = predicts.filter(|_| !is_1)?;
        (predicts != self.scheduler().prediction_type)
            .then(|| format!("its header names the prediction type {predicts:?}"))
    }

    /// Side of the latents that the family was trained on.
    pub(crate) fn sample_size(self) -> usize {
        match self {
            Self::Sd2 => 96,
            Self::Sd1 | Self::Sd2Base | Self::SdTurbo => 64,
        }
    }

    /// Name in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1.5",
            Self::Sd2Base => "sd2.1-base",
            Self::Sd2 => "sd2.1",
            Self::SdTurbo => "sd-turbo",
        }
    }
}
