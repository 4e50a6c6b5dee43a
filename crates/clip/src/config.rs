use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Error, Model};

use crate::open_clip::{CONFIG, OpenClipConfig, as_transformers, is_open_clip, text_tower};

/// Activation of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum HiddenAct {
    /// The exact Gaussian error linear unit (OpenCLIP's weights).
    Gelu,
    /// `x · sigmoid(1.702·x)` (OpenAI's weights).
    QuickGelu,
}

impl TryFrom<String> for HiddenAct {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "gelu" => Ok(Self::Gelu),
            "quick_gelu" => Ok(Self::QuickGelu),
            _ => Err(format!(
                "unsupported `hidden_act` \"{name}\"; expected \"gelu\" or \"quick_gelu\""
            )),
        }
    }
}

/// `text_encoder/config.json`, or `text_config` in the configuration of a complete CLIP. Defaults are those of
/// transformers. Keys that transformers writes for every model, such as generation options, are ignored, and so is dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Width of the states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Number of tokens in a prompt, including padding.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: HiddenAct,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f64,
    /// Width of the joint space.
    pub projection_dim: usize,
    /// Token whose state represents the text; 2, in older files, means the largest token.
    pub eos_token_id: i64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl TextConfig {
    /// The text encoder of SD-Turbo and Stable Diffusion 2.1: OpenCLIP ViT-H/14 without its last layer.
    pub fn sd2() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: HiddenAct::Gelu,
            eos_token_id: 2,
            ..Self::default()
        }
    }

    /// Returns an encoder of a few thousand parameters for tests and examples.
    pub fn tiny() -> Self {
        Self {
            vocab_size: 64,
            hidden_size: 12,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 10,
            hidden_act: HiddenAct::Gelu,
            projection_dim: 8,
            eos_token_id: 63,
            ..Self::default()
        }
    }

    /// Reads the `config.json` of a component of a model, usually `text_encoder`. For a single file without
    /// configurations, the fields are derived from the tensor shapes.
    ///
    /// # Errors
    ///
    /// If it cannot be read or contradicts itself.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let (config, path): (Self, _) = match model.config(component)? {
            Some(path) => (model.read_json(&path)?, path),
            None => {
                let weights = model.weights(component)?;
                let is_open_clip = is_open_clip(&weights);
                let tower = text_tower(&as_transformers(weights)?, None)?;
                (
                    Self::from_shapes(&tower, is_open_clip),
                    model.root().to_owned(),
                )
            }
        };
        config
            .check()
            .map_err(|reason| Error::Config { path, reason })?;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        check_heads(self.hidden_size, self.num_attention_heads)?;
        let sizes = [
            self.vocab_size,
            self.num_hidden_layers,
            self.max_position_embeddings,
        ];
        if sizes.contains(&0) {
            return Err(
                "vocab_size, num_hidden_layers and max_position_embeddings must not be 0"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// `vision_config` in the configuration of a complete CLIP. Defaults are those of transformers (ViT-B/32).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of the states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Number of channels of the images.
    pub num_channels: usize,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: HiddenAct,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// Returns an encoder of a few thousand parameters for tests and examples.
    pub fn tiny() -> Self {
        Self {
            hidden_size: 12,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 16,
            patch_size: 4,
            ..Self::default()
        }
    }
}

/// `config.json` of a whole CLIP. Defaults are ViT-B/32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// The text tower.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// Width of the joint space.
    pub projection_dim: usize,
    /// Initial value of the logarithm of the similarity scale.
    pub logit_scale_init_value: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            text_config: TextConfig::default(),
            vision_config: VisionConfig::default(),
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
        }
    }
}

impl ClipConfig {
    /// Returns towers of a few thousand parameters for tests and examples.
    pub fn tiny() -> Self {
        Self {
            text_config: TextConfig::tiny(),
            vision_config: VisionConfig::tiny(),
            projection_dim: 8,
            ..Self::default()
        }
    }

    /// Reads the `config.json` of a component of a model, or its `open_clip_config.json`. The component `.` is the
    /// folder itself.
    ///
    /// # Errors
    ///
    /// If there is none, it cannot be read, or it contradicts itself.
    pub fn from_model(model: &Model, component: &str) -> Result<Self, Error> {
        let open_clip = model.path(&format!("{component}/{CONFIG}"));
        let (config, path): (Self, _) = match open_clip.filter(|path| model.is_file(path)) {
            Some(path) => (model.read_json::<OpenClipConfig>(&path)?.into(), path),
            None => match model.config(component)? {
                Some(path) => (model.read_json(&path)?, path),
                None => {
                    return Err(Error::MissingFile {
                        folder: model.root().to_owned(),
                        wanted: format!("{component}/config.json"),
                    });
                }
            },
        };
        config
            .check()
            .map_err(|reason| Error::Config { path, reason })?;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        self.text_config.check()?;
        let vision = &self.vision_config;
        check_heads(vision.hidden_size, vision.num_attention_heads)?;
        if vision.patch_size == 0 || !vision.image_size.is_multiple_of(vision.patch_size) {
            let (side, patch) = (vision.image_size, vision.patch_size);
            return Err(format!(
                "unsupported `image_size` {side}; expected a multiple of `patch_size` {patch}"
            ));
        }
        Ok(())
    }
}

fn check_heads(width: usize, heads: usize) -> Result<(), String> {
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        return Err(format!(
            "unsupported `hidden_size` {width}; expected a multiple of the {heads} attention heads"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_activations_are_named() {
        let error = serde_json::from_str::<TextConfig>(r#"{"hidden_act": "gelu_new"}"#);
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("unsupported `hidden_act` \"gelu_new\"; expected"),
            "{error}"
        );
        for act in [HiddenAct::Gelu, HiddenAct::QuickGelu] {
            let text = serde_json::to_string(&act).unwrap();
            assert_eq!(serde_json::from_str::<HiddenAct>(&text).unwrap(), act);
        }
    }
}
