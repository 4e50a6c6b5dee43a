use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor, assert_shape};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, LayerNorm, Mask};

use crate::VisionConfig;
use crate::text::Table;
use crate::transformer::{Encoder, Shape};

/// The vision tower.
#[derive(Module, Debug)]
pub(crate) struct VisionModel {
    embeddings: Embeddings,
    /// The name is misspelt in every checkpoint.
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    image_size: usize,
}

#[derive(Module, Debug)]
struct Embeddings {
    class_embedding: Param<Tensor<1>>,
    patch_embedding: Conv2d,
    position_embedding: Table,
}

impl VisionModel {
    pub(crate) fn new(config: &VisionConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            epsilon: config.layer_norm_eps,
        };
        let patches = (config.image_size / config.patch_size).pow(2);
        let normal = Distribution::Normal(0.0, (width as f64).powf(-0.5));
        let patch_embedding = Conv2dConfig::new(config.num_channels, width, config.patch_size)
            .with_stride(config.patch_size)
            .with_bias(false);
        Self {
            embeddings: Embeddings {
                class_embedding: Param::from_tensor(Tensor::random([width], normal, device)),
                patch_embedding: patch_embedding.init(device),
                position_embedding: Table::new(patches + 1, width, device),
            },
            pre_layrnorm: shape.norm(device),
            encoder: Encoder::new(shape, device),
            post_layernorm: shape.norm(device),
            image_size: config.image_size,
        }
    }

    pub(crate) fn image_size(&self) -> usize {
        self.image_size
    }

    /// States of the class token and of the patches: `[batch, 3, side, side]`, preprocessed → `[batch, 1 + patches, width]`
    pub(crate) fn states(&self, images: Tensor<4>) -> Tensor<3> {
        self.encoder.forward(self.embed(images), Mask::None)
    }

    /// Number of layers.
    pub(crate) fn n_layers(&self) -> usize {
        self.encoder.len()
    }

    /// One layer of [`states`](Self::states), from the output of the one before or of [`embed`](Self::embed).
    pub(crate) fn layer(&self, index: usize, states: Tensor<3>) -> Tensor<3> {
        self.encoder.layer(index, states, Mask::None)
    }

    /// The input of the first layer.
    #[track_caller]
    pub(crate) fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let [batch, channels, _, _] = images.dims();
        assert_shape!(images, [batch, channels, self.image_size, self.image_size]);
        let patches = self.embeddings.patch_embedding.forward(images);
        let [_, width, rows, columns] = patches.dims();
        let patches = patches
            .reshape([batch, width, rows * columns])
            .swap_dims(1, 2);
        let dtype = patches.dtype();
        let class = self.embeddings.class_embedding.val().cast(dtype);
        let class = class.reshape([1, 1, width]).expand([batch, 1, width]);
        let positions = self.embeddings.position_embedding.weight.val().cast(dtype);
        let tokens = Tensor::cat(vec![class, patches], 1) + positions.unsqueeze::<3>();
        self.pre_layrnorm.forward(tokens)
    }

    /// The normalised state of the class token: `[batch, 1 + patches, width]` → `[batch, width]`
    pub(crate) fn pool(&self, states: Tensor<3>) -> Tensor<2> {
        self.post_layernorm
            .forward(states.narrow(1, 0, 1))
            .squeeze_dim::<2>(1)
    }
}
