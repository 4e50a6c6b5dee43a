use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use swiftbrush_checkpoint::int8_config;

/// `unet/config.json`. [`Default`] has the values of SD-Turbo and Stable Diffusion 2.1-base; options missing in a file get
/// diffusers' defaults, mostly those of 1.x.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UNetConfig {
    /// Side of the latents that the model was trained on; other sizes also work.
    #[serde(deserialize_with = "side")]
    pub sample_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Blocks on the way down, finest first.
    pub down_block_types: Vec<BlockType>,
    /// Blocks on the way up, coarsest first.
    pub up_block_types: Vec<BlockType>,
    /// Channels of each block on the way down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per block on the way down; there is one more on the way up.
    pub layers_per_block: OneOrMany,
    /// The **number of heads** of each block, despite the name, which diffusers keeps for compatibility.
    pub attention_head_dim: OneOrMany,
    /// The number of heads under its proper name, which takes precedence.
    pub num_attention_heads: Option<OneOrMany>,
    /// Width of the text states.
    #[serde(deserialize_with = "uniform")]
    pub cross_attention_dim: usize,
    /// True if transformers project with linear layers (2.x) instead of 1×1 convolutions (1.x).
    pub use_linear_projection: bool,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Epsilon of the normalisation in residual blocks; transformers use 1e-6.
    pub norm_eps: f64,
    /// True if cosines precede sines in the sinusoidal embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies of the sinusoidal embedding.
    pub freq_shift: f64,
    /// Padding of downsampling convolutions.
    pub downsample_padding: usize,
    /// True if attention always computes in f32: the products of queries and keys in 2.1 overflow f16.
    pub upcast_attention: bool,
}

/// An entry of `down_block_types` or `up_block_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockType {
    /// Residual blocks, each followed by a transformer, on the way down.
    CrossAttnDownBlock2D,
    /// Residual blocks on the way down.
    DownBlock2D,
    /// Residual blocks, each followed by a transformer, on the way up.
    CrossAttnUpBlock2D,
    /// Residual blocks on the way up.
    UpBlock2D,
}

impl BlockType {
    pub(crate) fn has_attention(self) -> bool {
        matches!(self, Self::CrossAttnDownBlock2D | Self::CrossAttnUpBlock2D)
    }
}

/// One value for all blocks, or one per block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a whole number, or a list with one per block"
)]
pub enum OneOrMany {
    /// The same for all.
    One(usize),
    /// One per block on the way down.
    Many(Vec<usize>),
}

impl OneOrMany {
    /// The value of a block, numbered on the way down.
    ///
    /// # Panics
    ///
    /// If there is a value per block, but none for this one.
    #[track_caller]
    pub fn get(&self, block: usize) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Many(values) => values[block],
        }
    }
}

/// Maximum number of blocks for which lists of neutral values are accepted.
const MOST_BLOCKS: usize = 8;

/// A number, or a list of equal numbers, which diffusers accepts if all blocks (or axes) have the same value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Uniform {
    One(usize),
    Many(Vec<usize>),
}

impl Uniform {
    fn value<E: serde::de::Error>(self) -> Result<usize, E> {
        match self {
            Self::One(value) => Ok(value),
            Self::Many(values) => match values.as_slice() {
                [first, rest @ ..] if rest.iter().all(|value| value == first) => Ok(*first),
                _ => Err(E::custom(
                    "expected a number, or a list of equal numbers; different values per block or axis are not supported",
                )),
            },
        }
    }
}

fn uniform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let uniform = Uniform::deserialize(deserializer)
        .map_err(|_| D::Error::custom("expected a number, or a list of equal numbers"))?;
    uniform.value()
}

/// Parses the side of a square; null, which diffusers accepts, means the default.
fn side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let uniform = Option::<Uniform>::deserialize(deserializer)
        .map_err(|_| D::Error::custom("expected a number, or a list of equal numbers"))?;
    uniform.map_or(Ok(UNetConfig::default().sample_size), Uniform::value)
}

impl Default for UNetConfig {
    fn default() -> Self {
        use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
        Self {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            down_block_types: vec![
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                DownBlock2D,
            ],
            up_block_types: vec![
                UpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
            ],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: OneOrMany::One(2),
            attention_head_dim: OneOrMany::Many(vec![5, 10, 20, 20]),
            num_attention_heads: None,
            cross_attention_dim: 1024,
            use_linear_projection: true,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            downsample_padding: 1,
            upcast_attention: false,
        }
    }
}

