//! Detection, by tensor names, of files that are not adapters for Stable Diffusion 1.x or 2.x.

use regex::Regex;

/// Parts of names that are specific to one family of models.
const FAMILIES: [(&str, &str); 16] = [
    ("lora_te2_", "Stable Diffusion XL"),
    ("text_encoder_2.", "Stable Diffusion XL"),
    ("lora_unet_label_emb", "Stable Diffusion XL"),
    ("add_embedding.linear_", "Stable Diffusion XL"),
    ("single_transformer_blocks", "Flux"),
    ("double_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("lora_te3_", "Stable Diffusion 3"),
    ("text_encoder_3.", "Stable Diffusion 3"),
    ("attn.add_k_proj", "Stable Diffusion 3"),
    ("attn_add_k_proj", "Stable Diffusion 3"),
    ("attn.add_q_proj", "Stable Diffusion 3"),
    ("transformer.transformer_blocks.", "a diffusion transformer"),
    ("lora_transformer_", "a diffusion transformer"),
    ("diffusion_model.blocks.", "a video model"),
];

/// The unsupported family of models that a tensor's name belongs to, if any.
pub(crate) fn other_family(name: &str) -> Option<&'static str> {
    let found = FAMILIES.iter().find(|(part, _)| name.contains(part));
    if let Some((_, family)) = found {
        return Some(family);
    }
    // Stable Diffusion 1.x and 2.x have only one transformer block per attention.
    const BLOCKS: &str = "transformer_blocks";
    let at = name.find(BLOCKS)? + BLOCKS.len();
    let index = name[at..].trim_start_matches(['.', '_']);
    let index: String = index.chars().take_while(char::is_ascii_digit).collect();
    let is_unet = name.contains("attentions")
        || name.contains("input_blocks")
        || name.contains("middle_block")
        || name.contains("output_blocks");
    let is_further = index.parse::<usize>().is_ok_and(|index| index > 0);
    (is_unet && is_further).then_some("Stable Diffusion XL")
}

/// The network that a tensor belongs to if it is a weight and not an adapter.
pub(crate) fn whole_network(name: &str) -> Option<&'static str> {
    const STARTS: [(&str, &str); 6] = [
        (r"model\.diffusion_model\.", "a whole model"),
        (
            r"(unet\.)?(conv_in|conv_out|time_embedding|(down|up)_blocks|mid_block)[._]",
            "a U-Net",
        ),
        (
            r"(encoder|decoder|quant_conv|post_quant_conv)\.",
            "an autoencoder",
        ),
        (r"text_model\.", "a text encoder"),
        (r"(input_blocks|middle_block|output_blocks)\.", "a U-Net"),
        (r"cond_stage_model\.", "a whole model"),
    ];
    if name.contains("lora") || !(name.ends_with(".weight") || name.ends_with(".bias")) {
        return None;
    }
    let found = STARTS.iter().find(|(start, _)| {
        Regex::new(&format!("^{start}")).is_ok_and(|start| start.is_match(name))
    });
    found.map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_recognised_by_a_single_name() {
        for (name, family) in [
            (
                "lora_unet_input_blocks_4_1_transformer_blocks_7_attn1_to_q.alpha",
                "Stable Diffusion XL",
            ),
            (
                "unet.down_blocks.2.attentions.0.transformer_blocks.3.attn1.to_q.lora_A.weight",
                "Stable Diffusion XL",
            ),
            (
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
                "Stable Diffusion XL",
            ),
            (
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
                "Flux",
            ),
            (
                "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
                "Stable Diffusion 3",
            ),
        ] {
            assert_eq!(other_family(name), Some(family), "{name}");
        }
        for name in [
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha",
            "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
        ] {
            assert_eq!(other_family(name), None, "{name}");
        }
    }

    #[test]
    fn networks_are_distinguished_from_adapters() {
        assert_eq!(whole_network("conv_in.weight"), Some("a U-Net"));
        assert_eq!(
            whole_network("unet.mid_block.attentions.0.proj_in.weight"),
            Some("a U-Net")
        );
        assert_eq!(
            whole_network("text_model.final_layer_norm.bias"),
            Some("a text encoder")
        );
        assert_eq!(whole_network("unet.conv_in.lora_A.weight"), None);
        assert_eq!(whole_network("conv_in.alpha"), None);
    }
}
