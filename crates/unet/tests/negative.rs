//! Negative prompts in cross-attention, against attention processors for diffusers; `golden/make_negative.py` writes the file.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use swiftbrush_checkpoint::{Model, ModulePath};
use swiftbrush_testing::{F32, Golden, assert_close, assert_values_close, device, values};
use swiftbrush_unet::{Context, NegativeMethod, UNet};

struct Case {
    golden: Golden,
    device: Device,
    unet: UNet,
}

impl Case {
    fn new(device: Device) -> Self {
        let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "negative");
        let folder = golden.model_folder("unet");
        let folder = Model::open(folder.path()).unwrap();
        let unet = UNet::from_model(&folder, "unet", None, &device).unwrap();
        Self {
            golden,
            device,
            unet,
        }
    }

    fn context(&self, method: NegativeMethod) -> Context {
        let negative = self.golden.tensor("negative", &self.device);
        self.plain().with_negative(negative, method)
    }

    fn plain(&self) -> Context {
        Context::from(self.golden.tensor::<3>("context", &self.device))
    }

    fn run(&self, latents: Tensor<4>, context: Context) -> Tensor<4> {
        let timesteps = self.golden.tensor("timesteps", &self.device);
        self.unet.forward(latents, timesteps, context)
    }

    fn output(&self, context: Context) -> Tensor<4> {
        self.run(self.golden.tensor("latents", &self.device), context)
    }

    #[track_caller]
    fn check(&self, name: &str, context: Context) {
        let expected = self.golden.tensor(&format!("{name}.out"), &self.device);
        assert_close(self.output(context), expected, F32);
    }
}

const NASA: NegativeMethod = NegativeMethod::Nasa { scale: 0.7 };
/// No token reaches the limit.
const FREE: NegativeMethod = NegativeMethod::Nag {
    scale: 0.5,
    limit: 20.0,
    blend: 0.7,
};
/// Most tokens reach the limit.
const LIMITED: NegativeMethod = NegativeMethod::Nag {
    scale: 4.0,
    limit: 1.5,
    blend: 0.6,
};

#[test]
fn nasa_is_that_of_a_processor_of_diffusers() {
    let case = Case::new(device());
    case.check("plain", case.plain());
    case.check("nasa", case.context(NASA));
}

#[test]
fn nag_is_that_of_a_processor_of_diffusers() {
    let case = Case::new(device());
    case.check("nag_free", case.context(FREE));
    case.check("nag_limited", case.context(LIMITED));
}

#[test]
fn one_negative_text_serves_all_images() {
    let case = Case::new(device());
    let mut context = case.context(NASA);
    let negative = context.negative.as_mut().unwrap();
    negative.states = negative.states.clone().narrow(0, 0, 1);
    case.check("nasa_for_all", context);
}

/// Bit for bit, signs of zeros aside.
#[test]
fn a_scale_of_zero_is_the_plain_output_to_the_bit() {
    let case = Case::new(device());
    let plain = values(case.output(case.plain()));
    for method in [NASA, FREE, LIMITED] {
        let found = case.output(case.context(method.with_scale(0.0)));
        assert_eq!(values(found), plain, "{method}");
        assert_ne!(values(case.output(case.context(method))), plain, "{method}");
    }
    let context = case.context(NegativeMethod::Nag {
        scale: 4.0,
        limit: 1.5,
        blend: 0.0,
    });
    assert_eq!(values(case.output(context)), plain, "blended away");
}

/// Finds the gradient of one parameter.
struct Find<'a> {
    path: ModulePath,
    wanted: &'a str,
    grads: &'a Gradients,
    found: Vec<f32>,
}

impl ModuleVisitor for Find<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.path.name() == self.wanted {
            self.found = values(param.val().grad(self.grads).unwrap());
        }
    }
}

/// f32 against f64: attentions with weights three times as large amplify the rounding of [`F32`].
const GRADIENTS: f64 = 3.0 * F32;

/// Training with a negative prompt, as NASA-T does.
#[test]
fn gradients_are_those_of_autograd() {
    let case = Case::new(device().autodiff());
    let plain = case.device.clone().inner();
    for (name, method) in [("nasa", NASA), ("nag_free", FREE), ("nag_limited", LIMITED)] {
        let latents: Tensor<4> = case.golden.tensor("latents", &case.device);
        let latents = latents.require_grad();
        let output = case.run(latents.clone(), case.context(method));
        let target = case.golden.tensor("target", &case.device);
        let grads = (output * target).sum().backward();
        let expected = case.golden.tensor(&format!("{name}.latents_grad"), &plain);
        assert_close(latents.grad(&grads).unwrap(), expected, GRADIENTS);
        let mut find = Find {
            path: ModulePath::default(),
            wanted: "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            grads: &grads,
            found: Vec::new(),
        };
        case.unet.visit(&mut find);
        let expected: Tensor<2> = case.golden.tensor(&format!("{name}.to_k_grad"), &plain);
        assert_values_close(&find.found, &values(expected), GRADIENTS);
    }
}
