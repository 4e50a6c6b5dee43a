use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use swiftbrush_kernels::{
    Conv2d, Conv2dConfig, GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, Linear,
    LinearConfig, Mask, attention, int8_attention, is_int8,
};

use crate::{Context, UNetConfig};

/// Epsilon of the group normalisation before a transformer; a constant in diffusers.
const GROUP_NORM_EPSILON: f64 = 1e-6;

/// `Transformer2DModel`: pixels are tokens that attend to each other and to the text.
#[derive(Module, Debug)]
pub(crate) struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer {
    pub(crate) fn new(config: &UNetConfig, channels: usize, heads: usize, device: &Device) -> Self {
        Self {
            norm: GroupNormConfig::new(config.norm_num_groups, channels)
                .with_epsilon(GROUP_NORM_EPSILON)
                .init(device),
            proj_in: Projection::new(config, channels, device),
            transformer_blocks: vec![TransformerBlock::new(config, channels, heads, device)],
            proj_out: Projection::new(config, channels, device),
        }
    }

    /// `[batch, channels, height, width]`, `[batch, length, context width]` → as the first
    pub(crate) fn forward(&self, input: Tensor<4>, context: &Context) -> Tensor<4> {
        let [batch, channels, height, width] = input.dims();
        let tokens = self.norm.forward(input.clone());
        let tokens = tokens
            .permute([0, 2, 3, 1])
            .reshape([batch, height * width, channels]);
        let mut tokens = self.proj_in.forward(tokens);
        for block in &self.transformer_blocks {
            tokens = block.forward(tokens, context);
        }
        let tokens = self.proj_out.forward(tokens);
        input
            + tokens
                .reshape([batch, height, width, channels])
                .permute([0, 3, 1, 2])
    }
}

/// The projection of tokens before and after the transformer blocks. In 1.x checkpoints it is stored as a 1×1 convolution, but
/// computed as the equivalent linear layer: pixels are already tokens here, so the product needs no unfolding.
#[derive(Module, Debug)]
enum Projection {
    Linear(Linear),
    Convolution(Conv2d),
}

impl Projection {
    fn new(config: &UNetConfig, channels: usize, device: &Device) -> Self {
        if config.use_linear_projection {
            Self::Linear(LinearConfig::new(channels, channels).init(device))
        } else {
            Self::Convolution(Conv2dConfig::new(channels, channels, 1).init(device))
        }
    }

    fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Linear(linear) => linear.forward(tokens),
            Self::Convolution(convolution) => convolution.forward_tokens(tokens),
        }
    }
}

/// Self-attention, cross-attention and a gated feed-forward layer, each on a residual path.
#[derive(Module, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(config: &UNetConfig, channels: usize, heads: usize, device: &Device) -> Self {
        let norm = || LayerNormConfig::new(channels).init(device);
        Self {
            norm1: norm(),
            attn1: Attention::new(config, channels, channels, heads, device),
            norm2: norm(),
            attn2: Attention::new(config, channels, config.cross_attention_dim, heads, device),
            norm3: norm(),
            ff: FeedForward::new(channels, device),
        }
    }

    fn forward(&self, tokens: Tensor<3>, context: &Context) -> Tensor<3> {
        let normed = self.norm1.forward(tokens.clone());
        let tokens = self.attn1.forward(normed.clone(), &normed.into(), tokens);
        let normed = self.norm2.forward(tokens.clone());
        let tokens = self.attn2.forward(normed, context, tokens);
        self.ff.forward(self.norm3.forward(tokens.clone()), tokens)
    }
}

/// Multi-head attention; queries from `tokens`, keys and values from `context`.
#[derive(Module, Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// The checkpoint's `to_out.0`, and its `to_out.1`, a dropout of rate 0.
    to_out: (Linear, Dropout),
    heads: usize,
    upcast: bool,
}

impl Attention {
    fn new(
        config: &UNetConfig,
        channels: usize,
        context: usize,
        heads: usize,
        device: &Device,
    ) -> Self {
        let input = |width| {
            LinearConfig::new(width, channels)
                .with_bias(false)
                .init(device)
        };
        Self {
            to_q: input(channels),
            to_k: input(context),
            to_v: input(context),
            to_out: (
                LinearConfig::new(channels, channels).init(device),
                DropoutConfig::new(0.0).init(),
            ),
            heads,
            upcast: config.upcast_attention,
        }
    }

    /// `residual + attention(tokens, context)`
    fn forward(&self, tokens: Tensor<3>, context: &Context, residual: Tensor<3>) -> Tensor<3> {
        let dtype = FloatDType::from(tokens.dtype());
        let query = self.to_q.forward(tokens);
        let mut mixed = self.attend(query.clone(), context.states.clone());
        if let Some(negative) = &context.negative {
            let other = self.attend(query, negative.states.clone());
            mixed = negative.method.combine(mixed, other);
        }
        self.to_out.0.forward_residual(cast(mixed, dtype), residual)
    }

