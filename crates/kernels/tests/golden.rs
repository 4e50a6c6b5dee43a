//! Layers with weights in int8, and attention, against integer arithmetic, bit for bit; the file is written by `golden/int8.py`.
#![cfg(feature = "flex")]

use burn::module::{Module, ParamId};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use swiftbrush_kernels::{
    Conv2d, Conv2dConfig, Epilogue, Int8Error, Int8Weight, Linear, LinearConfig, Window, conv2d,
    gated_gelu, int8_attention, is_int8, linear, upsample_nearest_2x,
};
use swiftbrush_testing::{Golden, assert_close, cpu, random, values};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn golden() -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "int8")
}

/// The weight of a case, quantised; compared with its codes and scales.
fn weight(golden: &Golden, name: &str) -> Int8Weight {
    let weight = Int8Weight::quantize(&golden.data(&format!("{name}.weight"))).unwrap();
    let codes: Vec<i32> = weight.codes().iter().collect();
    let expected: Vec<i32> = golden.data(&format!("{name}.codes")).iter().collect();
    assert_eq!(codes, expected, "{name}");
    assert_eq!(weight.scales(), &golden.data(&format!("{name}.scales")));
    Int8Weight::from_parts(weight.codes().clone(), weight.scales().clone()).unwrap()
}

fn with_weight(mut layer: Linear, weight: &Int8Weight, device: &Device) -> Linear {
    let tensor = weight.to_tensor(device).unwrap();
    layer.weight = layer.weight.transform_for_load(tensor, ParamId::new());
    layer
}

fn with_kernel(mut layer: Conv2d, weight: &Int8Weight, device: &Device) -> Conv2d {
    let tensor = weight.to_tensor(device).unwrap();
    layer.weight = layer.weight.transform_for_load(tensor, ParamId::new());
    layer
}

#[test]
fn linear_layers_are_bit_identical_to_integers() {
    let (golden, device) = (golden(), cpu());
    for name in ["one", "odd", "text", "long", "deep"] {
        let name = format!("linear.{name}");
        let get = |part: &str| golden.tensor::<2>(&format!("{name}.{part}"), &device);
        let [outputs, inputs] = get("weight").dims();
        let mut layer = LinearConfig::new(inputs, outputs).init(&device);
        layer.bias = layer.bias.map(|bias| {
            let id = bias.id;
            bias.transform_for_load(golden.tensor(&format!("{name}.bias"), &device), id)
        });
        let layer = with_weight(layer, &weight(&golden, &name), &device);
        let found = layer.forward_residual(get("input"), get("residual"));
        assert_eq!(
            found.into_data(),
            golden.data(&format!("{name}.out")),
            "{name}"
        );
    }
}

#[test]
fn convolutions_are_bit_identical_to_integers() {
    let (golden, device) = (golden(), cpu());
    for (name, stride, padding, relu) in [
        ("odd", 1, (1, 1), true),
        ("wide", 1, (1, 1), false),
        ("strided", 2, (1, 1), false),
        ("whole", 1, (1, 1), false),
        ("whole-strided", 2, (0, 1), true),
        ("uneven", 2, (0, 1), true),
        ("pointwise", 1, (0, 0), false),
        ("skipping", 2, (0, 0), false),
    ] {
        let name = format!("convolution.{name}");
        let get = |part: &str| golden.tensor::<4>(&format!("{name}.{part}"), &device);
        let [outputs, inputs, kernel, _] = get("weight").dims();
        let layer = Conv2dConfig::new(inputs, outputs, kernel)
            .with_stride(stride)
            .with_padding(padding)
            .with_bias(false)
            .init(&device);
        let layer = with_kernel(layer, &weight(&golden, &name), &device);
        let epilogue = Epilogue::default()
            .with_shift(golden.tensor(&format!("{name}.bias"), &device))
            .with_residual(get("residual"));
        let epilogue = if relu { epilogue.with_relu() } else { epilogue };
        let found = layer.forward_with(get("input"), epilogue);
        assert_eq!(
            found.into_data(),
            golden.data(&format!("{name}.out")),
            "{name}"
        );
    }
}

