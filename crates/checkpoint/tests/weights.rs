//! Tensors from one or more files, renamed and reshaped, and the choice among files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use swiftbrush_checkpoint::{Error, LazyTensor, Model, Weights, read_json, write_tensors};

fn counting(shape: &[usize]) -> TensorData {
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
fn tensors_are_split_transposed_and_reshaped_before_they_are_read() {
    let (_folder, mut weights) = open(&[("fused", counting(&[6, 2])), ("vector", counting(&[4]))]);
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
    // Edits that do not fit change nothing.
    weights.transpose("vector");
    weights.reshape("vector", [3]);
    weights.split("vector", &["a", "b", "c"].map(str::to_owned));
    weights.split("none", &["a".to_owned()]);
    assert_eq!(weights.read("vector").unwrap(), counting(&[4]));
    assert!(matches!(
        weights.read("fused"),
        Err(Error::MissingTensor { .. })
    ));
}

#[test]
fn released_tensors_are_read_again() {
    let (_folder, weights) = open(&[("a", counting(&[3000])), ("b", counting(&[2]))]);
    let before = weights.read("a").unwrap();
    weights.release("a");
    weights.release("none");
    assert_eq!(weights.read("a").unwrap(), before);
    assert_eq!(weights.read("b").unwrap(), counting(&[2]));
}

#[test]
fn names_are_changed_but_never_collide() {
    let (_folder, weights) = open(&[
        ("x.a", counting(&[1])),
        ("x.b", counting(&[2])),
        ("y.a", counting(&[3])),
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

/// Some writers do not pad their headers.
#[test]
fn tensors_need_not_be_aligned() {
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
        &[("a", counting(&[1])), ("b", counting(&[2]))],
    );
    write(
        &folder.path().join("2.safetensors"),
        &[("c", counting(&[3]))],
    );
    let whole =
        r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
    let weights = index(folder.path(), whole).unwrap();
    assert_eq!(weights.read("c").unwrap(), counting(&[3]));
    assert_eq!(weights.files().len(), 2);
    // As in diffusers and transformers, unlisted tensors are used, and the last of two wins.
    write(
        &folder.path().join("2.safetensors"),
        &[("a", counting(&[3])), ("c", counting(&[3]))],
    );
    let listed = r#"{"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}"#;
    let weights = index(folder.path(), listed).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(weights.shape("a"), Some(&[3][..]));
    assert!(weights.notes()[0].contains("a is in two shards"));
    for (text, reason) in [
        (
            r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "d": "2.safetensors"}}"#,
            "lack d (listed in 2.safetensors)",
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
        (
            r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#,
            "not the name of a shard",
        ),
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

#[derive(serde::Deserialize)]
struct Selection {
    component: String,
    files: Vec<String>,
    variant: Option<String>,
    taken: String,
}

/// Writes a file with one tensor, or an index with a shard.
fn candidate(folder: &Path, name: &str) {
    let tensor = [("a", counting(&[1]))];
    if name.ends_with(".json") {
        let shard = format!("shard-of-{name}.safetensors");
        write(&folder.join(&shard), &tensor);
        let index = serde_json::json!({"weight_map": {"a": shard}});
        std::fs::write(folder.join(name), index.to_string()).unwrap();
    } else {
        write(&folder.join(name), &tensor);
    }
}

/// `golden/make_selection.py` records the choices of diffusers and transformers.
#[test]
fn the_file_of_a_component_is_that_of_diffusers_and_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/selection.json");
    let cases: Vec<Selection> = read_json(golden).unwrap();
    assert_eq!(cases.len(), 82);
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let component = folder.path().join(&case.component);
        std::fs::create_dir(&component).unwrap();
        for name in &case.files {
            candidate(&component, name);
        }
        let model = Model::open(folder.path()).unwrap();
        let model = match &case.variant {
            Some(variant) => model.with_variant(variant),
            None => model,
        };
        let weights = model.weights(&case.component).unwrap();
        assert_eq!(
            weights.path(),
            component.join(&case.taken),
            "of {:?} as {:?}",
            case.files,
            case.variant
        );
    }
}

/// The configuration, then the name, determines the library that saved a component.
#[test]
fn the_configuration_determines_whose_order_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("encoder");
    std::fs::create_dir(&component).unwrap();
    for name in ["diffusion_pytorch_model.safetensors", "model.safetensors"] {
        candidate(&component, name);
    }
    let taken = |config: &str| {
        std::fs::write(component.join("config.json"), config).unwrap();
        let model = Model::open(folder.path()).unwrap();
        let path = model.weights("encoder").unwrap().path().to_owned();
        path.file_name().unwrap().to_string_lossy().into_owned()
    };
    assert_eq!(taken("{}"), "diffusion_pytorch_model.safetensors");
    assert_eq!(
        taken(r#"{"architectures": ["CLIPTextModel"]}"#),
        "model.safetensors"
    );
    let diffusers = r#"{"_class_name": "UNet2DConditionModel", "model_type": "x"}"#;
    assert_eq!(taken(diffusers), "diffusion_pytorch_model.safetensors");
}

#[test]
fn owned_weights_survive_a_file_changed_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unet/model.safetensors");
    write(&path, &[("a", counting(&[4]))]);
    let model = Model::open(folder.path()).unwrap();
    let owned = model.with_owned_weights().unwrap().weights("unet").unwrap();
    let data = owned.read("a").unwrap();
    let len = std::fs::metadata(&path).unwrap().len() as usize;
    std::fs::write(&path, vec![0xff; len]).unwrap();
    assert_eq!(data, counting(&[4]));
    let single = folder.path().join("single.safetensors");
    write(&single, &[("model.diffusion_model.a", counting(&[1]))]);
    let single = Model::open(&single).unwrap().with_owned_weights().unwrap();
    assert_eq!(
        single.weights("unet").unwrap().read("a").unwrap(),
        counting(&[1])
    );
}

#[test]
fn eight_bit_floats_are_widened_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(
        &path,
        [&length[..], header.as_bytes(), &[0x38, 0xbc]].concat(),
    )
    .unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.dtype("a").unwrap(), DType::F16);
    let values: Vec<f32> = weights.read("a").unwrap().iter().collect();
    assert_eq!(values, [1.0, -1.5]);
    let notes = weights.notes();
    assert!(
        notes[0].contains("1 tensors are stored in F8_E4M3"),
        "{notes:?}"
    );
}

