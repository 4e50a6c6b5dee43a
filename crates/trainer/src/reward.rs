use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use swiftbrush_checkpoint::Model;
use swiftbrush_clamped_clip_loss::linear_decay;
use swiftbrush_clip::{Clip, Tokenizer};
use swiftbrush_vae::AutoencoderTiny;

use crate::fingerprint::hash;
use crate::losses::{clip_loss, clip_loss_checkpointed};
use crate::networks::stored;
use crate::{ClipRecipe, Error, FrozenStorage, Recipe, RewardModel, RewardNetworks, RewardRecipe};

/// A differentiable loss on the student's latents, added to distillation.
///
/// ```
/// use burn::tensor::Tensor;
/// use swiftbrush_trainer::Reward;
///
/// /// Keeps latents small.
/// #[derive(Debug)]
/// struct Small;
///
/// impl Reward for Small {
///     fn name(&self) -> &str {
///         "small"
///     }
///     fn weight(&self, _step: u64, _steps: u64) -> f64 {
///         0.01
///     }
///     fn loss(&self, latents: Tensor<4>, _prompts: &[String]) -> Tensor<1> {
///         latents.powi_scalar(2).mean()
///     }
///     fn hash(&self) -> String {
///         "0.01".to_owned()
///     }
/// }
/// ```
///
/// [`Distiller::with_reward`](crate::Distiller::with_reward) adds it to a run.
pub trait Reward: std::fmt::Debug + Send + Sync {
    /// Name of the loss in the log.
    fn name(&self) -> &str;

    /// Weight of the loss at a step of a run of `steps` steps.
    fn weight(&self, step: u64, steps: u64) -> f64;

    /// Computes the loss of a micro-batch, which decreases as the images get better.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, channels, height, width]`, f32, on the student's graph
    /// - prompts: one per sample
    /// - returns: `[1]`, f32, on the same graph
    fn loss(&self, latents: Tensor<4>, prompts: &[String]) -> Tensor<1>;

    /// Identifies weights and settings; saved with each snapshot.
    fn hash(&self) -> String;
}

/// The networks of the clamped CLIP loss.
#[derive(Clone, Debug)]
pub struct ClipNetworks {
    /// Both towers.
    pub clip: Clip,
    /// The decoder that gradients pass through.
    pub decoder: AutoencoderTiny,
}

impl ClipNetworks {
    /// Loads `clip` and `taesd` of a model folder; weights are stored as the recipe says.
    ///
    /// # Errors
    ///
    /// If a component is missing or cannot be read, or has weights beyond the range of their type.
    pub fn load(model: &Model, recipe: &Recipe, device: &Device) -> Result<Self, Error> {
        let f32 = Some(DType::F32);
        let networks = Self {
            clip: Clip::from_model(model, "clip", f32, device)?,
            decoder: AutoencoderTiny::from_model(model, "taesd", f32, device)?,
        };
        networks.stored(recipe.frozen_weights)
    }

    /// The networks with weights stored in a type.
    ///
    /// # Errors
    ///
    /// If a weight is beyond its range.
    pub(crate) fn stored(self, storage: FrozenStorage) -> Result<Self, Error> {
        Ok(Self {
            clip: stored(storage, "clip", self.clip)?,
            decoder: stored(storage, "decoder", self.decoder)?,
        })
    }
}

/// The clamped CLIP loss through a tiny decoder (arXiv 2408.14176, §4.3), or that of a published reward: the mean of
/// max(0, threshold − score).
#[derive(Debug)]
pub struct ClipReward {
    networks: ClipNetworks,
    tokenizer: Tokenizer,
    /// `None` for the paper's own loss.
    model: Option<RewardModel>,
    weight: f64,
    threshold: f64,
    dtype: FloatDType,
    device: Device,
    is_checkpointed: bool,
}

impl ClipReward {
    /// Creates the loss; `dtype` is the element type that the networks compute in.
    pub fn new(
        networks: ClipNetworks,
        tokenizer: Tokenizer,
        recipe: ClipRecipe,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        Self {
            networks,
            tokenizer,
            model: None,
            weight: recipe.weight,
            threshold: recipe.threshold,
            dtype,
            device: device.clone(),
            is_checkpointed: false,
        }
    }

    /// Creates the loss of a published reward; `dtype` is the element type that the networks compute in.
    pub fn published(
        model: RewardModel,
        networks: RewardNetworks,
        recipe: &RewardRecipe,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        Self {
            networks: networks.networks,
            tokenizer: networks.tokenizer,
            model: Some(model),
            weight: recipe.weight,
            threshold: recipe.threshold,
            dtype,
            device: device.clone(),
            is_checkpointed: false,
        }
    }

    /// Keeps only the inputs of the networks' blocks for the backward pass; see [`clip_loss_checkpointed`].
    pub fn with_checkpoints(self) -> Self {
        Self {
            is_checkpointed: true,
            ..self
        }
    }
}

impl Reward for ClipReward {
    fn name(&self) -> &str {
        self.model.map_or("clip", RewardModel::name)
    }

    fn weight(&self, step: u64, steps: u64) -> f64 {
        linear_decay(self.weight, step, steps)
    }

    fn loss(&self, latents: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.device);
        let mut texts = self.networks.clip.embed_texts(tokens);
        if let Some(model) = self.model {
            texts = model.scaled(&self.networks.clip, texts);
        }
        let clip = self.networks.clip.clone().freeze().train();
        let decoder = self.networks.decoder.clone().freeze().train();
        let (latents, threshold) = (latents.cast(self.dtype), self.threshold);
        match self.is_checkpointed {
            true => clip_loss_checkpointed(&clip, &decoder, latents, texts, threshold),
            false => clip_loss(&clip, &decoder, latents, texts, threshold),
        }
    }

    fn hash(&self) -> String {
        format!(
            "{} {}",
            hash(&self.networks.clip),
            hash(&self.networks.decoder)
        )
    }
}
