//! Tensors of one file or many, under other names and in other shapes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use swiftbrush_checkpoint::{Error, LazyTensor, Model, Weights, write_tensors};

fn numbers(shape: &[usize]) -> TensorData {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
    TensorData::new(values, shape.to_vec())
}

fn write(path: &Path, tensors: &[(&str, TensorData)]) {
    let tensors = tensors
        .iter()
        .map(|(name, data)| LazyTensor::ready(*name, data.clone()));
    write_tensors(path, tensors.collect(), HashMap::new()).unwrap();
}

fn open(tensors: &[(&str, TensorData)]) -> (tempfile::TempDir, Weights) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, tensors);
    let weights = Weights::open(path).unwrap();
    (folder, weights)
}

#[test]
fn tensors_are_cut_transposed_and_reshaped_before_they_are_read() {
    let (_folder, mut weights) = open(&[("fused", numbers(&[6, 2])), ("vector", numbers(&[4]))]);
    weights.split("fused", &["q", "k", "v"].map(str::to_owned));
    weights.transpose("k");
    weights.reshape("v", [1, 2, 2]);
    assert_eq!(
        weights.names().collect::<Vec<_>>(),
        ["k", "q", "v", "vector"]
    );
    assert_eq!(
        weights.read("q").unwrap(),
        TensorData::from([[0.0f32, 1.0], [2.0, 3.0]])
    );
    assert_eq!(
        weights.read("k").unwrap(),
        TensorData::from([[4.0f32, 6.0], [5.0, 7.0]])
    );
    assert_eq!(
        weights.read("v").unwrap(),
        TensorData::from([[[8.0f32, 9.0], [10.0, 11.0]]])
    );
    assert_eq!(weights.shape("v"), Some(&[1, 2, 2][..]));
    // What does not fit is left as it is.
    weights.transpose("vector");
    weights.reshape("vector", [3]);
    weights.split("vector", &["a", "b", "c"].map(str::to_owned));
    weights.split("none", &["a".to_owned()]);
    assert_eq!(weights.read("vector").unwrap(), numbers(&[4]));
    assert!(matches!(
        weights.read("fused"),
        Err(Error::MissingTensor { .. })
    ));
}

#[test]
fn what_is_released_is_read_again() {
    let (_folder, weights) = open(&[("a", numbers(&[3000])), ("b", numbers(&[2]))]);
    let before = weights.read("a").unwrap();
    weights.release("a");
    weights.release("none");
    assert_eq!(weights.read("a").unwrap(), before);
    assert_eq!(weights.read("b").unwrap(), numbers(&[2]));
}

#[test]
fn names_are_changed_but_never_shared() {
    let (_folder, weights) = open(&[
        ("x.a", numbers(&[1])),
        ("x.b", numbers(&[2])),
        ("y.a", numbers(&[3])),
    ]);
    let stripped = weights.strip_prefix("x.");
    assert_eq!(stripped.names().collect::<Vec<_>>(), ["a", "b"]);
    let error = weights.rename(|name| name[2..].to_owned()).unwrap_err();
    assert!(
        error.to_string().contains("one of two tensors for a"),
        "{error}"
    );
    assert!(stripped.clone().and(weights.strip_prefix("y.")).is_err());
    let both = stripped.and(weights.rename(|name| format!("again.{name}")).unwrap());
    assert_eq!(both.unwrap().names().count(), 5);
}

/// The tensors of careless writers lie where no processor looks for numbers.
#[test]
fn an_odd_header_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for spaces in 0..8 {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let header = format!("{header}{}", " ".repeat(spaces));
        let length = (header.len() as u64).to_le_bytes();
        let data = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
        std::fs::write(&path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.read("a").unwrap(), TensorData::from([1.5f32, -2.0]));
    }
}

fn index(folder: &Path, text: &str) -> Result<Weights, Error> {
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, text).unwrap();
    Weights::open(path)
}

#[test]
fn shards_are_one_model_and_their_index_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("1.safetensors"),
        &[("a", numbers(&[1])), ("b", numbers(&[2]))],
    );
    write(
        &folder.path().join("2.safetensors"),
        &[("c", numbers(&[3]))],
    );
    let whole =
        r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
    let weights = index(folder.path(), whole).unwrap();
    assert_eq!(weights.read("c").unwrap(), numbers(&[3]));
    assert_eq!(weights.files().len(), 2);
    for (text, reason) in [
        (
            r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "d": "2.safetensors"}}"#,
            "no tensor d",
        ),
        (
            r#"{"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}"#,
            "does not list b of 1.safetensors",
        ),
        (r#"{"weight_map": {"a": "3.safetensors"}}"#, "3.safetensors"),
        (
            r#"{"weight_map": {"a": "../1.safetensors"}}"#,
            "not the name of a shard",
        ),
        (
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            "not the name of a shard",
        ),
        (r#"{"weight_map": {"a": ".."}}"#, "not the name of a shard"),
        (r#"{"weight_map": 3}"#, "index.json"),
        ("", "index.json"),
    ] {
        let error = index(folder.path(), text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// A pickle that would run a command if it were executed.
#[test]
fn nothing_in_a_pickle_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mark) = (folder.path().join("model.ckpt"), folder.path().join("mark"));
    let command = format!("touch {}", mark.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    std::fs::write(&path, pickle).unwrap();
    let error = Weights::open(&path).unwrap_err().to_string();
    assert!(error.contains("model.ckpt"), "{error}");
    assert!(!mark.exists());
}

/// Full precision before half, safetensors before pickles, and a variant that was asked for before all.
#[test]
fn the_best_file_of_a_component_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("unet");
    std::fs::create_dir(&component).unwrap();
    let names = [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
    ];
    let found = |model: Model| -> Option<PathBuf> { model.weight_files("unet").pop() };
    let open = || Model::open(folder.path()).unwrap();
    assert_eq!(found(open()), None);
    let error = open().weights("unet").unwrap_err().to_string();
    assert!(
        error.contains("unet has no weights (diffusion_pytorch_model.safetensors"),
        "{error}"
    );
    for name in names {
        write(
            &component.join(name),
            &[("a", numbers(&[1]).convert_dtype(DType::F16))],
        );
        let expected = match name {
            "diffusion_pytorch_model.fp16.safetensors" => names[0],
            _ => names[1],
        };
        assert_eq!(found(open()), Some(component.join(expected)));
    }
    for (variant, expected) in [("bf16", names[2]), ("fp16", names[0]), ("ema", names[1])] {
        let model = open().with_variant(variant);
        assert_eq!(found(model), Some(component.join(expected)), "{variant}");
    }
    let elsewhere = folder.path().join("other.safetensors");
    write(&elsewhere, &[("model.diffusion_model.b", numbers(&[1]))]);
    let weights = open()
        .with_component("unet", &elsewhere)
        .weights("unet")
        .unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["b"]);
    let single = Model::open(&elsewhere).unwrap();
    assert!(single.has("unet") && !single.has("vae"));
    let error = single.weights("vae").unwrap_err().to_string();
    assert!(error.contains("first_stage_model."), "{error}");
}
