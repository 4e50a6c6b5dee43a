//! Prints the errors of layers in int8, relative to their outputs in f32, for the denoiser of a model or for random weights of
//! SD 2.1's size, and of the whole denoiser. Inputs are normal. "Per tensor" is the scheme with one scale per weight and input.
//!
//! `cargo run --release -p benches --bin int8_errors -- [FOLDER]`
#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use swiftbrush_checkpoint::{Model, NamedVisitor, quantize, visit_named};
use swiftbrush_kernels::{Int8Weight, Window, conv2d, linear};
use swiftbrush_unet::{UNet, UNetConfig};

mod common;
use common::{device, normal};

type Failure = Box<dyn std::error::Error>;

/// Tokens, and pixels along each axis.
const SIDE: usize = 16;

fn main() -> Result<(), Failure> {
    let device = device();
    let folder = std::env::args().nth(1);
    let (config, unet) = match &folder {
        None => (UNetConfig::default(), UNetConfig::default().init(&device)),
        Some(folder) => {
            let model = Model::open(folder)?;
            let unet = UNet::from_model(&model, "unet", None, &device)?;
            (UNetConfig::from_model(&model, "unet")?, unet)
        }
    };
    let mut errors = Errors::default();
    visit_named(&unet, &mut errors);
    errors.print();
    let int8 = quantize(unet.clone(), UNet::is_int8_weight, Path::new("unet"))?;
    let side = config.sample_size;
    let latents = normal([1, config.in_channels, side, side], &device);
    let context = normal([1, 77, config.cross_attention_dim], &device);
    let [plain, quantized] = [unet, int8].map(|unet| {
        let steps = Tensor::<1>::full([1], 999.0, &device);
        unet.forward(latents.clone(), steps, context.clone())
    });
    println!("whole denoiser: {:.5}", relative(&quantized, &plain));
    Ok(())
}

/// Root mean square of the difference over that of the expected values.
fn relative<const D: usize>(found: &Tensor<D>, expected: &Tensor<D>) -> f64 {
    let square = |x: Tensor<D>| -> f64 {
        let values = x.into_data();
        values.iter::<f32>().map(|x| f64::from(x).powi(2)).sum()
    };
    (square(found.clone() - expected.clone()) / square(expected.clone())).sqrt()
}

/// Name, error, and error per tensor of each layer.
#[derive(Default)]
struct Errors(Vec<(String, f64, f64)>);

impl NamedVisitor for Errors {
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if !UNet::is_int8_weight(name, param.lazy_shape().as_slice()) {
            return;
        }
        let weight = param.base();
        let (found, per_tensor) = match D {
            2 => errors::<2>(&weight.reshape([0, 0]), linear_of),
            _ => errors::<4>(&weight.reshape([0, 0, 0, 0]), convolution_of),
        };
        self.0.push((name.to_owned(), found, per_tensor));
    }
}

fn linear_of(input: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    linear(input, weight, None)
}

fn convolution_of(input: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
    let [_, _, side, _] = weight.dims();
    let padding = (side / 2, side / 2);
    conv2d(input, weight, None, Window { stride: 1, padding })
}

fn errors<const D: usize>(
    weight: &Tensor<D>,
    layer: impl Fn(Tensor<D>, Tensor<D>) -> Tensor<D>,
) -> (f64, f64) {
    let mut shape = [SIDE; D];
    (shape[0], shape[1]) = (if D == 2 { SIDE } else { 1 }, weight.dims()[1]);
    let input = normal(shape, &weight.device());
    let int8 = Int8Weight::quantize(&weight.clone().into_data()).expect("weights are finite");
    let int8 = int8
        .to_tensor(&weight.device())
        .expect("int8 needs the CPU");
    let plain = layer(input.clone(), weight.clone());
    let found = relative(&layer(input.clone(), int8), &plain);
    let per_tensor = layer(per_tensor(input), per_tensor(weight.clone()));
    (found, relative(&per_tensor, &plain))
}

/// The nearest values with one scale.
fn per_tensor<const D: usize>(values: Tensor<D>) -> Tensor<D> {
    let scale = values
        .clone()
        .abs()
        .max()
        .into_data()
        .iter::<f32>()
        .sum::<f32>()
        / 127.0;
    (values / scale).round() * scale
}

impl Errors {
    fn print(mut self) {
        self.0.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mean = |of: fn(&(String, f64, f64)) -> f64| {
            self.0.iter().map(of).sum::<f64>() / self.0.len() as f64
        };
        println!("| layer | int8 | per tensor |\n|---|---|---|");
        println!(
            "| mean of {} layers | {:.5} | {:.5} |",
            self.0.len(),
            mean(|row| row.1),
            mean(|row| row.2)
        );
        for (name, found, per_tensor) in self.0.iter().take(8) {
            println!("| {name} | {found:.5} | {per_tensor:.5} |");
        }
    }
}
