//! Weights in int8: loading with quantisation, files, and files that are rejected.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_checkpoint::{
    Archive, LazyTensor, Weights, is_int8_file, load, load_int8, load_widened, quantize, save_int8,
    write_tensors,
};
use swiftbrush_kernels::{Conv2d, Conv2dConfig, Int8Weight, Linear, LinearConfig, is_int8};
use swiftbrush_testing::{cpu, random};

#[derive(Module, Debug)]
struct Network {
    first: Linear,
    conv: Conv2d,
    last: Linear,
}

fn network(device: &Device) -> Network {
    Network {
        first: LinearConfig::new(6, 5).init(device),
        conv: Conv2dConfig::same3x3(3, 4).init(device),
        last: LinearConfig::new(5, 2).init(device),
    }
}

/// Everything but the last layer.
fn rule(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.starts_with("last.")
}

fn values(seed: u64, shape: &[usize]) -> TensorData {
    let count = shape.iter().product();
    let data = random([count], seed, &cpu()).into_data();
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), shape.to_vec(), DType::F32)
}

fn tensors() -> Vec<(&'static str, TensorData)> {
    vec![
        ("first.weight", values(0, &[5, 6])),
        ("first.bias", values(1, &[5])),
        ("conv.weight", values(2, &[4, 3, 3, 3])),
        ("conv.bias", values(3, &[4])),
        (
            "last.weight",
            TensorData::from([[0.5f32, 1.0, 2.0, -4.0, 0.25]; 2]),
        ),
        ("last.bias", values(4, &[2])),
    ]
}

fn write(path: &Path, tensors: &[(&str, TensorData)], layout: Option<&str>) -> Weights {
    let tensors = tensors.iter();
    let tensors = tensors.map(|(name, data)| LazyTensor::ready(*name, data.clone()));
    let metadata = layout.map(|layout| ("quantization".to_owned(), layout.to_owned()));
    let metadata = HashMap::from_iter(metadata);
    write_tensors(path, tensors.collect(), metadata).unwrap();
    Weights::open(path).unwrap()
}

fn codes(network: &Network) -> [Option<TensorData>; 3] {
    let codes = |weight: Option<Int8Weight>| weight.map(|weight| weight.codes().clone());
    [
        codes(Int8Weight::of_tensor(&network.first.weight.val())),
        codes(Int8Weight::of_tensor(&network.conv.weight.val())),
        codes(Int8Weight::of_tensor(&network.last.weight.val())),
    ]
}

#[test]
fn weights_are_quantised_while_loading_as_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let device = cpu();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let narrow = tensors().into_iter();
        let narrow = narrow.map(|(name, data)| (name, data.convert_dtype(dtype)));
        let narrow: Vec<_> = narrow.collect();
        let path = folder.path().join(format!("{dtype:?}.safetensors"));
        let weights = write(&path, &narrow, None);
        let found = load_int8(network(&device), &weights, rule).unwrap();
        let plain = load(network(&device), &weights, Some(DType::F32)).unwrap();
        let later = quantize(plain.clone(), rule, &path).unwrap();
        assert_eq!(codes(&found), codes(&later));
        let expected = Int8Weight::quantize(&plain.conv.weight.val().into_data()).unwrap();
        assert_eq!(codes(&found)[1].as_ref(), Some(expected.codes()));
        assert!(codes(&found)[2].is_none(), "the rule leaves it out");
        let [last, other] = [&found, &plain].map(|network| network.last.weight.val().into_data());
        assert_eq!(last, other);
        assert_eq!(found.first.bias.unwrap().val().dtype(), DType::F32);
    }
}

#[test]
fn files_are_read_as_they_were_written() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let [plain, path] = ["f32", "int8"].map(|name| folder.path().join(name));
    let weights = write(&plain, &tensors(), None);
    let network_int8 = load_int8(network(&device), &weights, rule).unwrap();
    save_int8(&network_int8, &path, HashMap::new(), |_, _| false).unwrap();
    let file = Archive::open(&path).unwrap();
    let names = [
        ("conv.weight", DType::I8),
        ("conv.weight_scale", DType::F32),
        ("first.bias", DType::F32),
        // Exact in f16.
        ("last.weight", DType::F16),
    ];
    for (name, dtype) in names {
        assert_eq!(file.dtype(name).unwrap(), dtype, "{name}");
    }
    assert_eq!(file.shape("conv.weight_scale").unwrap(), [4]);
    let weights = Weights::open(&path).unwrap();
    assert!(is_int8_file(&weights).unwrap());
    let found = load_int8(network(&device), &weights, rule).unwrap();
    assert_eq!(codes(&found), codes(&network_int8));
    let input = random([2, 6], 7, &device);
    let [found, expected] =
        [found, network_int8].map(|n| n.first.forward(input.clone()).into_data());
    assert_eq!(found, expected);
}

