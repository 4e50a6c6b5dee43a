use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, assert_shape};
use swiftbrush_checkpoint::{Error, Model, load};
use swiftbrush_kernels::{Linear, LinearConfig};

use crate::open_clip::as_transformers;
use crate::text::TextModel;
use crate::vision::VisionModel;
use crate::{ClipConfig, TextEncoder};

/// Both towers with their projections into a joint space: transformers' `CLIPModel`.
#[derive(Module, Debug)]
pub struct Clip {
    text_model: TextModel,
    pub(crate) vision_model: VisionModel,
    visual_projection: Linear,
    text_projection: Linear,
    /// Logarithm of the similarity scale in the contrastive loss, `[1]`.
    pub logit_scale: Param<Tensor<1>>,
}

impl ClipConfig {
    /// Creates towers with random weights.
    ///
    /// # Panics
    ///
    /// If the fields contradict one another.
    #[track_caller]
    pub fn init(&self, device: &Device) -> Clip {
        if let Err(message) = self.check() {
            panic!("{message}");
        }
        let projection = |width| {
            LinearConfig::new(width, self.projection_dim)
                .with_bias(false)
                .init(device)
        };
        let logit_scale = Tensor::full([1], self.logit_scale_init_value, device);
        Clip {
            text_model: TextModel::new(&self.text_config, device),
            vision_model: VisionModel::new(&self.vision_config, device),
            visual_projection: projection(self.vision_config.hidden_size),
            text_projection: projection(self.text_config.hidden_size),
            logit_scale: Param::from_tensor(logit_scale),
        }
    }
}

impl Clip {
    /// Loads a component of a model (`.` for the folder itself) in the element type `dtype` [default: f32]. Files are
    /// those of transformers or open_clip.
    ///
    /// # Errors
    ///
    /// If the configuration or the weights cannot be read or do not match.
    pub fn from_model(
        model: &Model,
        component: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, Error> {
        swiftbrush_kernels::supports(device)?;
        let config = ClipConfig::from_model(model, component)?;
        let weights = as_transformers(model.weights(component)?)?;
        load(
            config.init(device),
            &weights,
            Some(dtype.unwrap_or(DType::F32)),
        )
    }

    /// Embeds texts.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, length]`
    /// - returns: `[batch, projection_dim]`, of length one, f32
    ///
    /// # Panics
    ///
    /// If there are more tokens than positions.
    #[track_caller]
    pub fn embed_texts(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let states = self.text_model.forward(tokens.clone());
        normalize(
            self.text_projection
                .forward(self.text_model.pool(states, &tokens)),
        )
    }

    /// Embeds images.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, side, side]` from [`preprocess`](crate::preprocess), where side is
    ///   [`image_size`](Self::image_size), in the element type of the tower's arithmetic
    /// - returns: `[batch, projection_dim]`, of length one, f32
    ///
    /// # Panics
    ///
    /// If the images have another side.
    #[track_caller]
    pub fn embed_images(&self, images: Tensor<4>) -> Tensor<2> {
        self.embed_image_states(self.image_states(images))
    }

    /// States of the vision tower's last layer: the class token, then the patches in row-major order.
    ///
    /// # Shapes
    ///
    /// - images: same as [`embed_images`](Self::embed_images)
    /// - returns: `[batch, 1 + patches, hidden_size]`
    ///
    /// # Panics
    ///
    /// If the images have another side.
    #[track_caller]
    pub fn image_states(&self, images: Tensor<4>) -> Tensor<3> {
        self.vision_model.states(images)
    }

    /// Embeddings of images from their [`image_states`](Self::image_states).
    ///
    /// # Shapes
    ///
    /// - states: `[batch, 1 + patches, hidden_size]`
    /// - returns: `[batch, projection_dim]`, of length one, f32
    pub fn embed_image_states(&self, states: Tensor<3>) -> Tensor<2> {
        normalize(
            self.visual_projection
                .forward(self.vision_model.pool(states)),
        )
    }

    /// Side of the vision tower's images in pixels.
    pub fn image_size(&self) -> usize {
        self.vision_model.image_size()
    }

    /// Width of an embedding.
    pub fn width(&self) -> usize {
        let [width, _] = self.visual_projection.weight.lazy_shape().dims::<2>();
        width
    }

    /// Returns only the text tower, without its projection: the encoder that conditions a denoiser.
    pub fn into_text_encoder(self) -> TextEncoder {
        TextEncoder {
            text_model: self.text_model,
        }
    }
}

#[track_caller]
fn normalize(embeddings: Tensor<2>) -> Tensor<2> {
    let embeddings = embeddings.cast(FloatDType::F32);
    let length = embeddings.clone().powi_scalar(2).sum_dim(1).sqrt();
    embeddings / length
}

/// Cosine similarity of each image and its text.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_clip::cosine_similarity;
///
/// let device = Device::default();
/// let image = Tensor::<2>::from_data([[1.0, 0.0]], &device);
/// let text = Tensor::<2>::from_data([[0.6, 0.8]], &device);
/// let similarity: f32 = cosine_similarity(image, text).into_scalar();
/// assert!((similarity - 0.6).abs() < 1e-6);
/// ```
///
/// # Shapes
///
/// - image_embeds, text_embeds: `[batch, width]`, of length one
/// - returns: `[batch]`
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn cosine_similarity(image_embeds: Tensor<2>, text_embeds: Tensor<2>) -> Tensor<1> {
    let [batch, width] = image_embeds.dims();
    assert_shape!(text_embeds, [batch, width]);
    (image_embeds * text_embeds).sum_dim(1).squeeze_dim::<1>(1)
}
