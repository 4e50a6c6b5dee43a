//! Values in `config.json` that diffusers accepts.

use serde_json::{Value, json};
use swiftbrush_checkpoint::{Error, Model};
use swiftbrush_unet::UNetConfig;

/// Reads a model folder with the tiny configuration and one more option.
fn with(name: &str, value: Value) -> Result<UNetConfig, Error> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::to_value(UNetConfig::tiny()).unwrap();
    config[name] = value;
    std::fs::create_dir(folder.path().join("unet")).unwrap();
    let path = folder.path().join("unet/config.json");
    std::fs::write(path, config.to_string()).unwrap();
    UNetConfig::from_model(&Model::open(folder.path())?, "unet")
}

#[test]
fn uniform_lists_and_neutral_values_are_those_of_the_scalar() {
    for (name, value) in [
        ("sample_size", json!([8, 8])),
        ("cross_attention_dim", json!([12, 12])),
        ("transformer_layers_per_block", json!([1, 1])),
        ("only_cross_attention", json!([false, false])),
        ("only_cross_attention", json!(null)),
        ("class_embed_type", json!(null)),
        ("_notes", json!({"trained": "by hand"})),
        ("optimization_step", json!(100)),
        ("use_ema_warmup", json!(false)),
        ("dtype", json!("float16")),
        ("freq_shift", json!(0)),
        ("norm_num_groups", json!(4.0)),
    ] {
        assert_eq!(
            with(name, value.clone()).unwrap(),
            UNetConfig::tiny(),
            "{name} = {value}"
        );
    }
    let default = with("sample_size", json!(null)).unwrap();
    assert_eq!(default.sample_size, UNetConfig::default().sample_size);
}

#[test]
fn values_that_differ_are_errors() {
    for (name, value) in [
        ("sample_size", json!([8, 16])),
        ("cross_attention_dim", json!([12, 16])),
        ("transformer_layers_per_block", json!([1, 2])),
        ("only_cross_attention", json!([true, false])),
        ("num_class_embeds", json!(10)),
    ] {
        let error = with(name, value.clone()).unwrap_err().to_string();
        assert!(error.contains(name), "{name} = {value}: {error}");
    }
}

#[test]
fn values_of_a_wrong_type_say_what_is_expected() {
    for value in [json!(null), json!("8"), json!([5, "10"])] {
        let error = with("attention_head_dim", value.clone())
            .unwrap_err()
            .to_string();
        let found = format!("`attention_head_dim` = {value}: expected a whole number");
        assert!(error.contains(&found), "{error}");
    }
}