#[test]
fn stored_weights_are_widened() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let [plain, path] = ["f32", "stored"].map(|name| folder.path().join(name));
    let mut tensors = tensors();
    tensors[4].1 = values(5, &[2, 5]);
    let network_f32 = load(network(&device), &write(&plain, &tensors, None), None).unwrap();
    let last = |name: &str, _: &[usize]| name == "last.weight";
    save_int8(&network_f32, &path, HashMap::new(), last).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.dtype("last.weight").unwrap(), DType::I8);
    // A matrix nearly exact in f16.
    assert_eq!(weights.dtype("first.weight").unwrap(), DType::F16);
    assert_eq!(weights.dtype("first.bias").unwrap(), DType::F32);
    let expected = Int8Weight::quantize(&tensors[4].1).unwrap().dequantize();
    assert_ne!(expected, tensors[4].1);
    for dtype in [None, Some(DType::F32), Some(DType::F16)] {
        let found = load_widened(network(&device), &weights, dtype).unwrap();
        let dtype = dtype.unwrap_or(DType::F32);
        let (last, first) = (found.last.weight.val(), found.first.weight.val());
        assert_eq!(last.into_data(), expected.clone().convert_dtype(dtype));
        let first_f16 = tensors[0].1.clone().convert_dtype(DType::F16);
        assert_eq!(first.into_data(), first_f16.convert_dtype(dtype));
    }
    // Beside weights that compute in int8.
    let network_int8 = quantize(network_f32, rule, &path).unwrap();
    save_int8(&network_int8, &path, HashMap::new(), last).unwrap();
    let found = load_int8(network(&device), &Weights::open(&path).unwrap(), rule).unwrap();
    assert_eq!(codes(&found), codes(&network_int8));
    assert_eq!(found.last.weight.val().into_data(), expected);
    // A file without int8.
    let found = load_widened(network(&device), &Weights::open(&plain).unwrap(), None).unwrap();
    assert_eq!(found.last.weight.val().into_data(), tensors[4].1);
    let error = load_widened(network(&device), &weights, Some(DType::I32)).unwrap_err();
    assert!(error.to_string().contains("I32"), "{error}");
}

#[test]
fn matrices_outside_the_range_of_f16_stay_in_f32() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let path = folder.path().join("other");
    for (value, dtype) in [
        (0.3, DType::F16),
        (1e5, DType::F32),
        (3e-7, DType::F32),
        (0.0, DType::F16),
    ] {
        let mut network = network(&device);
        network.last.weight = Param::from_tensor(Tensor::full([2, 5], value, &device));
        save_int8(&network, &path, HashMap::new(), |_, _| false).unwrap();
        let found = Archive::open(&path).unwrap().dtype("last.weight").unwrap();
        assert_eq!(found, dtype, "{value}");
    }
}

#[test]
fn a_stored_weight_must_be_finite() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let path = folder.path().join("stored");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut network = network(&device);
        let weight = Tensor::<2>::full([2, 5], bad, &device);
        network.last.weight = Param::from_tensor(weight);
        for is_int8 in [true, false] {
            let is_stored = |name: &str, _: &[usize]| is_int8 && name == "last.weight";
            let error = save_int8(&network, &path, HashMap::new(), is_stored).unwrap_err();
            assert!(error.to_string().contains("last.weight"), "{error}");
            assert!(!path.exists());
        }
    }
}

/// An int8 file whose tensors are changed by `edit`.
fn edited(folder: &Path, edit: impl Fn(&mut Vec<(&str, TensorData)>)) -> (PathBuf, Weights) {
    let device = cpu();
    let [plain, path] = ["f32", "edited"].map(|name| folder.join(name));
    let weights = write(&plain, &tensors(), None);
    let network = load_int8(network(&device), &weights, rule).unwrap();
    save_int8(&network, &path, HashMap::new(), |_, _| false).unwrap();
    let file = Archive::open(&path).unwrap();
    let names = file.names();
    let mut tensors = names
        .iter()
        .map(|name| (name.as_str(), file.read(name).unwrap()));
    let mut tensors: Vec<_> = tensors
        .by_ref()
        .map(|(name, data)| (name, data.clone()))
        .collect();
    edit(&mut tensors);
    let path = folder.join("edited again");
    let weights = write(&path, &tensors, Some("int8-per-output-v1"));
    (path, weights)
}