#[test]
fn gated_layers_are_those_of_separate_steps() {
    let device = cpu();
    for (rows, inputs, outputs) in [(1, 3, 2), (70, 20, 14), (600, 33, 130)] {
        for has_bias in [false, true] {
            let config = LinearConfig::new(inputs, outputs).with_bias(has_bias);
            let plain = config.init(&device);
            let weight = Int8Weight::quantize(&plain.weight.val().into_data()).unwrap();
            let input = random([1, rows, inputs], 1, &device) * 3.0;
            for layer in [with_weight(plain.clone(), &weight, &device), plain] {
                let found = layer.forward_gated_gelu(input.clone());
                assert_eq!(found.dims(), [1, rows, outputs / 2]);
                assert_close(found, gated_gelu(layer.forward(input.clone())), 0.0);
            }
        }
    }
}

#[test]
fn attention_is_bit_identical_to_integers() {
    let (golden, device) = (golden(), cpu());
    for name in ["one", "odd", "text", "long"] {
        let get = |part: &str| golden.tensor::<4>(&format!("attention.{name}.{part}"), &device);
        let found = int8_attention(get("query"), get("key"), get("value"));
        let expected = golden.data(&format!("attention.{name}.out"));
        assert_eq!(found.into_data(), expected, "{name}");
    }
}

#[test]
fn upsampling_and_tokens_are_those_of_separate_steps() {
    let device = cpu();
    let quantized = |shape: [usize; 4]| {
        let weight = random(shape, 0, &device).into_data();
        Int8Weight::quantize(&weight).unwrap()
    };
    let layer = Conv2dConfig::same3x3(6, 5).init(&device);
    let layer = with_kernel(layer, &quantized([5, 6, 3, 3]), &device);
    let image = random([2, 6, 5, 4], 1, &device);
    let expected = layer.forward(upsample_nearest_2x(image.clone()));
    assert_close(layer.forward_upsampled(image.clone()), expected, 0.0);

    let plain = Conv2dConfig::new(6, 5, 1).init(&device);
    let layer = with_kernel(plain.clone(), &quantized([5, 6, 1, 1]), &device);
    let to_tokens = |x: Tensor<4>| x.permute([0, 2, 3, 1]);
    for layer in [layer, plain] {
        let expected = to_tokens(layer.forward(image.clone()));
        assert_close(
            layer.forward_tokens(to_tokens(image.clone())),
            expected,
            1e-6,
        );
    }
}

#[test]
fn outputs_are_close_to_those_of_the_weight_in_f32() {
    let device = cpu();
    let (tokens, matrix) = (random([40, 300], 0, &device), random([50, 300], 1, &device));
    let int8 = Int8Weight::quantize(&matrix.clone().into_data()).unwrap();
    let found = linear(tokens.clone(), int8.to_tensor(&device).unwrap(), None);
    assert_close(found, linear(tokens, matrix, None), 0.02);

    let (image, kernel) = (
        random([1, 40, 9, 9], 0, &device),
        random([32, 40, 3, 3], 1, &device),
    );
    let int8 = Int8Weight::quantize(&kernel.clone().into_data()).unwrap();
    let window = Window {
        stride: 1,
        padding: (1, 1),
    };
    let found = conv2d(
        image.clone(),
        int8.to_tensor(&device).unwrap(),
        None,
        window,
    );
    assert_close(found, conv2d(image, kernel, None, window), 0.02);
}

