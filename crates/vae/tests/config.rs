//! Values in `config.json` that diffusers accepts.

use serde_json::{Value, json};
use swiftbrush_checkpoint::{Error, Model};
use swiftbrush_vae::AutoencoderKlConfig;

/// Reads a model folder with the tiny configuration and one more option.
fn with(name: &str, value: Value) -> Result<AutoencoderKlConfig, Error> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::to_value(AutoencoderKlConfig::tiny()).unwrap();
    config[name] = value;
    std::fs::create_dir(folder.path().join("vae")).unwrap();
    std::fs::write(folder.path().join("vae/config.json"), config.to_string()).unwrap();
    AutoencoderKlConfig::from_model(&Model::open(folder.path())?, "vae")
}

#[test]
fn uniform_lists_and_neutral_values_are_those_of_the_scalar() {
    for (name, value) in [
        ("sample_size", json!([16, 16])),
        ("shift_factor", json!(0.0)),
        ("shift_factor", json!(null)),
        ("latents_mean", json!(null)),
        ("_notes", json!("by hand")),
    ] {
        let found = with(name, value.clone()).unwrap();
        assert_eq!(found, AutoencoderKlConfig::tiny(), "{name} = {value}");
    }
}

#[test]
fn values_that_differ_are_errors() {
    for (name, value) in [
        ("sample_size", json!([16, 32])),
        ("shift_factor", json!(0.06)),
        ("latents_mean", json!([0.1, 0.1, 0.1, 0.1])),
        ("use_quant_conv", json!(false)),
    ] {
        let error = with(name, value.clone()).unwrap_err().to_string();
        assert!(error.contains(name), "{name} = {value}: {error}");
    }
}
