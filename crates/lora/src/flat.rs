//! Paths with underscores instead of dots, and paths of the original training code ("LDM").

/// The words in paths, besides numbers. An underscore is either part of a word or replaces a dot; the longest word wins.
const WORDS: [&str; 61] = [
    // The denoiser in diffusers.
    "down_blocks",
    "mid_block",
    "up_blocks",
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "transformer_blocks",
    "attn1",
    "attn2",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "ff",
    "net",
    "proj",
    "proj_in",
    "proj_out",
    "norm",
    "norm1",
    "norm2",
    "norm3",
    "conv",
    "conv1",
    "conv2",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "linear_1",
    "linear_2",
    // The same in the original training code.
    "input_blocks",
    "middle_block",
    "output_blocks",
    "in_layers",
    "emb_layers",
    "out_layers",
    "skip_connection",
    "op",
    "time_embed",
    "out",
    // The text encoder.
    "text_model",
    "encoder",
    "layers",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "mlp",
    "fc1",
    "fc2",
    "layer_norm1",
    "layer_norm2",
    "embeddings",
    "token_embedding",
    "position_embedding",
    "final_layer_norm",
    "text_projection",
];

/// Recovers the path, in diffusers' names, from a flattened one; `None` if it contains unknown words.
pub(crate) fn decode(flat: &str) -> Option<String> {
    let mut parts = Vec::new();
    let mut rest = flat;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let words = WORDS.iter().map(|word| word.len());
        let part = words
            .chain([digits])
            .filter(|&len| len > 0 && is_part(rest, len))
            .max()?;
        parts.push(&rest[..part]);
        rest = rest[part..].strip_prefix('_').unwrap_or_default();
        if rest.is_empty() && flat.ends_with('_') {
            return None;
        }
    }
    let path = parts.join(".");
    match parts.first()? {
        &"input_blocks" | &"middle_block" | &"output_blocks" | &"time_embed" | &"out" => {
            of_ldm(&path)
        }
        _ => Some(path),
    }
}

