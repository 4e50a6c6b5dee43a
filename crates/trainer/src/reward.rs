use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use swiftbrush_clamped_clip_loss::linear_decay;
use swiftbrush_clip::{Clip, Tokenizer};
use swiftbrush_vae::AutoencoderTiny;

use crate::ClipRecipe;
use crate::fingerprint::hash;
use crate::losses::clip_loss;

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

/// The clamped CLIP loss through a tiny decoder (arXiv 2408.14176, §4.3).
#[derive(Debug)]
pub struct ClipReward {
    networks: ClipNetworks,
    tokenizer: Tokenizer,
    recipe: ClipRecipe,
    dtype: FloatDType,
    device: Device,
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
            recipe,
            dtype,
            device: device.clone(),
        }
    }
}

impl Reward for ClipReward {
    fn name(&self) -> &str {
        "clip"
    }

    fn weight(&self, step: u64, steps: u64) -> f64 {
        linear_decay(self.recipe.weight, step, steps)
    }

    fn loss(&self, latents: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        let tokens = self.tokenizer.encode_batch(prompts, &self.device);
        let texts = self.networks.clip.embed_texts(tokens);
        let clip = self.networks.clip.clone().freeze().train();
        let decoder = self.networks.decoder.clone().freeze().train();
        let latents = latents.cast(self.dtype);
        clip_loss(&clip, &decoder, latents, texts, self.recipe.threshold)
    }

    fn hash(&self) -> String {
        format!(
            "{} {}",
            hash(&self.networks.clip),
            hash(&self.networks.decoder)
        )
    }
}