#[test]
fn a_nan_or_an_infinity_spoils_the_outputs_that_depend_on_it() {
    let device = cpu();
    let ones = |shape: Vec<usize>| TensorData::full(shape, 1.0f32);
    let matrix = Int8Weight::quantize(&ones(vec![3, 8])).unwrap();
    let kernel = Int8Weight::quantize(&ones(vec![3, 8, 3, 3])).unwrap();
    let window = Window {
        stride: 1,
        padding: (1, 1),
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tokens = vec![1.0; 4 * 8];
        tokens[8 + 5] = bad;
        let tokens = Tensor::<2>::from_data(TensorData::new(tokens, [4, 8]), &device);
        let output = values(linear(tokens, matrix.to_tensor(&device).unwrap(), None));
        for (place, value) in output.iter().enumerate() {
            assert_eq!(value.is_nan(), place / 3 == 1, "{bad} {place}");
        }
        let mut image = vec![1.0; 8 * 36];
        image[3 * 36 + 2 * 6 + 1] = bad;
        let image = Tensor::<4>::from_data(TensorData::new(image, [1, 8, 6, 6]), &device);
        let output = values(conv2d(
            image,
            kernel.to_tensor(&device).unwrap(),
            None,
            window,
        ));
        for (place, value) in output.iter().enumerate() {
            let (y, x) = (place % 36 / 6, place % 6);
            assert_eq!(
                value.is_nan(),
                y.abs_diff(2) < 2 && x.abs_diff(1) < 2,
                "{bad} {y} {x}"
            );
        }
    }
}

#[test]
fn weights_are_read_back_and_shared_by_clones() {
    let device = cpu();
    for shape in [vec![5, 8], vec![3, 7, 3, 3]] {
        let values = random([shape.iter().product()], 0, &device).into_data();
        let data =
            TensorData::from_bytes_vec(values.as_bytes().to_vec(), shape.clone(), DType::F32);
        let weight = Int8Weight::quantize(&data).unwrap();
        let found = match shape.len() {
            2 => Int8Weight::of_tensor(&weight.to_tensor::<2>(&device).unwrap()),
            _ => Int8Weight::of_tensor(&weight.to_tensor::<4>(&device).unwrap()),
        };
        let found = found.unwrap();
        assert_eq!(
            (found.codes(), found.scales()),
            (weight.codes(), weight.scales())
        );
    }
    let plain = LinearConfig::new(8, 5).init(&device);
    let weight = Int8Weight::quantize(&plain.weight.val().into_data()).unwrap();
    let layer = with_weight(plain.clone(), &weight, &device).no_grad();
    assert!(is_int8(&layer.weight.val()) && !is_int8(&plain.weight.val()));
    assert!(Int8Weight::of_tensor(&plain.weight.val()).is_none());
    let input = random([2, 8], 0, &device);
    assert_close(
        layer.clone().forward(input.clone()),
        layer.forward(input),
        0.0,
    );
}

#[test]
fn other_devices_are_rejected() {
    let weight = Int8Weight::quantize(&TensorData::from([[1.0f32, 2.0]])).unwrap();
    let error = weight.to_tensor::<2>(&cpu().autodiff()).unwrap_err();
    assert!(matches!(error, Int8Error::Device(_)), "{error}");
}

#[test]
#[should_panic(expected = "computed from values in f32")]
fn inputs_in_half_precision_are_rejected() {
    let device = cpu();
    let weight = Int8Weight::quantize(&TensorData::from([[1.0f32, 2.0]])).unwrap();
    let input = Tensor::<2>::ones([1, 2], &device).cast(FloatDType::F16);
    linear(input, weight.to_tensor(&device).unwrap(), None);
}

/// Otherwise burn would use the first output's scale for all of them.
#[test]
#[should_panic(expected = "divide by zero")]
fn burn_does_not_compute_with_them() {
    let device = cpu();
    let weight = Int8Weight::quantize(&TensorData::from([[1.0f32, 2.0], [3.0, 9.0]])).unwrap();
    let weight = weight.to_tensor::<2>(&device).unwrap();
    (weight * 2.0).into_data();
}
