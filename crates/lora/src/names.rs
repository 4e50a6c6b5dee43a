//! The names of adapter tensors in each layout.

use serde::{Deserialize, Serialize};

use crate::flat;

/// The layout of an adapter file: the names of its tensors, and where α is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `adapter_model.safetensors` of PEFT with its `adapter_config.json`: `base_model.model.<module>.lora_A.weight`.
    /// A file contains the adapters of one network.
    Peft,
    /// `pytorch_lora_weights.safetensors` of diffusers: `unet.<module>.lora_A.weight`, with the configuration in the
    /// header.
    Diffusers,
    /// The layout of diffusers in 2023: `unet.<module>.lora.down.weight`, without α.
    DiffusersLora,
    /// The earlier layout of diffusers: `unet.<attention>.processor.to_q_lora.down.weight`, without α and only for
    /// attention.
    DiffusersProcessor,
    /// The layout of kohya's and most training scripts: `lora_unet_<module>.lora_down.weight`, with underscores instead of
    /// dots, and with α.
    Kohya,
    /// kohya's layout with the modules of the denoiser named as in the original training code.
    KohyaLdm,
}

impl Layout {
    /// Returns whether α is stored, in tensors or in a configuration.
    pub(crate) fn has_alpha(self) -> bool {
        match self {
            Self::DiffusersLora | Self::DiffusersProcessor => false,
            Self::Peft | Self::Diffusers | Self::Kohya | Self::KohyaLdm => true,
        }
    }
}

/// The network that an adapter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    Unet,
    TextEncoder,
}

impl Component {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Down,
    Up,
    Alpha,
}

/// The meaning of a tensor's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) component: Component,
    pub(crate) module: String,
    pub(crate) role: Role,
}

/// Tensor name suffixes of other kinds of adapters, and those kinds.
const OTHER_KINDS: [(&str, &str); 10] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_magnitude_vector.weight", "DoRA"),
    (".lora_mid.weight", "Tucker decomposition"),
    (".hada_w1_a", "LoHa"),
    (".hada_w1_b", "LoHa"),
    (".hada_w2_a", "LoHa"),
    (".hada_w2_b", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lokr_w2", "LoKr"),
];

/// The kind of adapter that a tensor belongs to, if it is not LoRA.
pub(crate) fn other_kind(name: &str) -> Option<&'static str> {
    let kind = OTHER_KINDS.iter().find(|(end, _)| name.ends_with(end));
    kind.map(|(_, kind)| *kind)
}

/// PEFT's prefix of all modules.
const PEFT_PREFIX: &str = "base_model.model.";

/// Returns whether a name is one of PEFT's own files.
pub(crate) fn is_peft(name: &str) -> bool {
    name.starts_with(PEFT_PREFIX)
}

/// Parses a name of any layout.
pub(crate) fn parse(name: &str) -> Option<Name> {
    const ROLES: [(&str, Role); 13] = [
        (".lora_A.weight", Role::Down),
        (".lora_B.weight", Role::Up),
        (".lora_A.default.weight", Role::Down),
        (".lora_B.default.weight", Role::Up),
        (".lora_linear_layer.down.weight", Role::Down),
        (".lora_linear_layer.up.weight", Role::Up),
        (".lora.down.weight", Role::Down),
        (".lora.up.weight", Role::Up),
        (".lora_down.weight", Role::Down),
        (".lora_up.weight", Role::Up),
        ("_lora.down.weight", Role::Down),
        ("_lora.up.weight", Role::Up),
        (".alpha", Role::Alpha),
    ];
    let (path, role) = ROLES
        .iter()
        .find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)))?;
    let (component, module) = parse_path(path)?;
    Some(Name {
        component,
        module,
        role,
    })
}