    /// The attention of queries to a text before the output projection, heads joined, in the element type that it is
    /// computed in. A text with a batch of one applies to all images.
    fn attend(&self, query: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let [batch, length, channels] = query.dims();
        let dtype = FloatDType::from(query.dtype());
        let inner = if self.upcast { FloatDType::F32 } else { dtype };
        let split = |x: Tensor<3>| {
            let [rows, length, _] = x.dims();
            let x = if rows == batch {
                x
            } else {
                x.repeat_dim(0, batch)
            };
            cast(x, inner)
                .reshape([batch, length, self.heads, channels / self.heads])
                .swap_dims(1, 2)
        };
        let key = split(self.to_k.forward(context.clone()));
        let value = split(self.to_v.forward(context));
        let mixed = match is_int8(&self.to_q.weight.val()) {
            true => int8_attention(split(query), key, value),
            false => attention(split(query), key, value, Mask::None),
        };
        mixed.swap_dims(1, 2).reshape([batch, length, channels])
    }
}

/// The tensor in another element type.
fn cast(tensor: Tensor<3>, dtype: FloatDType) -> Tensor<3> {
    match FloatDType::from(tensor.dtype()) == dtype {
        true => tensor,
        false => tensor.cast(dtype),
    }
}

/// `net.0` is the gated projection, `net.1` a dropout of rate 0, `net.2` the output projection.
#[derive(Module, Debug)]
struct FeedForward {
    net: (GatedGelu, Dropout, Linear),
}

impl FeedForward {
    fn new(channels: usize, device: &Device) -> Self {
        let proj = LinearConfig::new(channels, 8 * channels).init(device);
        let back = LinearConfig::new(4 * channels, channels).init(device);
        Self {
            net: (GatedGelu { proj }, DropoutConfig::new(0.0).init(), back),
        }
    }

    /// `residual + feed_forward(tokens)`
    fn forward(&self, tokens: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.net
            .2
            .forward_residual(self.net.0.forward(tokens), residual)
    }
}

/// GEGLU (Shazeer, arXiv 2002.05202): one half of the projection, gated by the GELU of the other.
#[derive(Module, Debug)]
struct GatedGelu {
    proj: Linear,
}

impl GatedGelu {
    fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.proj.forward_gated_gelu(tokens)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{ModuleMapper, Param};
    use burn::tensor::DType;
    use swiftbrush_kernels::Int8Weight;
    use swiftbrush_testing::{assert_close, cpu, device, random};

    use super::*;

    /// Weights so large that products of queries and keys overflow f16.
    struct Large;

    impl ModuleMapper for Large {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| random(tensor.dims(), 2, &tensor.device()) * 20.0)
        }
    }

    #[test]
    fn upcast_attention_does_not_overflow_in_half_precision() {
        let device = device();
        if !device.supports_dtype(DType::F16) {
            return;
        }
        let config = UNetConfig {
            upcast_attention: true,
            ..UNetConfig::tiny()
        };
        let attention = Attention::new(&config, 16, 16, 2, &device).map(&mut Large);
        let tokens = random([1, 4, 16], 3, &device);
        let expected = attention.forward(tokens.clone(), &tokens.clone().into(), tokens.clone());
        let half = tokens.cast(FloatDType::F16);
        let found = attention.forward(half.clone(), &half.clone().into(), half);
        assert_close(found.cast(FloatDType::F32), expected, 2e-3);
    }

    /// Quantises all matrices.
    struct InInt8;

    impl ModuleMapper for InInt8 {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if D != 2 {
                return param;
            }
            let (id, device) = (param.id, param.val().device());
            let weight = Int8Weight::quantize(&param.val().into_data()).unwrap();
            param.transform_for_load(weight.to_tensor(&device).unwrap(), id)
        }
    }

    #[test]
    fn attention_is_in_int8_with_its_projections() {
        let device = cpu();
        let config = UNetConfig::tiny();
        let layer = Attention::new(&config, 16, 16, 2, &device).map(&mut InInt8);
        let tokens = random([1, 5, 16], 3, &device);
        let heads = |linear: &Linear| {
            linear
                .forward(tokens.clone())
                .reshape([1, 5, 2, 8])
                .swap_dims(1, 2)
        };
        let [query, key, value] = [&layer.to_q, &layer.to_k, &layer.to_v].map(heads);
        let expected = int8_attention(query, key, value);
        let expected = expected.swap_dims(1, 2).reshape([1, 5, 16]);
        let query = layer.to_q.forward(tokens.clone());
        assert_close(layer.attend(query, tokens), expected, 0.0);
    }
}
