//! The scheduler configuration, from the model's files or its family.

use std::path::{Path, PathBuf};

use swiftbrush_scheduler::{PredictionType, SchedulerConfig};

use super::Loader;
use crate::{DecoderKind, Error, Family, Method, Warning};

/// Path of the scheduler's configuration in a model folder.
pub(super) const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// Key of the prediction type in a file's header (Stability AI's model specification).
const PREDICTS: &str = "modelspec.prediction_type";

/// The scheduler configuration, and its deviations from the file.
pub(super) struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) warnings: Vec<Warning>,
}

impl Loader {
    /// Deviations from the model's files, such as a replaced scheduler.
    ///
    /// # Errors
    ///
    /// Same as [`scheduler`](Self::scheduler).
    pub fn warnings(&self) -> Result<Vec<Warning>, Error> {
        let mut warnings = self.resolve_scheduler()?.warnings;
        warnings.extend(self.file_notes());
        Ok(warnings)
    }

    /// The notes of the files of all components and adapters.
    pub(super) fn file_notes(&self) -> Vec<Warning> {
        let decoder = match self.options.decoder {
            DecoderKind::Kl => "vae",
            DecoderKind::Tiny => "taesd",
        };
        let components = ["text_encoder", &self.options.denoiser, decoder];
        let weights = components.map(|component| self.model.weights(component));
        let notes = weights.into_iter().flatten().flat_map(|it| it.notes());
        let adapters = self.adapters.iter();
        let of_adapters = adapters.flat_map(|(file, _)| file.notes.iter().cloned());
        notes.chain(of_adapters).map(Warning::File).collect()
    }

    /// The default method of the model's scheduler; see [`Method::of_scheduler`].
    ///
    /// # Errors
    ///
    /// Same as [`scheduler`](Self::scheduler), or if its class is unknown.
    pub fn default_method(&self) -> Result<Method, Error> {
        Method::of_scheduler(&self.scheduler()?)
    }

    /// The scheduler configuration: that of the model's file or of the single file's family, with the prediction type
    /// named by the denoiser's own files.
    ///
    /// # Errors
    ///
    /// If it is missing or not supported, a single file does not identify its family, or the family contradicts the file.
    pub fn scheduler(&self) -> Result<SchedulerConfig, Error> {
        Ok(self.resolve_scheduler()?.config)
    }

    pub(super) fn resolve_scheduler(&self) -> Result<Scheduler, Error> {
        let path = self.model.path(SCHEDULER);
        let path = path.filter(|path| self.model.is_file(path));
        let predicts = self.header_prediction()?;
        let family = self.checked_family(predicts)?;
        let (mut config, mut warnings) = match &path {
            None => (
                self.guessed_family(family, predicts)?.scheduler(),
                Vec::new(),
            ),
            Some(path) => {
                let mut config = self.read_scheduler(path)?;
                let corrected = config.correct_for_stable_diffusion().into_iter();
                let mut warnings = Warning::of_scheduler(&config);
                warnings.extend(corrected.map(Warning::SchedulerCorrected));
                if family.is_some() {
                    warnings.push(Warning::FamilyUnused {
                        source: path.display().to_string(),
                    });
                }
                (config, warnings)
            }
        };
        // The weights' own files override the model's scheduler, which may belong to other weights.
        let own = match predicts {
            Some(predicts) => Some((self.weights_path(), predicts, None)),
            None => self.neighbouring_scheduler(path.as_deref())?,
        };
        if let Some((source, predicts, zero_snr)) = own {
            if predicts != config.prediction_type && path.is_some() {
                warnings.push(Warning::PredictionType {
                    source: source.display().to_string(),
                    prediction_type: format!("{predicts:?}"),
                });
            }
            let zero_snr = zero_snr
                .unwrap_or(config.rescale_betas_zero_snr && predicts != PredictionType::Epsilon);
            config = config
                .with_prediction_type(predicts)
                .with_zero_snr(zero_snr);
        }
        Ok(Scheduler { config, warnings })
    }