fn parse_path(path: &str) -> Option<(Component, String)> {
    let flat = |rest: &str| flat::decode(rest);
    if let Some(rest) = path.strip_prefix("lora_unet_") {
        return Some((Component::Unet, flat(rest)?));
    }
    for prefix in ["lora_te_", "lora_te1_"] {
        if let Some(rest) = path.strip_prefix(prefix) {
            return Some((Component::TextEncoder, nested(flat(rest)?)));
        }
    }
    let path = path.strip_prefix(PEFT_PREFIX).unwrap_or(path);
    let (component, path) = match (
        path.strip_prefix("unet."),
        path.strip_prefix("text_encoder."),
    ) {
        (Some(rest), _) => (Component::Unet, rest),
        (_, Some(rest)) => (Component::TextEncoder, rest),
        // Files of one network do not name it.
        _ if path.starts_with("text_model.") => (Component::TextEncoder, path),
        _ => (Component::Unet, path),
    };
    let module = path.replacen(".processor.", ".", 1);
    // Processors' names omit that the output projection is the first of a list.
    let module = match module.strip_suffix(".to_out") {
        Some(attention) => format!("{attention}.to_out.0"),
        None => module,
    };
    let module = match component {
        Component::Unet => module,
        Component::TextEncoder => nested(module),
    };
    // The rest must be a module of a network, not the name of another network.
    const ROOTS: [&str; 9] = [
        "down_blocks.",
        "mid_block.",
        "up_blocks.",
        "conv_in",
        "conv_out",
        "time_embedding.",
        "text_model.",
        "add_embedding.",
        "time_proj",
    ];
    let is_known = ROOTS.iter().any(|root| module.starts_with(root));
    is_known.then_some((component, module))
}

/// Adds the `text_model` that transformers 5 no longer has in paths of the text encoder.
fn nested(module: String) -> String {
    match module.starts_with("encoder.") {
        true => format!("text_model.{module}"),
        false => module,
    }
}

/// Names of both factors, and of α if the layout has one; `None` if the layout cannot name the module.
pub(crate) fn format(
    layout: Layout,
    component: Component,
    module: &str,
) -> Option<[Option<String>; 3]> {
    let named = |prefix: &str, module: &str, ends: [&str; 2]| {
        let [down, up] = ends.map(|end| Some(format!("{prefix}{module}{end}")));
        [down, up, None]
    };
    let network = format!("{}.", component.name());
    const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
    const DIFFUSERS: [&str; 2] = [".lora.down.weight", ".lora.up.weight"];
    const DIFFUSERS_TEXT: [&str; 2] = [
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ];
    Some(match (layout, component) {
        (Layout::Peft, _) => named(PEFT_PREFIX, module, PEFT),
        (Layout::Diffusers, _) => named(&network, module, PEFT),
        (Layout::DiffusersLora, Component::Unet) => named(&network, module, DIFFUSERS),
        (Layout::DiffusersLora | Layout::DiffusersProcessor, Component::TextEncoder) => {
            named(&network, module, DIFFUSERS_TEXT)
        }
        (Layout::DiffusersProcessor, Component::Unet) => {
            let module = module.strip_suffix(".0").unwrap_or(module);
            let (attention, projection) = module.rsplit_once('.')?;
            let is_attention = attention.ends_with(".attn1") || attention.ends_with(".attn2");
            if !is_attention || !projection.starts_with("to_") {
                return None;
            }
            let path = format!("{attention}.processor.{projection}_lora");
            named(&network, &path, [".down.weight", ".up.weight"])
        }
        (Layout::Kohya | Layout::KohyaLdm, _) => {
            let prefix = match component {
                Component::Unet => "lora_unet_",
                Component::TextEncoder => "lora_te_",
            };
            let module = match (layout, component) {
                (Layout::KohyaLdm, Component::Unet) => flat::to_ldm(module)?,
                _ => module.to_owned(),
            };
            let flat = format!("{prefix}{}", module.replace('.', "_"));
            [".lora_down.weight", ".lora_up.weight", ".alpha"]
                .map(|end| Some(format!("{flat}{end}")))
        }
    })
}
