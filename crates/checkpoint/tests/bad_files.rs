//! Damaged, hostile and mismatched files, each with one clear error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::json;
use swiftbrush_checkpoint::{
    Archive, Error, LazyTensor, Weights, load, named_tensors, read_config, save, write_atomically,
    write_tensors,
};
use swiftbrush_testing::device;

#[derive(Module, Debug)]
struct Pair {
    first: Param<Tensor<2>>,
    second: Param<Tensor<1>>,
}

fn pair(device: &Device) -> Pair {
    Pair {
        first: Param::from_tensor(Tensor::zeros([2, 3], device)),
        second: Param::from_tensor(Tensor::zeros([4], device)),
    }
}

fn ones(shape: &[usize]) -> TensorData {
    TensorData::new(vec![1.0f32; shape.iter().product()], shape.to_vec())
}

fn file(folder: &Path, tensors: &[(&str, TensorData)]) -> PathBuf {
    let path = folder.join("weights.safetensors");
    let tensors = tensors
        .iter()
        .map(|(name, data)| LazyTensor::ready(*name, data.clone()));
    write_tensors(&path, tensors.collect(), HashMap::new()).unwrap();
    path
}

fn try_load(path: &Path) -> Result<Pair, Error> {
    load(pair(&device()), &Archive::open(path)?.into(), None)
}

#[test]
fn a_module_is_loaded_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [("first", ones(&[2, 3])), ("second", ones(&[4]))];
    let module = try_load(&file(folder.path(), &tensors)).unwrap();
    assert_eq!(named_tensors(&module)["first"], ones(&[2, 3]));
    let path = folder.path().join("again.safetensors");
    save(
        &module,
        &path,
        DType::F16,
        HashMap::from([("note".into(), "hello".into())]),
    )
    .unwrap();
    let archive = Archive::open(&path).unwrap();
    assert_eq!(archive.dtype("first").unwrap(), DType::F16);
    assert_eq!(archive.metadata()["note"], "hello");
    let module = load(pair(&device()), &archive.into(), Some(DType::F32)).unwrap();
    assert_eq!(named_tensors(&module)["second"], ones(&[4]));
}

#[test]
fn all_mismatches_are_in_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        &[("first", ones(&[3, 2])), ("third", ones(&[1]))],
    );
    let error = try_load(&path).unwrap_err().to_string();
    for part in [
        "weights.safetensors",
        "1 missing: second",
        "1 unused: third",
        "first (expected [2, 3], found [3, 2])",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn nan_and_infinity_are_errors_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let second = TensorData::new(vec![0.0, bad, 0.0, 0.0], [4]);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let second = second.clone().convert_dtype(dtype);
            let path = file(
                folder.path(),
                &[("first", ones(&[2, 3])), ("second", second)],
            );
            let error = try_load(&path).unwrap_err().to_string();
            assert!(error.contains("a NaN or an infinity: second"), "{error}");
        }
    }
}

#[test]
fn values_beyond_the_element_type_are_errors_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let second = TensorData::new(vec![0.0f32, 70_000.0, 0.0, 0.0], [4]);
    let path = file(
        folder.path(),
        &[("first", ones(&[2, 3])), ("second", second)],
    );
    let weights = Weights::open(&path).unwrap();
    let error = load(pair(&device()), &weights, Some(DType::F16)).unwrap_err();
    let expected = "1 with values beyond the range of the element type to load: second (F16)";
    assert!(error.to_string().contains(expected), "{error}");
    load(pair(&device()), &weights, Some(DType::F32)).unwrap();
}

