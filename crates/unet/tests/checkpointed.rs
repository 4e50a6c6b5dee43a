//! Block checkpointing compared with the plain backward pass.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, FloatDType, Gradients, Tensor};
use swiftbrush_checkpoint::ModulePath;
use swiftbrush_testing::{device, fill, random};
use swiftbrush_unet::{BlockType, OneOrMany, UNet, UNetConfig};

/// Takes the gradients of a network, each of which may be found once.
struct Taker<'a> {
    path: ModulePath,
    grads: &'a mut Gradients,
    found: &'a mut BTreeMap<String, Vec<f64>>,
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
            let before = self.found.insert(self.path.name(), elements(grad));
            assert!(
                before.is_none(),
                "{} belongs to two parts",
                self.path.name()
            );
        }
    }
}

fn take(unet: &UNet, grads: &mut Gradients, found: &mut BTreeMap<String, Vec<f64>>) {
    unet.visit(&mut Taker {
        path: ModulePath::default(),
        grads,
        found,
    });
}

/// Compares both passes in the element type of the network's weights. All gradients agree within `tolerance`, relative to
/// the largest element of each.
fn check(unet: &UNet, config: &UNetConfig, size: [usize; 2], dtype: FloatDType, tolerance: f64) {
    let device = device().autodiff();
    let plain = device.clone().inner();
    let latents = random([2, 4, size[0], size[1]], 0, &plain).cast(dtype);
    let timesteps = Tensor::<1>::from_data([999.0, 17.5], &plain);
    let context = random([2, 5, config.cross_attention_dim], 1, &plain).cast(dtype);
    let weight = random([2, 4, size[0], size[1]], 2, &plain).cast(dtype);

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
    let mut expected_and_found = vec![(
        "prediction".to_owned(),
        elements(output.inner()),
        elements(pass.prediction()),
    )];
    let mut found = BTreeMap::new();
    let inputs = pass.backward(unet, weight, |grads| take(unet, grads, &mut found));
    found.insert("latents".to_owned(), elements(inputs.latents));
    found.insert("context".to_owned(), elements(inputs.context));
    expected.insert("latents".to_owned(), elements(latents_grad));
    expected.insert("context".to_owned(), elements(context_grad));
    assert!(found.keys().eq(expected.keys()));
    let grads = expected.into_iter().map(|(name, expected)| {
        let found = found[&name].clone();
        (name, expected, found)
    });
    expected_and_found.extend(grads);
    for (name, expected, found) in expected_and_found {
        let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        assert!(largest > 0.0, "{name} is zero");
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs() / largest;
            assert!(error <= tolerance, "{name} is off by {error:.1e}");
        }
    }
}

/// The elements in f64.
fn elements<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The forward pass without a graph adds bias and residual within a kernel, so the inputs of layers differ from those of the
/// plain pass by rounding, and gradients by more where sums cancel (biases before a normalisation, queries and keys before a
/// softmax): in f32 by up to 6.5e-6 of a tensor's largest element with these weights.
const F32: f64 = 2e-5;

/// In f64, rounding is 5e8 times smaller, so anything but rounding would show.
const F64: f64 = 1e-12;

/// A configuration whose last blocks are without attention; for odd sizes.
fn uneven() -> UNetConfig {
    use BlockType::{CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D};
    UNetConfig {
        block_out_channels: vec![8, 8, 16],
        down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
        up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
        layers_per_block: OneOrMany::One(2),
        attention_head_dim: OneOrMany::One(4),
        use_linear_projection: false,
        ..UNetConfig::tiny()
    }
}

#[test]
fn gradients_are_those_of_the_plain_pass() {
    let device = device().autodiff();
    let config = UNetConfig::tiny();
    let unet = fill(config.init(&device), 0);
    check(&unet, &config, [8, 8], FloatDType::F32, F32);
}

#[test]
fn blocks_without_attention_and_odd_sizes_too() {
    let device = device().autodiff();
    let unet = fill(uneven().init(&device), 1);
    check(&unet, &uneven(), [6, 10], FloatDType::F32, F32);
}

#[test]
fn frozen_networks_give_gradients_of_their_inputs() {
    let device = device().autodiff();
    let config = UNetConfig::tiny();
    let unet = fill(config.init(&device), 2).no_grad();
    check(&unet, &config, [8, 8], FloatDType::F32, F32);
}

/// Casts every weight to f64.
struct Widen;

impl ModuleMapper for Widen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            tensor
                .inner()
                .cast(FloatDType::F64)
                .autodiff()
                .require_grad()
        })
    }
}

#[test]
fn in_f64_both_passes_agree_to_its_rounding() {
    let device = device().autodiff();
    if !device.supports_dtype(DType::F64) {
        return;
    }
    for (config, size) in [(UNetConfig::tiny(), [8, 8]), (uneven(), [6, 10])] {
        let unet = fill(config.init(&device), 3).map(&mut Widen);
        check(&unet, &config, size, FloatDType::F64, F64);
    }
}
