//! Parity with diffusers; the files are written by `golden/make.py`.

use burn::module::Module;
use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use swiftbrush_checkpoint::{Model, ModulePath};
use swiftbrush_testing::{F32, Golden, assert_close, assert_values_close, device, values};
use swiftbrush_unet::UNet;

fn load(golden: &Golden, device: &Device) -> UNet {
    let folder = golden.model_folder("unet");
    let folder = Model::open(folder.path()).unwrap();
    UNet::from_model(&folder, "unet", None, device).unwrap()
}

fn check_forward(name: &str) {
    let (golden, device) = (Golden::open(env!("CARGO_MANIFEST_DIR"), name), device());
    let out = load(&golden, &device).forward(
        golden.tensor("latents", &device),
        golden.tensor("timesteps", &device),
        golden.tensor::<3>("context", &device),
    );
    assert_close(out, golden.tensor("out", &device), F32);
}

#[test]
fn predicts_what_diffusers_predicts_with_linear_projections() {
    check_forward("unet_linear");
}

#[test]
fn predicts_what_diffusers_predicts_with_convolutional_projections_and_odd_sizes() {
    check_forward("unet_conv");
}

/// Compares the gradients of the parameters in the golden file.
struct GradientCheck<'a> {
    path: ModulePath,
    golden: &'a Golden,
    grads: &'a Gradients,
    compared: usize,
}

impl ModuleVisitor for GradientCheck<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let expected = self
            .golden
            .tensors_under(&format!("grads.{}", self.path.name()));
        if let Some(expected) = expected.get("") {
            let found = param
                .val()
                .grad(self.grads)
                .expect("every parameter has a gradient");
            let expected: Vec<f32> = expected.iter::<f32>().collect();
            assert_values_close(&values(found), &expected, F32);
            self.compared += 1;
        }
    }
}

fn check_gradients(name: &str) {
    let (golden, device) = (
        Golden::open(env!("CARGO_MANIFEST_DIR"), name),
        device().autodiff(),
    );
    let unet = load(&golden, &device);
    let latents = golden.tensor::<4>("latents", &device).require_grad();
    let context = golden.tensor::<3>("context", &device);
    let out = unet.forward(
        latents.clone(),
        golden.tensor("timesteps", &device),
        context,
    );
    let grads = (out * golden.tensor("target", &device)).sum().backward();

    assert_close(
        latents.grad(&grads).unwrap(),
        golden.tensor("latents_grad", &device.inner()),
        F32,
    );
    let mut check = GradientCheck {
        path: ModulePath::default(),
        golden: &golden,
        grads: &grads,
        compared: 0,
    };
    unet.visit(&mut check);
    assert_eq!(check.compared, golden.tensors_under("grads.").len());
}

#[test]
fn gradients_are_those_of_autograd_with_linear_projections() {
    check_gradients("unet_linear");
}

#[test]
fn gradients_are_those_of_autograd_with_convolutional_projections() {
    check_gradients("unet_conv");
}
