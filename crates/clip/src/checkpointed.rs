use burn::module::Module;
use burn::tensor::Tensor;
use swiftbrush_kernels::{Checkpoints, input_grad};

use crate::Clip;

/// Embeddings of images by [`Clip::embed_images_checkpointed`], and the inputs of the vision tower's layers.
#[derive(Clone, Debug)]
pub struct CheckpointedEmbedding {
    images: Tensor<4>,
    states: Checkpoints<3>,
    embeds: Tensor<2>,
}

impl Clip {
    /// [`embed_images`](Self::embed_images) for a memory-efficient backward pass: it runs without a graph and keeps
    /// only the inputs of the vision tower's layers, which [`CheckpointedEmbedding::backward`] runs again.
    ///
    /// The network is frozen and on an autodiff device; images have no graph.
    ///
    /// # Shapes
    ///
    /// As [`embed_images`](Self::embed_images).
    ///
    /// # Panics
    ///
    /// As [`embed_images`](Self::embed_images).
    #[track_caller]
    pub fn embed_images_checkpointed(&self, images: Tensor<4>) -> CheckpointedEmbedding {
        let plain = self.valid();
        let tower = &plain.vision_model;
        let link = |index, states| tower.layer(index, states);
        let states = Checkpoints::forward(tower.n_layers(), tower.embed(images.clone()), link);
        CheckpointedEmbedding {
            embeds: plain.embed_image_states(states.output()),
            images,
            states,
        }
    }
}

impl CheckpointedEmbedding {
    /// The embeddings, without a graph; see [`Clip::embed_images`].
    pub fn embeds(&self) -> Tensor<2> {
        self.embeds.clone()
    }

    /// The gradient of the images, without a graph, for the network of the forward pass and the gradient of the embeddings.
    ///
    /// # Panics
    ///
    /// If the gradient has another shape than the embeddings, or the network is not on an autodiff device.
    #[track_caller]
    pub fn backward(self, clip: &Clip, grad: Tensor<2>) -> Tensor<4> {
        let tower = &clip.vision_model;
        let head = |states| clip.embed_image_states(states);
        let grad = input_grad(self.states.output(), grad, head);
        let grad = self
            .states
            .backward(grad, |index, states| tower.layer(index, states));
        input_grad(self.images, grad, |images| tower.embed(images))
    }
}