/// Every truncation of a valid file, and every false header, is an error and not a panic.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        &[("first", ones(&[2, 3])), ("second", ones(&[4]))],
    );
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = Archive::open(&path)
            .expect_err("the file is damaged")
            .to_string();
        assert!(error.contains("weights.safetensors"), "{error}");
    };
    for len in 0..whole.len() {
        refused(&whole[..len]);
    }
    refused(&[&whole[..], &[0]].concat());
    let header = |json: &str, data: &[u8]| {
        [
            &(json.len() as u64).to_le_bytes()[..],
            json.as_bytes(),
            data,
        ]
        .concat()
    };
    refused(&[&u64::MAX.to_le_bytes()[..], &whole[8..]].concat());
    refused(&[&99_999_999u64.to_le_bytes()[..], &whole[8..]].concat());
    refused(&header("not json", &[]));
    refused(&header(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        &[0; 4],
    ));
    refused(&header(
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
        &[0; 8],
    ));
    refused(&header(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        &[0; 4],
    ));
    refused(&header(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
        &[0; 6],
    ));
    let absent = Archive::open(folder.path().join("absent")).unwrap_err();
    let absent = absent.to_string();
    assert!(
        absent.contains("absent: ") && absent.contains("No such file"),
        "the cause is part of the message: {absent}"
    );
    assert!(Archive::open(folder.path()).is_err());
}

#[test]
fn other_kinds_of_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (contents, kind) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 134\n"[..],
            "Git LFS",
        ),
        (
            b"<!DOCTYPE html><html><body>Sign in</body></html>",
            "web page",
        ),
        (b"\n<html>", "web page"),
        (b"GGUF\x03\0\0\0\x01\x02\x03\x04", "GGUF"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "gzip"),
        (b"{\"weight_map\": {}}", "JSON"),
        (b"# SD-Turbo\n\nA model card.\n", "text file"),
    ] {
        std::fs::write(&path, contents).unwrap();
        for error in [
            Archive::open(&path).unwrap_err(),
            Weights::open(&path).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(
                error.contains(kind) && error.contains("model.safetensors"),
                "{error}"
            );
        }
    }
    let error = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a folder"), "{error}");
}

/// Types that burn lacks are neither dropped nor guessed.
#[test]
fn unsupported_element_types_are_errors_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"first":{"dtype":"F8_E8M0","shape":[2,3],"data_offsets":[0,6]},"second":{"dtype":"C64","shape":[1],"data_offsets":[6,14]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length[..], header.as_bytes(), &[0; 14]].concat()).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.names().count(), 2);
    for (name, found) in [("first", "F8_E8M0"), ("second", "C64")] {
        for error in [
            weights.read(name).unwrap_err(),
            weights.dtype(name).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains(name) && error.contains(found), "{error}");
        }
    }
    let error = load(pair(&device()), &weights, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tensor first") && error.contains("F8_E8M0"),
        "{error}"
    );
}

#[test]
fn parameters_are_floating_point_and_buffers_are_ignored_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let integers = TensorData::new(vec![1i64; 4], [4]);
    let path = file(
        folder.path(),
        &[("first", ones(&[2, 3])), ("second", integers.clone())],
    );
    let error = try_load(&path).unwrap_err().to_string();
    assert!(
        error.contains("without floating-point values: second (I64)"),
        "{error}"
    );
    let nan = TensorData::new(vec![f32::NAN; 2], [2]).convert_dtype(DType::F16);
    let whole = [("first", ones(&[2, 3])), ("second", ones(&[4]))];
    for ids in [nan, integers.clone()] {
        for name in ["position_ids", "a.position_ids", "b.num_batches_tracked"] {
            let path = file(
                folder.path(),
                &[&whole[..], &[(name, ids.clone())]].concat(),
            );
            try_load(&path).unwrap();
        }
    }
    let path = file(
        folder.path(),
        &[&whole[..], &[("count", integers)]].concat(),
    );
    let error = try_load(&path).unwrap_err().to_string();
    assert!(
        error.contains("1 unused: count"),
        "integers are not ignored: {error}"
    );
}

