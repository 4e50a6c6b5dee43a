use std::cell::RefCell;

use burn::tensor::Tensor;
use swiftbrush_unet::{Checkpointed, UNet};

use crate::NamedGradients;

/// A network that predicts noise, velocity or clean latents, whichever its schedule says.
pub trait Denoiser: std::fmt::Debug {
    /// The prediction.
    ///
    /// # Shapes
    ///
    /// - latents: `[batch, channels, height, width]`, in the element type of the context
    /// - timesteps: `[batch]`
    /// - context: `[batch, length, width]`
    /// - returns: the shape of the latents
    fn predict(&self, latents: Tensor<4>, timesteps: Tensor<1>, context: Tensor<3>) -> Tensor<4>;
}

impl Denoiser for UNet {
    fn predict(&self, latents: Tensor<4>, timesteps: Tensor<1>, context: Tensor<3>) -> Tensor<4> {
        self.forward(latents, timesteps, context)
    }
}

/// A denoiser that is trained with gradient checkpointing: its prediction has no graph to its weights, and
/// [`gradients`](Self::gradients) runs each layer again, last first.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_trainer::{Denoiser, NamedGradients, WithCheckpoints};
/// use swiftbrush_unet::UNetConfig;
///
/// let device = Device::flex().autodiff();
/// let unet = UNetConfig::tiny().init(&device);
/// let denoiser = WithCheckpoints::new(&unet);
/// let (latents, context) = (Tensor::ones([1, 4, 8, 8], &device), Tensor::ones([1, 5, 12], &device));
/// let predicted = denoiser.predict(latents, Tensor::from_data([9.0], &device), context);
/// let grads = denoiser.gradients(predicted.powi_scalar(2).mean(), NamedGradients::default());
/// assert!(grads.get("conv_in.weight").is_some());
/// ```
#[derive(Debug)]
pub struct WithCheckpoints<'a> {
    unet: &'a UNet,
    pass: RefCell<Option<Pass>>,
}

#[derive(Debug)]
struct Pass {
    checkpoints: Checkpointed,
    /// A leaf, whose gradient is that of the prediction.
    prediction: Tensor<4>,
}

impl<'a> WithCheckpoints<'a> {
    /// Wraps a network on an autodiff device.
    pub fn new(unet: &'a UNet) -> Self {
        Self {
            unet,
            pass: RefCell::new(None),
        }
    }

    /// Adds the gradients of a loss of the prediction to a sum, block by block: besides the sum, only one block's
    /// gradients exist at a time.
    ///
    /// # Panics
    ///
    /// If nothing was predicted, or the loss does not depend on the prediction.
    #[track_caller]
    pub fn gradients(self, loss: Tensor<1>, mut sum: NamedGradients) -> NamedGradients {
        let pass = self
            .pass
            .into_inner()
            .expect("a prediction precedes its gradients");
        let grad = pass.prediction.grad_remove(&mut loss.backward());
        let grad = grad.expect("the loss depends on the prediction");
        pass.checkpoints.backward(self.unet, grad, |grads| {
            sum = std::mem::take(&mut sum).plus(NamedGradients::take(self.unet, grads));
        });
        sum
    }
}

impl Denoiser for WithCheckpoints<'_> {
    /// # Panics
    ///
    /// If it is called twice.
    fn predict(&self, latents: Tensor<4>, timesteps: Tensor<1>, context: Tensor<3>) -> Tensor<4> {
        let checkpoints = self.unet.forward_checkpointed(latents, timesteps, context);
        let prediction = checkpoints.prediction().autodiff().require_grad();
        let pass = Pass {
            checkpoints,
            prediction: prediction.clone(),
        };
        let earlier = self.pass.replace(Some(pass));
        assert!(earlier.is_none(), "checkpoints are those of one prediction");
        prediction
    }
}
