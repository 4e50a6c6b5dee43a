//! Translation of tensor names from the original training code ("LDM"), early diffusers and TAESD to those of diffusers.

use swiftbrush_checkpoint::{Error, Weights};

use crate::AutoencoderKlConfig;
use crate::config::{DecoderBlockType, EncoderBlockType};

/// Layers of the attention in the middle block, in early diffusers and in LDM.
const ATTENTION: [(&str, &str); 9] = [
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out.0"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
    ("norm", "group_norm"),
];

/// Renames the tensors of an `AutoencoderKL` to the current names of diffusers. Tensors used only in LDM's training
/// (discriminator, averaged weights) are dropped.
pub(crate) fn as_diffusers(weights: Weights) -> Result<Weights, Error> {
    let levels = (0..)
        .take_while(|i| weights.contains(&format!("decoder.up.{i}.block.0.conv1.weight")))
        .count();
    let mut renamed = weights.filter_map(|name| {
        let of_training = name.starts_with("loss.") || name.starts_with("model_ema.");
        (!of_training).then(|| attention(&block(name, levels)))
    })?;
    // LDM stores the linear layers of attention as 1×1 convolutions.
    let flat: Vec<_> = renamed
        .names()
        .filter(|name| name.contains("mid_block.attentions.") && name.ends_with(".weight"))
        .filter_map(|name| match renamed.shape(name)? {
            &[outputs, inputs, 1, 1] => Some((name.to_owned(), [outputs, inputs])),
            _ => None,
        })
        .collect();
    for (name, shape) in flat {
        renamed.reshape(&name, shape);
    }
    Ok(renamed)
}

/// Renames LDM's blocks. LDM numbers the levels of the decoder from the finest, diffusers from the coarsest.
fn block(name: &str, levels: usize) -> String {
    let Some((half, rest)) = name.split_once('.') else {
        return name.to_owned();
    };
    let parts: Vec<_> = rest.splitn(4, '.').collect();
    let number = |text: &str| text.parse::<usize>().ok().filter(|&i| i < levels);
    let renamed = match parts.as_slice() {
        ["norm_out", rest] => Some(format!("conv_norm_out.{rest}")),
        ["mid", "block_1", rest @ ..] => Some(format!("mid_block.resnets.0.{}", rest.join("."))),
        ["mid", "attn_1", rest @ ..] => Some(format!("mid_block.attentions.0.{}", rest.join("."))),
        ["mid", "block_2", rest @ ..] => Some(format!("mid_block.resnets.1.{}", rest.join("."))),
        ["down", level, "block", rest] => {
            Some(format!("down_blocks.{level}.resnets.{}", shortcut(rest)))
        }
        ["down", level, "downsample", rest] => {
            Some(format!("down_blocks.{level}.downsamplers.0.{rest}"))
        }
        ["up", level, "block", rest] => number(level).map(|level| {
            let level = levels - 1 - level;
            format!("up_blocks.{level}.resnets.{}", shortcut(rest))
        }),
        ["up", level, "upsample", rest] => number(level)
            .map(|level| format!("up_blocks.{}.upsamplers.0.{rest}", levels - 1 - level)),
        _ => None,
    };
    renamed.map_or_else(|| name.to_owned(), |rest| format!("{half}.{rest}"))
}

fn shortcut(name: &str) -> String {
    name.replace("nin_shortcut", "conv_shortcut")
}

fn attention(name: &str) -> String {
    const BLOCK: &str = ".mid_block.attentions.0.";
    let renamed = name.split_once(BLOCK).and_then(|(half, rest)| {
        let (layer, kind) = rest.rsplit_once('.')?;
        let (_, new) = ATTENTION.iter().find(|(old, _)| *old == layer)?;
        Some(format!("{half}{BLOCK}{new}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

impl AutoencoderKlConfig {
    /// Derives the configuration of Stable Diffusion's autoencoder from the shapes of these tensors (in diffusers' names).
    pub(crate) fn from_shapes(weights: &Weights) -> Self {
        let size = |name: &str| weights.shape(name).and_then(|shape| shape.first().copied());
        let level = |i: usize| size(&format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"));
        let block_out_channels: Vec<_> = (0..).map_while(level).collect();
        let layer = |i: &usize| {
            weights.contains(&format!("encoder.down_blocks.0.resnets.{i}.conv1.weight"))
        };
        let defaults = Self::default();
        Self {
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D; block_out_channels.len()],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D; block_out_channels.len()],
            block_out_channels,
            layers_per_block: (0..).take_while(layer).count(),
            latent_channels: size("post_quant_conv.weight").unwrap_or(defaults.latent_channels),
            ..defaults
        }
    }
}

/// Renames the tensors of one of TAESD's own two files to diffusers' names. Each file has half of the network as numbered
/// layers; the first layer of the decoder is a clamp without weights.
pub(crate) fn of_taesd(weights: &Weights, half: &str) -> Result<Weights, Error> {
    let before = usize::from(half == "decoder");
    weights.rename(|name| {
        let renamed = name.split_once('.').and_then(|(layer, rest)| {
            let layer = layer.parse::<usize>().ok()?.checked_sub(before)?;
            Some(format!("{half}.layers.{layer}.{rest}"))
        });
        renamed.unwrap_or_else(|| name.to_owned())
    })
}