#[test]
fn a_module_with_a_nan_or_beyond_the_element_type_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut module = pair(&device());
    module.second = Param::from_tensor(Tensor::full([4], 1e6, &device()));
    save(&module, &path, DType::F32, HashMap::new()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = save(&module, &path, DType::F16, HashMap::new()).unwrap_err();
    assert!(error.to_string().contains("tensor second"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let twice = ["a", "a"].map(|name| LazyTensor::ready(name, ones(&[1])));
    let error = write_tensors(&path, twice.into(), HashMap::new()).unwrap_err();
    assert!(error.to_string().contains("two tensors named a"), "{error}");
}

#[derive(Module, Debug)]
struct Tower {
    encoder: Stack,
}

#[derive(Module, Debug)]
struct Stack {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    mlp: Pair,
}

#[test]
fn layers_beyond_those_of_a_transformer_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let tower = || Tower {
        encoder: Stack {
            layers: vec![Layer {
                mlp: pair(&device()),
            }],
        },
    };
    let layer = |index: usize| {
        let names = ["first", "second"].map(|name| format!("encoder.layers.{index}.mlp.{name}"));
        names.into_iter().zip([ones(&[2, 3]), ones(&[4])])
    };
    let tensors: Vec<_> = (0..3).flat_map(layer).collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, data)| (name.as_str(), data.clone()))
        .collect();
    let load = |tensors: &[(&str, TensorData)]| {
        let path = file(folder.path(), tensors);
        load(tower(), &Weights::open(path).unwrap(), None)
    };
    load(&tensors).unwrap();
    let error = load(&tensors[2..]).unwrap_err().to_string();
    assert!(
        error.contains("2 missing: encoder.layers.0.mlp.first"),
        "{error}"
    );
    let other = [
        &tensors[..2],
        &[("encoder.layers.1.conv.weight", ones(&[1]))],
    ]
    .concat();
    let error = load(&other).unwrap_err().to_string();
    assert!(
        error.contains("1 unused: encoder.layers.1.conv.weight"),
        "{error}"
    );
}

#[test]
fn an_interrupted_write_leaves_the_old_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    write_atomically(&path, |file| file.write_all(b"old")).unwrap();
    let error = write_atomically(&path, |file| {
        file.write_all(b"half of the new")?;
        Err(std::io::Error::other("the disk is full"))
    });
    assert!(matches!(error, Err(Error::Io { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing else is left behind"
    );
    let below_a_file = path.join("below");
    assert!(
        write_atomically(&below_a_file, |_| Ok(()))
            .unwrap_err()
            .to_string()
            .contains("below")
    );
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    width: usize,
}

#[test]
fn unsupported_options_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let accepted = [("act_fn", json!("silu")), ("factor", json!(1))];
        read_config(&path, &Config::default(), &accepted)
    };
    let passes = r#"{"width": 3, "act_fn": "silu", "factor": 1.0, "_class_name": "X", "class_embed_type": null}"#;
    assert_eq!(read(passes).unwrap(), Config { width: 3 });
    assert_eq!(read(r#"{"width": 3.0}"#).unwrap(), Config { width: 3 });
    let long = format!(r#"{{"act_fn": {:?}}}"#, "x".repeat(9000));
    assert!(read(&long).unwrap_err().to_string().len() < 300);
    for (text, named) in [
        (r#"{"act_fn": "relu"}"#, "act_fn"),
        (r#"{"new_option": 4}"#, "new_option"),
        (r#"{"width": "wide"}"#, "`width` = \"wide\""),
        (r#"{"width": null}"#, "`width` = null"),
        (r#"{"width": 2.5}"#, "`width` = 2.5"),
        ("[]", "config.json"),
        ("", "config.json"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn weights_are_not_saved_as_integers() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), &[("kept", ones(&[1]))]);
    let before = std::fs::read(&path).unwrap();
    let error = save(&pair(&device()), &path, DType::I32, HashMap::new()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("cannot save weights as I32"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_configuration_of_another_class_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |class: &str| {
        std::fs::write(
            &path,
            format!(r#"{{"_class_name": "{class}", "other": 1}}"#),
        )
        .unwrap();
        let accepted = [("_class_name", json!("Mine"))];
        read_config::<HashMap<String, i64>>(
            &path,
            &HashMap::from([("other".to_owned(), 0)]),
            &accepted,
        )
    };
    assert_eq!(read("Mine").unwrap()["other"], 1);
    let error = read("Yours").unwrap_err().to_string();
    assert!(
        error.contains("expected the configuration of Mine, found Yours"),
        "{error}"
    );
}
