//! open_clip's configuration and tensor names.

use serde::Deserialize;
use swiftbrush_checkpoint::{Error, Weights};

use crate::config::{ClipConfig, HiddenAct, TextConfig, VisionConfig};

/// The configuration that open_clip writes next to its weights.
pub(crate) const CONFIG: &str = "open_clip_config.json";
/// Default width of an attention head.
const HEAD_WIDTH: usize = 64;
/// Default ratio of the width of the feed-forward layers to the width of the states.
const MLP_RATIO: f64 = 4.0;
/// Number of open_clip's last layers that Stable Diffusion does not use.
const UNUSED_LAYERS: usize = 1;
/// Width and number of used layers of the text encoder of Stable Diffusion 1.x: OpenAI's ViT-L/14.
const SD1: (usize, usize) = (768, 12);
/// The same for 2.x: OpenCLIP's ViT-H/14.
const SD2: (usize, usize) = (1024, 23);

#[derive(Debug, Deserialize)]
pub(crate) struct OpenClipConfig {
    model_cfg: ModelConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelConfig {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: Vision,
    text_cfg: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vision {
    image_size: usize,
    layers: usize,
    width: usize,
    patch_size: usize,
    #[serde(default = "head_width")]
    head_width: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
}

fn head_width() -> usize {
    HEAD_WIDTH
}

fn mlp_ratio() -> f64 {
    MLP_RATIO
}

impl From<OpenClipConfig> for ClipConfig {
    fn from(config: OpenClipConfig) -> Self {
        let OpenClipConfig { model_cfg: model } = config;
        let hidden_act = match model.quick_gelu {
            true => HiddenAct::QuickGelu,
            false => HiddenAct::Gelu,
        };
        let inner = |width: usize, ratio: f64| (width as f64 * ratio) as usize;
        let (text, vision) = (model.text_cfg, model.vision_cfg);
        Self {
            text_config: TextConfig {
                vocab_size: text.vocab_size,
                hidden_size: text.width,
                intermediate_size: inner(text.width, text.mlp_ratio),
                num_hidden_layers: text.layers,
                num_attention_heads: text.heads,
                max_position_embeddings: text.context_length,
                hidden_act,
                projection_dim: model.embed_dim,
                // The end of a text is its largest token.
                eos_token_id: 2,
                ..TextConfig::default()
            },
            vision_config: VisionConfig {
                hidden_size: vision.width,
                intermediate_size: inner(vision.width, vision.mlp_ratio),
                num_hidden_layers: vision.layers,
                num_attention_heads: vision.width / vision.head_width.max(1),
                image_size: vision.image_size,
                patch_size: vision.patch_size,
                hidden_act,
                ..VisionConfig::default()
            },
            projection_dim: model.embed_dim,
            ..Self::default()
        }
    }
}

/// Returns whether the tensors have open_clip's names.
pub(crate) fn is_open_clip(weights: &Weights) -> bool {
    weights.contains("ln_final.weight")
}

/// Returns whether the weights are those of the text encoder of Stable Diffusion 2.x.
pub(crate) fn is_of_2(weights: &Weights) -> bool {
    let norm = "text_model.final_layer_norm.weight";
    is_open_clip(weights) || weights.shape(norm) == Some(&[SD2.0])
}

/// Renames the tensors of both towers, or of only the text tower, to transformers' names.
pub(crate) fn as_transformers(weights: Weights) -> Result<Weights, Error> {
    if !is_open_clip(&weights) {
        return Ok(weights);
    }
    // Old files contain the causal mask, which is not a weight.
    let mut weights = weights.filter_map(|name| (name != "attn_mask").then(|| rename(name)))?;
    let fused: Vec<_> = weights
        .names()
        .filter(|name| name.contains(".in_proj_"))
        .map(str::to_owned)
        .collect();
    for name in fused {
        let parts = ["q_proj.", "k_proj.", "v_proj."].map(|part| name.replace("in_proj_", part));
        weights.split(&name, &parts);
    }
    // open_clip multiplies from the other side.
    for name in ["text_projection.weight", "visual_projection.weight"] {
        weights.transpose(name);
    }
    Ok(weights)
}

fn rename(name: &str) -> String {
    const WHOLE: [(&str, &str); 7] = [
        (
            "positional_embedding",
            "text_model.embeddings.position_embedding.weight",
        ),
        (
            "token_embedding.weight",
            "text_model.embeddings.token_embedding.weight",
        ),
        ("text_projection", "text_projection.weight"),
        (
            "visual.class_embedding",
            "vision_model.embeddings.class_embedding",
        ),
        (
            "visual.positional_embedding",
            "vision_model.embeddings.position_embedding.weight",
        ),
        (
            "visual.conv1.weight",
            "vision_model.embeddings.patch_embedding.weight",
        ),
        ("visual.proj", "visual_projection.weight"),
    ];
    const STARTS: [(&str, &str); 5] = [
        ("transformer.resblocks.", "text_model.encoder.layers."),
        (
            "visual.transformer.resblocks.",
            "vision_model.encoder.layers.",
        ),
        ("ln_final.", "text_model.final_layer_norm."),
        ("visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("visual.ln_post.", "vision_model.post_layernorm."),
    ];
    const LAYERS: [(&str, &str); 5] = [
        (".attn.", ".self_attn."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ];
    if let Some((_, new)) = WHOLE.iter().find(|(old, _)| *old == name) {
        return (*new).to_owned();
    }
    let start = STARTS
        .iter()
        .find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)));
    let name = start.unwrap_or_else(|| name.to_owned());
    LAYERS
        .iter()
        .fold(name, |name, (old, new)| name.replacen(old, new, 1))
}

impl TextConfig {
    /// Derives the configuration of a Stable Diffusion text encoder that comes without one from its tensor shapes (in
    /// transformers' names below `text_model`). For the widths of 1.x and 2.x the number of layers and the activation are
    /// known, regardless of the number of layers in the file and of its tensor names.
    pub(crate) fn from_shapes(weights: &Weights, is_open_clip: bool) -> Self {
        let size = |name: &str, axis: usize| {
            weights
                .shape(name)
                .and_then(|shape| shape.get(axis).copied())
        };
        let stored = (0..)
            .take_while(|i| weights.contains(&format!("encoder.layers.{i}.layer_norm1.weight")))
            .count();
        let defaults = Self::default();
        let width = size("final_layer_norm.weight", 0).unwrap_or(defaults.hidden_size);
        let (hidden_act, layers) = match (width, is_open_clip) {
            (width, _) if width == SD1.0 => (HiddenAct::QuickGelu, SD1.1),
            (width, _) if width == SD2.0 => (HiddenAct::Gelu, SD2.1),
            (_, true) => (HiddenAct::Gelu, stored.saturating_sub(UNUSED_LAYERS)),
            (_, false) => (HiddenAct::QuickGelu, stored),
        };
        Self {
            vocab_size: size("embeddings.token_embedding.weight", 0).unwrap_or(defaults.vocab_size),
            hidden_size: width,
            intermediate_size: size("encoder.layers.0.mlp.fc1.weight", 0)
                .unwrap_or(MLP_RATIO as usize * width),
            num_hidden_layers: layers,
            num_attention_heads: width / HEAD_WIDTH,
            max_position_embeddings: size("embeddings.position_embedding.weight", 0)
                .unwrap_or(defaults.max_position_embeddings),
            hidden_act,
            eos_token_id: 2,
            ..defaults
        }
    }
}

/// Selects the text tower from weights in transformers' names, below `text_model`: its first `n_layers` layers (all if
/// `None`) and everything around them.
pub(crate) fn text_tower(weights: &Weights, n_layers: Option<usize>) -> Result<Weights, Error> {
    // transformers 5 saves the encoder without the prefix of earlier versions.
    let nested = weights.contains("text_model.final_layer_norm.weight");
    let prefix = if nested { "text_model." } else { "" };
    let is_used = |name: &str| {
        let layer = name.strip_prefix("encoder.layers.");
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_none_or(|layer| n_layers.is_none_or(|n_layers| layer < n_layers))
    };
    weights.filter_map(|name| {
        let name = name.strip_prefix(prefix)?;
        is_used(name).then(|| name.to_owned())
    })
}
