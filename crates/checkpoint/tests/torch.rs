//! `torch.save` files, written by `golden/make_torch.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use swiftbrush_checkpoint::Weights;

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

fn open(name: &str) -> Weights {
    Weights::open(here(&format!("torch/{name}.ckpt"))).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn tensors_are_those_of_pytorch_whatever_else_is_saved() {
    let expected = Weights::open(here("torch.safetensors")).unwrap();
    for name in [
        "plain",
        "lightning",
        "beside",
        "strided",
        "offsets",
        "parameters",
        "plain-legacy",
        "lightning-legacy",
        "beside-legacy",
        "strided-legacy",
        "offsets-legacy",
        "parameters-legacy",
        "lightning-protocol4",
    ] {
        let found = open(name);
        let names = |weights: &Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{name}");
        for tensor in expected.names() {
            let expected = expected.read(tensor).unwrap();
            assert_eq!(found.read(tensor).unwrap(), expected, "{name}: {tensor}");
        }
    }
}

#[test]
fn a_whole_module_is_read_as_its_state_dict() {
    let module = open("module");
    let names: Vec<_> = module.names().collect();
    for name in [
        "conv.weight",
        "conv.bias",
        "norm.running_mean",
        "tied.weight",
    ] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert_eq!(module.shape("conv.weight"), Some(&[3, 2, 3, 3][..]));
}

#[test]
fn eight_bit_floats_and_unsigned_integers_are_read() {
    let weights = open("float8");
    let values = |name: &str| {
        weights
            .read(name)
            .unwrap()
            .iter::<f32>()
            .collect::<Vec<_>>()
    };
    assert_eq!(values("e4m3"), [1.0, -1.5, 448.0]);
    assert_eq!(values("e5m2"), [2.0, 0.25]);
    assert_eq!(weights.dtype("e5m2").unwrap(), DType::F16);
    assert_eq!(
        weights.read("u16").unwrap(),
        TensorData::from([1u16, 65535])
    );
    assert_eq!(weights.notes().len(), 2, "{:?}", weights.notes());
}

#[test]
fn unsupported_tensors_are_errors_by_name() {
    let complex = open("complex");
    let error = complex.read("complex").unwrap_err().to_string();
    assert!(
        error.contains("complex64") && error.contains("complex.ckpt"),
        "{error}"
    );
    complex.read("fine").unwrap();
    for (name, reason) in [
        ("sparse", "sparse is of an unsupported kind"),
        ("nothing", "without tensors"),
    ] {
        let error = Weights::open(here(&format!("torch/{name}.ckpt"))).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// Truncations are errors, not panics.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.ckpt");
    for name in ["offsets", "offsets-legacy"] {
        let whole = std::fs::read(here(&format!("torch/{name}.ckpt"))).unwrap();
        for len in (8..whole.len()).step_by(5) {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = match Weights::open(&path) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{len} of {} bytes of {name} were taken", whole.len()),
            };
            assert!(error.contains("model.ckpt"), "{error}");
        }
    }
}
