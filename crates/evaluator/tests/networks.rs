//! Networks compared with pytorch-fid, torch-fidelity, clean-fid, efficientnet_lite_pytorch and open_clip (`golden/make.py`), with
//! the same random weights, drawn from PyTorch's generator on both sides.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use swiftbrush_checkpoint::{LazyTensor, write_tensors};
use swiftbrush_evaluator::{Error, FeatureNetwork, open};
use swiftbrush_testing::{Golden, assert_close, device};
use swiftbrush_torch_noise::CpuGenerator;

fn golden() -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "networks")
}

fn pictures(golden: &Golden) -> Vec<RgbImage> {
    let picture = |index: usize| {
        let data = golden.data(&format!("picture.{index}"));
        let (height, width) = (data.shape()[0] as u32, data.shape()[1] as u32);
        RgbImage::from_raw(width, height, data.as_bytes().to_vec()).unwrap()
    };
    vec![picture(0), picture(1)]
}

/// The weights that `make.py` draws for a network, as a file.
fn weights(shapes: &str, folder: &Path) -> PathBuf {
    let mut shapes: BTreeMap<String, Vec<usize>> = shapes
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape = shape.split(',').map(|size| size.parse().unwrap());
            (name.to_owned(), shape.collect())
        })
        .collect();
    let scale = shapes.remove("logit_scale").map(|_| {
        let scale = TensorData::new(vec![2.6592f32], [1]);
        LazyTensor::ready("logit_scale".to_owned(), scale)
    });
    let tensors = shapes.into_iter().enumerate().map(|(seed, (name, shape))| {
        let count = shape.iter().product();
        let fan: usize = shape[1..].iter().product();
        let values = CpuGenerator::new(seed as u64).randn(count);
        let value = |normal: f32| match shape.len() {
            _ if name.ends_with("running_var") => normal * normal * 0.5 + 0.5,
            1 => normal * 0.1 + if name.ends_with("weight") { 1.0 } else { 0.0 },
            _ => normal * (2.0 / fan as f64).sqrt() as f32,
        };
        let values: Vec<f32> = values.into_iter().map(value).collect();
        LazyTensor::ready(name.clone(), TensorData::new(values, shape.clone()))
    });
    let path = folder.join("model.safetensors");
    write_tensors(&path, tensors.chain(scale).collect(), HashMap::new()).unwrap();
    path
}

fn features(network: &dyn FeatureNetwork, pictures: &[RgbImage]) -> Tensor<2> {
    let features = network.features(pictures);
    assert_eq!(features.dims(), [pictures.len(), network.width()]);
    features
}

/// The reference tools agree with each other to 1e-4.
const CLOSE: f64 = 1e-5;

#[test]
fn inception_is_that_of_pytorch_fid_torch_fidelity_and_clean_fid() {
    let (golden, device) = (golden(), device());
    let folder = tempfile::tempdir().unwrap();
    let path = weights(include_str!("golden/inception.txt"), folder.path());
    for input in ["pytorch-fid", "torch-fidelity", "clean-fid"] {
        let name = format!("inception/{input}");
        let network = open(&name, &path, &device).unwrap();
        let found = features(network.as_ref(), &pictures(&golden));
        let expected = golden.tensor(&format!("inception.{input}"), &device);
        assert_close(found.clone(), expected, CLOSE);
        if input == "torch-fidelity" {
            let logits = network.logits(found).unwrap();
            assert_close(logits, golden.tensor("inception.logits", &device), CLOSE);
        }
    }
}

#[test]
fn efficientnet_lite0_agrees() {
    /// PyTorch's own f32 result is off by 1.4e-5.
    const CLOSE: f64 = 5e-5;
    let (golden, device) = (golden(), device());
    let folder = tempfile::tempdir().unwrap();
    let path = weights(include_str!("golden/efficientnet-lite0.txt"), folder.path());
    let network = open("efficientnet-lite0", &path, &device).unwrap();
    let found = features(network.as_ref(), &pictures(&golden));
    assert_close(
        found.clone(),
        golden.tensor("efficientnet-lite0", &device),
        CLOSE,
    );
    let expected = golden.tensor("efficientnet-lite0.logits", &device);
    assert_close(network.logits(found).unwrap(), expected, CLOSE);
}

#[test]
fn clip_features_agree_with_open_clip_hpsv2_and_cmmd() {
    let (golden, device) = (golden(), device());
    let folder = tempfile::tempdir().unwrap();
    weights(include_str!("golden/clip.txt"), folder.path());
    std::fs::write(folder.path().join("config.json"), golden.metadata("clip")).unwrap();
    for input in ["crop", "pad", "stretch"] {
        let network = open(&format!("clip/{input}"), folder.path(), &device).unwrap();
        let found = features(network.as_ref(), &pictures(&golden));
        assert_close(
            found,
            golden.tensor(&format!("clip.{input}"), &device),
            CLOSE,
        );
        let texts = ["a red circle!", "two cats"].map(str::to_owned);
        let texts = network.texts(&texts).unwrap();
        assert_close(texts, golden.tensor("clip.texts", &device), CLOSE);
        assert!(network.logits(Tensor::zeros([1, 12], &device)).is_none());
    }
}

#[test]
fn other_weights_and_names_are_rejected() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    // Like torchvision's own Inception: 1000 classes, and an auxiliary classifier.
    let shapes = include_str!("golden/inception.txt");
    let shapes = shapes.replace("fc.bias 1008", "fc.bias 1000");
    let path = weights(&format!("{shapes}AuxLogits.fc.bias 1000\n"), folder.path());
    let error = open("inception/clean-fid", &path, &device).map(drop);
    let error = error.expect_err("it is another network").to_string();
    for part in [
        "fc.bias",
        "1008",
        "1000",
        "auxlogits.fc.bias",
        "model.safetensors",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let error = open("inception", &path, &device).map(drop).unwrap_err();
    assert!(matches!(error, Error::UnknownNetwork { .. }), "{error}");
    assert!(error.to_string().contains("clip/crop"), "{error}");
}
