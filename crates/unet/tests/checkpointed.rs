//! Block checkpointing compared with the plain backward pass.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use swiftbrush_checkpoint::ModulePath;
use swiftbrush_testing::{assert_close, assert_values_close, device, random, values};
use swiftbrush_unet::{BlockType, OneOrMany, UNet, UNetConfig};

/// Takes the gradients of a network, each of which may be found once.
struct Taker<'a> {
    path: ModulePath,
    grads: &'a mut Gradients,
    found: &'a mut BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Taker<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = param.val().grad_remove(self.grads) {
            let before = self.found.insert(self.path.name(), values(grad));
            assert!(
                before.is_none(),
                "{} belongs to two parts",
                self.path.name()
            );
        }
    }
}

fn take(unet: &UNet, grads: &mut Gradients, found: &mut BTreeMap<String, Vec<f32>>) {
    unet.visit(&mut Taker {
        path: ModulePath::default(),
        grads,
        found,
    });
}

fn check(unet: &UNet, config: &UNetConfig, size: [usize; 2]) {
    let device = device().autodiff();
    let plain = device.clone().inner();
    let latents = random([2, 4, size[0], size[1]], 0, &plain);
    let timesteps = Tensor::<1>::from_data([999.0, 17.5], &plain);
    let context = random([2, 5, config.cross_attention_dim], 1, &plain);
    let weight = random([2, 4, size[0], size[1]], 2, &plain);

    let (leaf, text) = (
        latents.clone().autodiff().require_grad(),
        context.clone().autodiff().require_grad(),
    );
    let output = unet.forward(leaf.clone(), timesteps.clone().autodiff(), text.clone());
    let mut grads = (output.clone() * weight.clone().autodiff())
        .sum()
        .backward();
    let (latents_grad, context_grad) = (leaf.grad(&grads).unwrap(), text.grad(&grads).unwrap());
    let mut expected = BTreeMap::new();
    take(unet, &mut grads, &mut expected);

    let pass = unet.forward_checkpointed(latents, timesteps, context);
    assert_close(pass.prediction(), output.inner(), 1e-6);
    let mut found = BTreeMap::new();
    let inputs = pass.backward(unet, weight, |grads| take(unet, grads, &mut found));
    assert_close(inputs.latents, latents_grad, 1e-5);
    assert_close(inputs.context, context_grad, 1e-5);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, expected) in expected {
        let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        // The gradient of a key's bias is pure rounding error. Elsewhere, both passes sum the same terms in different orders;
        // sums that cancel differed by up to 2.5e-5 of a tensor's largest element over some sixty draws of the weights.
        if largest > 1e-4 {
            assert_values_close(&found[&name], &expected, 1e-4);
        }
    }
}

#[test]
fn gradients_are_those_of_the_plain_pass() {
    let device = device().autodiff();
    let config = UNetConfig::tiny();
    check(&config.init(&device), &config, [8, 8]);
}

#[test]
fn blocks_without_attention_and_odd_sizes_too() {
    use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
    let device = device().autodiff();
    let config = UNetConfig {
        block_out_channels: vec![8, 8, 16],
        down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
        up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
        layers_per_block: OneOrMany::One(2),
        attention_head_dim: OneOrMany::One(4),
        use_linear_projection: false,
        ..UNetConfig::tiny()
    };
    check(&config.init(&device), &config, [6, 10]);
}

#[test]
fn frozen_networks_give_gradients_of_their_inputs() {
    let device = device().autodiff();
    let config = UNetConfig::tiny();
    let unet = config.init(&device).no_grad();
    check(&unet, &config, [8, 8]);
}