#[test]
fn mixtures_are_rejected_by_name() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let folder = folder.path();
    let rejected = |weights: &Weights, expected: &str| {
        let error = load_int8(network(&device), weights, rule)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    };
    let i8 = |shape: [usize; 2]| TensorData::new(vec![1i8; shape.iter().product()], shape);
    let replace = |name: &'static str, data: TensorData| {
        edited(folder, move |tensors| {
            let found = tensors.iter_mut().find(|(found, _)| *found == name);
            found.unwrap().1 = data.clone();
        })
    };
    let remove = |name: &'static str| {
        edited(folder, |tensors| {
            tensors.retain(|(found, _)| *found != name);
        })
    };
    rejected(
        &remove("first.weight_scale").1,
        "no tensor first.weight_scale",
    );
    rejected(
        &replace("first.weight", values(0, &[5, 6])).1,
        "first.weight is in F32; expected I8",
    );
    rejected(
        &replace("last.weight", i8([2, 5])).1,
        "no tensor last.weight_scale",
    );
    rejected(
        &replace("first.weight", i8([5, 7])).1,
        "first.weight (expected [5, 6], found [5, 7])",
    );
    rejected(
        &replace("first.weight_scale", values(0, &[4])).1,
        "expected 5 scales",
    );
    let (path, _) = replace("first.weight", TensorData::new(vec![-128i8; 30], [5, 6]));
    rejected(&Weights::open(path).unwrap(), "code at index 0 is -128");
    let extra = edited(folder, |tensors| {
        tensors.push(("last.weight_scale", values(0, &[2])));
    });
    rejected(&extra.1, "1 unused: last.weight_scale");

    let path = folder.join("other");
    rejected(
        &write(&path, &tensors(), Some("nf4")),
        "unknown layout quantization = \"nf4\"",
    );
    let unmarked = [
        ("first.weight", i8([5, 6])),
        ("conv.weight_scale", values(0, &[4])),
    ];
    rejected(
        &write(&path, &unmarked, None),
        "conv.weight_scale, first.weight",
    );
    let mut bad = tensors();
    bad[0].1 = TensorData::new(vec![f32::NAN; 30], [5, 6]);
    rejected(
        &write(&path, &bad, None),
        "1 with a NaN or an infinity: first.weight",
    );
}

#[test]
fn int8_is_not_loaded_as_something_else_nor_on_other_devices() {
    let (folder, device) = (tempfile::tempdir().unwrap(), cpu());
    let (_, weights) = edited(folder.path(), |_| {});
    for dtype in [None, Some(DType::F32), Some(DType::F16)] {
        let error = load(network(&device), &weights, dtype)
            .unwrap_err()
            .to_string();
        assert!(error.contains("in int8"), "{error}");
    }
    let autodiff = cpu().autodiff();
    let error = load_int8(network(&autodiff), &weights, rule)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("first.weight: weights in int8 are not supported"),
        "{error}"
    );
    let plain = network(&autodiff);
    let error = quantize(plain, rule, folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("first.weight"), "{error}");
}

/// Neither codes in place, nor reordered or widened ones keep the file in memory until they are used.
#[cfg(target_os = "linux")]
#[test]
fn loaded_weights_are_not_resident() {
    let device = cpu();
    let large = Network {
        first: LinearConfig::new(1024, 1024).init(&device),
        conv: Conv2dConfig::same3x3(384, 384).init(&device),
        last: LinearConfig::new(1024, 1024).init(&device),
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let written = quantize(large.clone(), rule, &path).unwrap();
    let stored = |name: &str, _: &[usize]| name == "last.weight";
    save_int8(&written, &path, HashMap::new(), stored).unwrap();
    let weights = Weights::open(&path).unwrap();
    let resident = || {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = maps.split(path.to_str().unwrap()).nth(1).unwrap();
        let mut lines = of_file.lines();
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let loaded = load_int8(large.clone(), &weights, rule).unwrap();
    // Each weight has at least 1024 KiB of codes. Reading the scales maps some pages around them.
    let kib = resident();
    assert!(kib < 768, "{kib} KiB");
    assert_eq!(codes(&loaded), codes(&written));
}

#[test]
fn a_parameter_is_quantised_once() {
    let device = cpu();
    let once = quantize(network(&device), rule, Path::new("random")).unwrap();
    let twice = quantize(once.clone(), rule, Path::new("random")).unwrap();
    assert_eq!(codes(&once), codes(&twice));
    let weight: Param<Tensor<2>> = twice.first.weight;
    assert!(is_int8(&weight.val()));
}
