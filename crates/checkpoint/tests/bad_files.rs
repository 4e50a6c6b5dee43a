//! Damaged, hostile and ill-fitting files: one clear error each, and nothing lost.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::json;
use swiftbrush_checkpoint::{
    Archive, Error, LazyTensor, load, named_tensors, read_config, save, write_atomically,
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
fn what_fits_loads_and_saves_again() {
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
fn all_that_does_not_fit_is_in_one_error() {
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
fn nan_and_infinity_are_refused_by_name() {
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

/// Every truncation of a valid file, and lies in its header, are refused without a panic.
#[test]
fn damaged_files_are_refused() {
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
    assert!(
        Archive::open(folder.path().join("absent"))
            .unwrap_err()
            .to_string()
            .contains("absent")
    );
    assert!(Archive::open(folder.path()).is_err());
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
fn options_that_are_not_supported_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let accepted = [("act_fn", json!("silu")), ("factor", json!(1))];
        read_config(&path, &Config::default(), &accepted)
    };
    let passes = r#"{"width": 3, "act_fn": "silu", "factor": 1.0, "_class_name": "X", "class_embed_type": null}"#;
    assert_eq!(read(passes).unwrap(), Config { width: 3 });
    for (text, named) in [
        (r#"{"act_fn": "relu"}"#, "act_fn"),
        (r#"{"new_option": 4}"#, "new_option"),
        (r#"{"width": "wide"}"#, "config.json"),
        ("[]", "config.json"),
        ("", "config.json"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