    /// The prediction type in the header of the denoiser's weights.
    pub(super) fn header_prediction(&self) -> Result<Option<PredictionType>, Error> {
        let Ok(weights) = self.model.weights(&self.options.denoiser) else {
            return Ok(None);
        };
        match weights.metadata().get(PREDICTS).map(String::as_str) {
            None => Ok(None),
            Some("epsilon") => Ok(Some(PredictionType::Epsilon)),
            Some("v" | "v_prediction") => Ok(Some(PredictionType::VPrediction)),
            Some(other) => Err(Error::Model {
                path: self.weights_path(),
                reason: format!(
                    "unsupported `{PREDICTS}` {other:?}; expected \"epsilon\" or \"v\""
                ),
            }),
        }
    }

    /// Prediction type and zero-SNR rescaling of the scheduler next to a denoiser that comes from another model folder.
    #[allow(clippy::type_complexity, reason = "destructured by its only caller")]
    pub(super) fn neighbouring_scheduler(
        &self,
        own: Option<&Path>,
    ) -> Result<Option<(PathBuf, PredictionType, Option<bool>)>, Error> {
        // The folder of the weights is a denoiser's if it also contains its configuration.
        let beside = self
            .weights_path()
            .parent()
            .filter(|folder| self.model.is_file(folder.join("config.json")))
            .and_then(Path::parent)
            .map(|root| root.join(SCHEDULER))
            .filter(|beside| self.model.is_file(beside) && Some(beside.as_path()) != own);
        let Some(beside) = beside else {
            return Ok(None);
        };
        let config = self.read_scheduler(&beside)?;
        let zero_snr = Some(config.rescale_betas_zero_snr);
        Ok(Some((beside, config.prediction_type, zero_snr)))
    }

    /// The family named by the caller, checked against the file.
    pub(super) fn checked_family(
        &self,
        predicts: Option<PredictionType>,
    ) -> Result<Option<Family>, Error> {
        let Some(family) = self.options.family else {
            return Ok(None);
        };
        let width = self.unet_config()?.cross_attention_dim;
        match family.contradiction(width, predicts) {
            None => Ok(Some(family)),
            Some(reason) => {
                Err(self.contradiction(format!("this is not {}: {reason}", family.name())))
            }
        }
    }

    /// The family of a model without a scheduler configuration.
    pub(super) fn guessed_family(
        &self,
        family: Option<Family>,
        predicts: Option<PredictionType>,
    ) -> Result<Family, Error> {
        if let Some(family) = family {
            return Ok(family);
        }
        if self.model.single_file().is_none() {
            return Err(self.contradiction(format!(
                "{SCHEDULER} is missing; copy it from the model that this one was made from, or name the family"
            )));
        }
        let width = self.unet_config()?.cross_attention_dim;
        Family::guess(width, predicts).ok_or_else(|| {
            self.contradiction(
                "the file does not say whether it is sd2.1-base, sd2.1 or sd-turbo: name the family, or a folder with its configurations"
                    .to_owned(),
            )
        })
    }

    /// Path of the denoiser's weights, or of the model.
    pub(super) fn weights_path(&self) -> PathBuf {
        let files = self.model.weight_files(&self.options.denoiser);
        let first = files.into_iter().next();
        first.unwrap_or_else(|| self.model.root().to_owned())
    }

    /// Channels and side of the latents.
    pub(super) fn latents(&self) -> Result<(usize, usize), Error> {
        let config = self.unet_config()?;
        let side = match self.model.config(&self.options.denoiser)? {
            Some(_) => config.sample_size,
            None => {
                let predicts = self.header_prediction()?;
                let family = self.guessed_family(self.checked_family(predicts)?, predicts)?;
                family.sample_size()
            }
        };
        Ok((config.in_channels, side))
    }

    fn read_scheduler(&self, path: &Path) -> Result<SchedulerConfig, Error> {
        let text = self.model.read_text(path)?;
        SchedulerConfig::from_json(&text).map_err(|cause| Error::Scheduler {
            path: path.to_owned(),
            cause,
        })
    }
}
