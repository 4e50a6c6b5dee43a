//! Translation of tensor names from the original training code (latent-diffusion, "LDM") to those of diffusers.

use swiftbrush_checkpoint::{Error, Weights};

use crate::config::{BlockType, OneOrMany, UNetConfig};

/// Channels per attention head in 2.x checkpoints.
const HEAD_CHANNELS: usize = 64;
/// Attention heads in 1.x checkpoints.
const HEADS: usize = 8;

/// Renames the tensors to diffusers' names; diffusers files are returned unchanged.
pub(crate) fn as_diffusers(weights: Weights) -> Result<Weights, Error> {
    if !weights.contains("input_blocks.0.0.weight") {
        return Ok(weights);
    }
    let stems = stems(&weights);
    weights.rename(|name| {
        let renamed = stems.iter().find_map(|(old, new)| {
            let rest = name.strip_prefix(old)?.strip_prefix('.')?;
            Some(format!("{new}.{}", inside_block(rest)))
        });
        renamed.unwrap_or_else(|| name.to_owned())
    })
}

fn inside_block(name: &str) -> String {
    const NAMES: [(&str, &str); 8] = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
        // The convolutions of down- and upsamplers; the stem contains the rest of the name.
        ("op.", ""),
        ("conv.", ""),
    ];
    let found = NAMES
        .iter()
        .find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)));
    found.unwrap_or_else(|| name.to_owned())
}

/// LDM's numbered modules and their names in diffusers. The numbers are derived from the tensors: a block ends with its change of
/// resolution.
fn stems(weights: &Weights) -> Vec<(String, String)> {
    let mut stems: Vec<_> = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("middle_block.0", "mid_block.resnets.0"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("middle_block.2", "mid_block.resnets.1"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ]
    .map(|(old, new)| (old.to_owned(), new.to_owned()))
    .into();
    let mut put = |old: String, new: String| stems.push((old, new));

    let is_there = |part: &str| weights.names().any(|name| name.starts_with(part));
    let (mut block, mut layer) = (0, 0);
    for index in 1.. {
        let old = format!("input_blocks.{index}");
        if !is_there(&format!("{old}.")) {
            break;
        }
        if is_there(&format!("{old}.0.op.")) {
            put(
                format!("{old}.0"),
                format!("down_blocks.{block}.downsamplers.0.conv"),
            );
            (block, layer) = (block + 1, 0);
        } else {
            put(
                format!("{old}.0"),
                format!("down_blocks.{block}.resnets.{layer}"),
            );
            put(
                format!("{old}.1"),
                format!("down_blocks.{block}.attentions.{layer}"),
            );
            layer += 1;
        }
    }
    let (mut block, mut layer) = (0, 0);
    for index in 0.. {
        let old = format!("output_blocks.{index}");
        if !is_there(&format!("{old}.")) {
            break;
        }
        let upsampler = [1, 2]
            .into_iter()
            .find(|part| is_there(&format!("{old}.{part}.conv.")));
        put(
            format!("{old}.0"),
            format!("up_blocks.{block}.resnets.{layer}"),
        );
        if upsampler != Some(1) {
            put(
                format!("{old}.1"),
                format!("up_blocks.{block}.attentions.{layer}"),
            );
        }
        layer += 1;
        if let Some(part) = upsampler {
            put(
                format!("{old}.{part}"),
                format!("up_blocks.{block}.upsamplers.0.conv"),
            );
            (block, layer) = (block + 1, 0);
        }
    }
    stems
}

impl UNetConfig {
    /// Derives the configuration of a Stable Diffusion 1.x or 2.x denoiser from its tensor shapes (in diffusers' names). Shapes do
    /// not determine the heads: 2.x, whose transformers project with linear layers, has 64 channels per head; 1.x has 8 heads.
    pub(crate) fn from_shapes(weights: &Weights) -> Self {
        let shape = |name: &str| weights.shape(name).map(<[usize]>::to_vec);
        let size = |name: &str, axis: usize| shape(name).and_then(|shape| shape.get(axis).copied());
        let count = |name: &dyn Fn(usize) -> String| {
            (0..).take_while(|&i| weights.contains(&name(i))).count()
        };

        let defaults = Self::default();
        let blocks = count(&|i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
        let block_out_channels: Vec<_> = (0..blocks)
            .filter_map(|i| size(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
            .collect();
        let has_attention = |direction: &str, i: usize| {
            weights.contains(&format!("{direction}_blocks.{i}.attentions.0.norm.weight"))
        };
        let kinds = |direction: &str, with: BlockType, without: BlockType| {
            let kind = |i| {
                if has_attention(direction, i) {
                    with
                } else {
                    without
                }
            };
            (0..blocks).map(kind).collect()
        };
        let attention = "mid_block.attentions.0";
        let linear =
            shape(&format!("{attention}.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
        let heads = match linear {
            true => OneOrMany::Many(
                block_out_channels
                    .iter()
                    .map(|channels| channels / HEAD_CHANNELS)
                    .collect(),
            ),
            false => OneOrMany::One(HEADS),
        };
        let context = format!("{attention}.transformer_blocks.0.attn2.to_k.weight");
        Self {
            in_channels: size("conv_in.weight", 1).unwrap_or(defaults.in_channels),
            out_channels: size("conv_out.weight", 0).unwrap_or(defaults.out_channels),
            down_block_types: kinds(
                "down",
                BlockType::CrossAttnDownBlock2D,
                BlockType::DownBlock2D,
            ),
            up_block_types: kinds("up", BlockType::CrossAttnUpBlock2D, BlockType::UpBlock2D),
            layers_per_block: OneOrMany::One(count(&|i| {
                format!("down_blocks.0.resnets.{i}.conv1.weight")
            })),
            block_out_channels,
            attention_head_dim: heads,
            cross_attention_dim: size(&context, 1).unwrap_or(defaults.cross_attention_dim),
            use_linear_projection: linear,
            ..defaults
        }
    }
}