impl UNetConfig {
    /// Returns a network of a few thousand parameters for tests and examples, with attention on two levels.
    pub fn tiny() -> Self {
        use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D};
        Self {
            sample_size: 8,
            down_block_types: vec![CrossAttnDownBlock2D; 2],
            up_block_types: vec![CrossAttnUpBlock2D; 2],
            block_out_channels: vec![8, 16],
            layers_per_block: OneOrMany::One(1),
            attention_head_dim: OneOrMany::Many(vec![1, 2]),
            cross_attention_dim: 12,
            norm_num_groups: 4,
            ..Self::default()
        }
    }

    /// diffusers' defaults, for options missing in a file.
    pub(crate) fn diffusers_defaults() -> Self {
        Self {
            attention_head_dim: OneOrMany::One(8),
            cross_attention_dim: 1280,
            use_linear_projection: false,
            ..Self::default()
        }
    }

    /// Options of diffusers that are accepted only with the value that has no effect. If diffusers takes one value per block, a
    /// list of such values is accepted too.
    pub(crate) fn accepted() -> Vec<(&'static str, Value)> {
        const PER_BLOCK: [&str; 2] = ["only_cross_attention", "transformer_layers_per_block"];
        let mut accepted = vec![
            ("act_fn", json!("silu")),
            ("addition_embed_type_num_heads", json!(64)),
            ("attention_type", json!("default")),
            ("center_input_sample", json!(false)),
            ("class_embeddings_concat", json!(false)),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("dropout", json!(0.0)),
            ("dual_cross_attention", json!(false)),
            ("mid_block_only_cross_attention", json!(false)),
            ("mid_block_scale_factor", json!(1)),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("only_cross_attention", json!(false)),
            ("quantization_config", int8_config()),
            ("resnet_out_scale_factor", json!(1.0)),
            ("resnet_skip_time_act", json!(false)),
            ("resnet_time_scale_shift", json!("default")),
            ("time_embedding_type", json!("positional")),
            ("transformer_layers_per_block", json!(1)),
        ];
        let per_block = accepted
            .iter()
            .filter(|(name, _)| PER_BLOCK.contains(name))
            .flat_map(|(name, value)| {
                (1..=MOST_BLOCKS).map(move |n| (*name, json!(vec![value; n])))
            })
            .collect::<Vec<_>>();
        accepted.extend(per_block);
        accepted.push(("_class_name", json!("UNet2DConditionModel")));
        accepted
    }

    /// Checks that the fields agree; the message names the one that does not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let blocks = self.block_out_channels.len();
        let same = |name: &str, found: usize| {
            let message = || format!("{name} has {found} entries, block_out_channels has {blocks}");
            if found == blocks {
                Ok(())
            } else {
                Err(message())
            }
        };
        same("down_block_types", self.down_block_types.len())?;
        same("up_block_types", self.up_block_types.len())?;
        for heads in [
            Some(&self.attention_head_dim),
            self.num_attention_heads.as_ref(),
        ]
        .into_iter()
        .flatten()
        {
            if let OneOrMany::Many(values) = heads {
                same("attention_head_dim", values.len())?;
            }
        }
        if let OneOrMany::Many(values) = &self.layers_per_block {
            same("layers_per_block", values.len())?;
        }
        let no_layers = (0..blocks).any(|block| self.layers_per_block.get(block) == 0);
        if blocks == 0 || no_layers || self.norm_num_groups == 0 {
            return Err("block_out_channels, layers_per_block and norm_num_groups must not be empty or zero".into());
        }
        let is_up =
            |kind: &BlockType| matches!(kind, BlockType::UpBlock2D | BlockType::CrossAttnUpBlock2D);
        if self.down_block_types.iter().any(is_up) || !self.up_block_types.iter().all(is_up) {
            return Err(
                "down_block_types or up_block_types contains blocks of the other direction".into(),
            );
        }
        for (block, &channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.heads(block);
            if channels == 0 || channels % self.norm_num_groups != 0 {
                return Err(format!(
                    "block_out_channels[{block}] = {channels} is not a multiple of norm_num_groups = {}",
                    self.norm_num_groups
                ));
            }
            if heads == 0 || channels % heads != 0 {
                return Err(format!(
                    "block_out_channels[{block}] = {channels} does not split into {heads} heads"
                ));
            }
        }
        if !self.block_out_channels[0].is_multiple_of(2) {
            return Err(format!(
                "block_out_channels[0] = {} is odd",
                self.block_out_channels[0]
            ));
        }
        Ok(())
    }

    /// Number of attention heads of a block, numbered on the way down.
    pub(crate) fn heads(&self, block: usize) -> usize {
        self.num_attention_heads
            .as_ref()
            .unwrap_or(&self.attention_head_dim)
            .get(block)
    }
}