/// Full precision before half, and a variant before both.
#[test]
fn components_come_from_a_variant_or_another_place() {
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
        error.contains("unet has no weights (expected diffusion_pytorch_model.safetensors"),
        "{error}"
    );
    for name in names {
        write(
            &component.join(name),
            &[("a", counting(&[1]).convert_dtype(DType::F16))],
        );
        let expected = match name {
            "diffusion_pytorch_model.fp16.safetensors" => names[0],
            _ => names[1],
        };
        assert_eq!(found(open()), Some(component.join(expected)));
    }
    for (variant, expected) in [("bf16", names[2]), ("fp16", names[0])] {
        let model = open().with_variant(variant);
        assert_eq!(found(model), Some(component.join(expected)), "{variant}");
    }
    let misspelt = open().with_variant("fp61").weights("unet");
    let misspelt = misspelt.unwrap_err().to_string();
    assert!(
        misspelt.contains("variant `fp61`") && misspelt.contains(names[0]),
        "{misspelt}"
    );
    // A component without the variant, next to one that has it.
    let decoder = folder.path().join("vae");
    write(&decoder.join(names[1]), &[("a", counting(&[1]))]);
    let taken = open().with_variant("fp16").weights("vae").unwrap();
    assert_eq!(taken.path(), decoder.join(names[1]));
    assert!(taken.notes().is_empty());
    std::fs::rename(decoder.join(names[1]), decoder.join(names[0])).unwrap();
    let notes = open().weights("vae").unwrap().notes();
    assert!(
        notes[0].contains("no weights in full precision"),
        "{notes:?}"
    );
    let elsewhere = folder.path().join("other.safetensors");
    write(&elsewhere, &[("model.diffusion_model.b", counting(&[1]))]);
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