/// Returns whether the first `len` bytes are a complete word or number.
fn is_part(rest: &str, len: usize) -> bool {
    let Some(part) = rest.get(..len) else {
        return false;
    };
    let ends = rest[len..].is_empty() || rest[len..].starts_with('_');
    ends && (WORDS.contains(&part) || part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// LDM's blocks per level: two residual blocks, plus a change of resolution on the way down or a third block on the way up.
const LEVEL: usize = 3;

const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
const WHOLE: [(&str, &str); 5] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// Translates a module's LDM name to diffusers'; `None` if there is no such module.
fn of_ldm(path: &str) -> Option<String> {
    if let Some((_, name)) = WHOLE.iter().find(|(ldm, _)| *ldm == path) {
        return Some((*name).to_owned());
    }
    let resnet = |name: &str| {
        let found = RESNET.iter().find(|(ldm, _)| *ldm == name);
        found.map(|(_, name)| *name)
    };
    let parts: Vec<_> = path.splitn(4, '.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    match parts.as_slice() {
        ["middle_block", "1", ..] => Some(format!(
            "mid_block.attentions.0.{}",
            parts.get(2..)?.join(".")
        )),
        ["middle_block", index @ ("0" | "2"), ..] => Some(format!(
            "mid_block.resnets.{}.{}",
            number(index)? / 2,
            resnet(&parts.get(2..)?.join("."))?
        )),
        ["input_blocks", index, part, rest] => {
            let index = number(index)?.checked_sub(1)?;
            let (block, layer) = (index / LEVEL, index % LEVEL);
            match (*part, layer + 1 == LEVEL) {
                ("0", true) if *rest == "op" => {
                    Some(format!("down_blocks.{block}.downsamplers.0.conv"))
                }
                ("0", false) => Some(format!(
                    "down_blocks.{block}.resnets.{layer}.{}",
                    resnet(rest)?
                )),
                ("1", false) => Some(format!("down_blocks.{block}.attentions.{layer}.{rest}")),
                _ => None,
            }
        }
        ["output_blocks", index, part, rest] => {
            let index = number(index)?;
            let (block, layer) = (index / LEVEL, index % LEVEL);
            match (*part, *rest) {
                ("1" | "2", "conv") => Some(format!("up_blocks.{block}.upsamplers.0.conv")),
                ("0", rest) => Some(format!(
                    "up_blocks.{block}.resnets.{layer}.{}",
                    resnet(rest)?
                )),
                ("1", rest) => Some(format!("up_blocks.{block}.attentions.{layer}.{rest}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Translates the diffusers name of a module of Stable Diffusion's denoiser to LDM's; `None` if there is no such module.
pub(crate) fn to_ldm(path: &str) -> Option<String> {
    if let Some((name, _)) = WHOLE.iter().find(|(_, name)| *name == path) {
        return Some((*name).to_owned());
    }
    let resnet = |name: &str| {
        let found = RESNET.iter().find(|(_, of)| *of == name);
        found.map(|(ldm, _)| *ldm)
    };
    let parts: Vec<_> = path.splitn(5, '.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    match parts.as_slice() {
        ["mid_block", "attentions", "0", rest @ ..] => {
            Some(format!("middle_block.1.{}", rest.join(".")))
        }
        ["mid_block", "resnets", index @ ("0" | "1"), rest @ ..] => Some(format!(
            "middle_block.{}.{}",
            2 * number(index)?,
            resnet(&rest.join("."))?
        )),
        ["down_blocks", block, kind, layer, rest] => {
            let (block, layer) = (number(block)?, number(layer)?);
            let index = LEVEL * block + layer + 1;
            match *kind {
                "resnets" => Some(format!("input_blocks.{index}.0.{}", resnet(rest)?)),
                "attentions" => Some(format!("input_blocks.{index}.1.{rest}")),
                "downsamplers" if *rest == "conv" => {
                    Some(format!("input_blocks.{}.0.op", LEVEL * (block + 1)))
                }
                _ => None,
            }
        }
        ["up_blocks", block, kind, layer, rest] => {
            let (block, layer) = (number(block)?, number(layer)?);
            let index = LEVEL * block + layer;
            match *kind {
                "resnets" => Some(format!("output_blocks.{index}.0.{}", resnet(rest)?)),
                "attentions" => Some(format!("output_blocks.{index}.1.{rest}")),
                // Stable Diffusion's coarsest level has no attention before its upsampler.
                "upsamplers" if *rest == "conv" => Some(format!(
                    "output_blocks.{}.{}.conv",
                    LEVEL * block + LEVEL - 1,
                    if block == 0 { 1 } else { 2 }
                )),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::device;
    use swiftbrush_unet::{OneOrMany, UNetConfig};

    use super::*;
    use crate::Adapters;

    /// All linear layers and convolutions of Stable Diffusion 1.5 and 2.1. Their weights are never initialised.
    fn modules() -> Vec<String> {
        let sd2 = UNetConfig::default();
        let sd1 = UNetConfig {
            attention_head_dim: OneOrMany::One(8),
            cross_attention_dim: 768,
            use_linear_projection: false,
            ..UNetConfig::default()
        };
        let mut modules: Vec<_> = [sd1, sd2]
            .iter()
            .flat_map(|config| Adapters::layers(&config.init(&device())).into_keys())
            .collect();
        modules.dedup();
        modules
    }

    #[test]
    fn every_flattened_layer_is_found_again() {
        for module in modules() {
            let flat = module.replace('.', "_");
            assert_eq!(decode(&flat).as_ref(), Some(&module), "{flat}");
            let ldm = to_ldm(&module).unwrap_or_else(|| panic!("{module} has no name in LDM"));
            let flat = ldm.replace('.', "_");
            assert_eq!(decode(&flat).as_ref(), Some(&module), "{flat}");
        }
        for module in [
            "text_model.encoder.layers.0.self_attn.q_proj",
            "text_model.encoder.layers.11.self_attn.out_proj",
            "text_model.encoder.layers.3.mlp.fc2",
        ] {
            assert_eq!(decode(&module.replace('.', "_")).as_deref(), Some(module));
        }
    }

    #[test]
    fn unknown_words_are_not_a_path() {
        for flat in [
            "",
            "_",
            "down",
            "down_blocks_",
            "down_blocks__0",
            "joint_blocks_0",
            "input_blocks_1_2_x",
            "input_blocks_3_0_in_layers_2",
            "output_blocks_99999999999999999999_0_op",
            "ü_0",
            "downüblocks",
        ] {
            assert_eq!(decode(flat), None, "{flat}");
        }
    }
}
