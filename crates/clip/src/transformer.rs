use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};
use swiftbrush_kernels::{LayerNorm, LayerNormConfig, Linear, LinearConfig, Mask, attention, gelu};

use crate::HiddenAct;

/// The size parameters that both towers have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) activation: HiddenAct,
    pub(crate) epsilon: f64,
}

impl Shape {
    pub(crate) fn norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.width)
            .with_epsilon(self.epsilon)
            .init(device)
    }
}

/// Pre-norm transformer layers.
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    pub(crate) fn new(shape: Shape, device: &Device) -> Self {
        Self {
            layers: (0..shape.layers)
                .map(|_| Layer::new(shape, device))
                .collect(),
        }
    }

    /// `[batch, length, width]` → the same
    pub(crate) fn forward(&self, states: Tensor<3>, mask: Mask) -> Tensor<3> {
        self.layers
            .iter()
            .fold(states, |states, layer| layer.forward(states, mask))
    }

    /// Number of layers.
    pub(crate) fn len(&self) -> usize {
        self.layers.len()
    }

    /// One layer of [`forward`](Self::forward).
    pub(crate) fn layer(&self, index: usize, states: Tensor<3>, mask: Mask) -> Tensor<3> {
        self.layers[index].forward(states, mask)
    }
}

#[derive(Module, Debug)]
struct Layer {
    self_attn: SelfAttention,
    layer_norm1: LayerNorm,
    mlp: Mlp,
    layer_norm2: LayerNorm,
}

impl Layer {
    fn new(shape: Shape, device: &Device) -> Self {
        Self {
            self_attn: SelfAttention::new(shape.width, shape.heads, device),
            layer_norm1: shape.norm(device),
            mlp: Mlp {
                fc1: LinearConfig::new(shape.width, shape.inner).init(device),
                fc2: LinearConfig::new(shape.inner, shape.width).init(device),
                quick: shape.activation == HiddenAct::QuickGelu,
            },
            layer_norm2: shape.norm(device),
        }
    }

    fn forward(&self, states: Tensor<3>, mask: Mask) -> Tensor<3> {
        let states = states.clone()
            + self
                .self_attn
                .forward(self.layer_norm1.forward(states), mask);
        states.clone() + self.mlp.forward(self.layer_norm2.forward(states))
    }
}

#[derive(Module, Debug)]
struct SelfAttention {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    fn new(width: usize, heads: usize, device: &Device) -> Self {
        let linear = || LinearConfig::new(width, width).init(device);
        Self {
            k_proj: linear(),
            v_proj: linear(),
            q_proj: linear(),
            out_proj: linear(),
            heads,
        }
    }

    fn forward(&self, states: Tensor<3>, mask: Mask) -> Tensor<3> {
        let [batch, length, width] = states.dims();
        let project = |layer: &Linear| {
            let heads = layer.forward(states.clone());
            heads
                .reshape([batch, length, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        let (query, key, value) = (
            project(&self.q_proj),
            project(&self.k_proj),
            project(&self.v_proj),
        );
        let mixed = attention(query, key, value, mask);
        self.out_proj
            .forward(mixed.swap_dims(1, 2).reshape([batch, length, width]))
    }
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    /// Selects `quick_gelu` instead of `gelu`.
    quick: bool,
}

impl Mlp {
    fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        let hidden = self.fc1.forward(states);
        let hidden = if self.quick {
            quick_gelu(hidden)
        } else {
            gelu(hidden)
        };
        self.fc2.forward(hidden)
    }
}

fn quick_gelu(x: Tensor<3>) -> Tensor<3> {
    x.clone() * sigmoid(x * 1.702)
}
