//! Published rewards that score an image by CLIP's embeddings.

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::Model;
use swiftbrush_clip::{Clip, Tokenizer};
use swiftbrush_vae::AutoencoderTiny;

use crate::{ClipNetworks, Error, FrozenStorage, Recipe};

/// A published reward: a CLIP, tuned on human preferences, and the score that it gives to an image with a prompt.
///
/// Both are ViT-H/14 with images of 224×224 pixels, normalised as CLIP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RewardModel {
    /// HPSv2 (arXiv 2306.09341): the cosine, without a logit scale, about 0.2 to 0.35; tables show it times 100.
    Hps,
    /// PickScore (arXiv 2305.01569): the cosine times the exponential of the network's logit scale, about 18 to 25.
    PickScore,
}

/// Settings of a published reward: `[rewards.hps]` or `[rewards.pick_score]` in a recipe. Neither value is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardRecipe {
    /// Weight at the first step, which decays linearly to 0 at the last step.
    pub weight: f64,
    /// The score above which an image gets no gradient.
    pub threshold: f64,
}

/// The networks of a published reward.
#[derive(Clone, Debug)]
pub struct RewardNetworks {
    /// Both towers, and the decoder that gradients pass through.
    pub networks: ClipNetworks,
    /// The tokenizer of the text tower.
    pub tokenizer: Tokenizer,
}

impl RewardModel {
    /// The name in recipes and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hps => "hps",
            Self::PickScore => "pick_score",
        }
    }

    /// The embeddings of texts, scaled so that their product with the embedding of an image is the score.
    ///
    /// # Shapes
    ///
    /// - embeds: `[batch, width]`, of length one
    /// - returns: the same shape
    pub(crate) fn scaled(self, clip: &Clip, embeds: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Hps => embeds,
            Self::PickScore => {
                let scale = clip.logit_scale.val().exp();
                embeds * scale.unsqueeze::<2>()
            }
        }
    }
}

impl RewardNetworks {
    /// Loads the network of a folder (configuration and weights of transformers or open_clip) and `taesd` of another model.
    /// Weights are stored as the recipe says. The tokenizer is that of the folder, or CLIP's own if it has none.
    ///
    /// # Errors
    ///
    /// If a component is missing or cannot be read, or has weights beyond the range of their type.
    pub fn load(
        folder: &Model,
        decoder: &Model,
        recipe: &Recipe,
        device: &Device,
    ) -> Result<Self, Error> {
        let f32 = Some(DType::F32);
        let networks = ClipNetworks {
            clip: Clip::from_model(folder, ".", f32, device)?,
            decoder: AutoencoderTiny::from_model(decoder, "taesd", f32, device)?,
        };
        let has_vocabulary = ["vocab.json", "tokenizer.json"].iter().any(|name| {
            let path = folder.path(name);
            path.is_some_and(|path| folder.is_file(path))
        });
        let tokenizer = match has_vocabulary {
            true => Tokenizer::from_model(folder, ".").map_err(swiftbrush_pipeline::Error::from)?,
            false => Tokenizer::clip(PADDING),
        };
        Self {
            networks,
            tokenizer,
        }
        .stored(recipe.frozen_weights)
    }

    pub(crate) fn stored(self, storage: FrozenStorage) -> Result<Self, Error> {
        let networks = self.networks.stored(storage)?;
        Ok(Self { networks, ..self })
    }
}

/// The end of a text, which also pads it: nothing after it is attended to.
const PADDING: &str = "<|endoftext|>";
