//! Files in every layout: round trips lose nothing, and unsupported files are errors that name the tensor or option.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use proptest::prelude::*;
use swiftbrush_checkpoint::{LazyTensor, Weights, write_json, write_tensors};
use swiftbrush_lora::{Adapter, AdapterFile, Adapters, Layout};

const LAYOUTS: [Layout; 5] = [
    Layout::Diffusers,
    Layout::DiffusersLora,
    Layout::DiffusersProcessor,
    Layout::Kohya,
    Layout::KohyaLdm,
];

/// Modules of attention, which every layout can name.
const ATTENTION: [&str; 4] = [
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_k",
];
const OTHERS: [&str; 5] = [
    "conv_in",
    "down_blocks.1.resnets.0.conv1",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
];
const TEXT: [&str; 2] = [
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.22.mlp.fc1",
];

fn data(shape: Vec<usize>) -> impl Strategy<Value = TensorData> {
    let count = shape.iter().product::<usize>();
    let values = prop::collection::vec(-2.0f32..2.0, count);
    values.prop_map(move |values| TensorData::new(values, shape.clone()))
}

/// A pair of factors; those of convolutions have a kernel.
fn adapter(is_convolution: bool) -> impl Strategy<Value = Adapter> {
    let kernel = if is_convolution { vec![3, 3] } else { vec![] };
    let ones = if is_convolution { vec![1, 1] } else { vec![] };
    (1usize..4, 1usize..5, 1usize..5, 0.25f32..8.0).prop_flat_map(
        move |(rank, inputs, outputs, alpha)| {
            let down = data([&[rank, inputs], kernel.as_slice()].concat());
            let up = data([&[outputs, rank], ones.as_slice()].concat());
            (up, down).prop_map(move |(up, down)| Adapter {
                up,
                down,
                alpha: f64::from(alpha),
            })
        },
    )
}

fn adapters(modules: &'static [&'static str]) -> impl Strategy<Value = Adapters> {
    let all = modules.iter().map(|module| {
        let is_convolution = module.contains("conv");
        prop::option::of(adapter(is_convolution))
            .prop_map(move |adapter| adapter.map(|adapter| ((*module).to_owned(), adapter)))
    });
    let all: Vec<_> = all.collect();
    all.prop_map(|adapters| adapters.into_iter().flatten().collect())
}

/// An element of α/rank · B·A and the sum of its terms' magnitudes, in f64.
struct Element {
    value: f64,
    magnitude: f64,
}

/// Computes α/rank · B·A in row-major order.
fn update(adapter: &Adapter) -> Vec<Element> {
    let (up, down): (Vec<f64>, Vec<f64>) =
        (adapter.up.iter().collect(), adapter.down.iter().collect());
    let rank = adapter.rank();
    let inputs = down.len() / rank;
    let element = |row: &[f64], input: usize| {
        let terms = row.iter().enumerate();
        let terms = terms.map(|(r, up)| adapter.scale() * up * down[r * inputs + input]);
        let (value, magnitude) = terms.fold((0.0, 0.0), |(value, magnitude), term| {
            (value + term, magnitude + term.abs())
        });
        Element { value, magnitude }
    };
    let rows = up.chunks(rank);
    rows.flat_map(|row| (0..inputs).map(move |input| element(row, input)))
        .collect()
}

/// A layout without a place for α stores α/rank · B, rounded to f32 once.
/// The terms of an element may cancel, so the bound is relative to their magnitudes, not to their sum.
fn assert_same(found: &Adapters, expected: &Adapters) -> Result<(), TestCaseError> {
    prop_assert_eq!(
        found.names().collect::<Vec<_>>(),
        expected.names().collect::<Vec<_>>()
    );
    for ((_, found), (module, expected)) in found.iter().zip(expected.iter()) {
        for (found, expected) in update(found).iter().zip(update(expected)) {
            let error = (found.value - expected.value).abs();
            prop_assert!(
                error <= f64::from(f32::EPSILON) * expected.magnitude,
                "{}",
                module
            );
        }
    }
    Ok(())
}

fn round_trip(file: &AdapterFile, layouts: &[Layout]) -> Result<AdapterFile, TestCaseError> {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("lora.safetensors");
    let mut file = file.clone();
    for layout in layouts {
        file.save(&path, *layout)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        file = AdapterFile::open(&path).map_err(|error| TestCaseError::fail(error.to_string()))?;
    }
    Ok(file)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn attention_survives_any_order_of_layouts(
        unet in adapters(&ATTENTION),
        text_encoder in adapters(&TEXT),
        order in prop::collection::vec(0..LAYOUTS.len(), 1..5),
    ) {
        prop_assume!(!unet.is_empty() || !text_encoder.is_empty());
        let file = AdapterFile::new(unet, text_encoder);
        let order: Vec<_> = order.into_iter().map(|index| LAYOUTS[index]).collect();
        let again = round_trip(&file, &order)?;
        assert_same(&again.unet, &file.unet)?;
        assert_same(&again.text_encoder, &file.text_encoder)?;
    }

    #[test]
    fn layouts_with_alpha_lose_no_bit(
        unet in adapters(&OTHERS),
        text_encoder in adapters(&TEXT),
    ) {
        let file = AdapterFile::new(unet, text_encoder);
        prop_assume!(!file.unet.is_empty());
        let again = round_trip(&file, &[Layout::Diffusers, Layout::Kohya, Layout::KohyaLdm])?;
        prop_assert_eq!(&again, &file);
        let unet = AdapterFile::new(file.unet, Adapters::default());
        prop_assert_eq!(round_trip(&unet, &[Layout::Peft])?, unet);
    }
}

fn write(folder: &Path, tensors: &[(&str, &[usize])]) -> PathBuf {
    let path = folder.join("lora.safetensors");
    let tensors = tensors.iter().map(|(name, shape)| {
        let ones = vec![1.0f32; shape.iter().product()];
        LazyTensor::ready(*name, TensorData::new(ones, shape.to_vec()))
    });
    write_tensors(&path, tensors.collect(), HashMap::new()).expect("a writable folder");
    path
}

fn error(tensors: &[(&str, &[usize])]) -> String {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = write(folder.path(), tensors);
    let error = AdapterFile::open(&path).expect_err("it is not understood");
    assert!(error.to_string().contains("lora.safetensors"), "{error}");
    error.to_string()
}

#[test]
fn unsupported_tensors_are_named() {
    const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let named = |end: &str| format!("{Q}{end}");
    let (down, up) = (named(".lora_down.weight"), named(".lora_up.weight"));
    let pair: [(&str, &[usize]); 2] = [(&down, &[2, 4]), (&up, &[4, 2])];
    let with =
        |name: &'static str, shape: &'static [usize]| error(&[pair[0], pair[1], (name, shape)]);
    let unknown = with(
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        &[2, 4],
    );
    assert!(unknown.contains("double_blocks"), "{unknown}");
    let unknown = with(
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        &[2, 4],
    );
    assert!(unknown.contains("lora_te2"), "{unknown}");
    for (name, kind) in [
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.lora_mid.weight", "Tucker"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA"),
    ] {
        let other = with(name, &[2]);
        assert!(other.contains(kind) && other.contains(name), "{other}");
    }
    let twice = with(
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        &[2, 4],
    );
    assert!(twice.contains("twice"), "{twice}");
    assert!(error(&pair[..1]).contains("one factor is missing"));
    assert!(error(&[(&down, &[2, 4]), (&up, &[4, 3])]).contains("[2, 4] and [4, 3]"));
    assert!(error(&[(&down, &[0, 4]), (&up, &[4, 0])]).contains("[0, 4] and [4, 0]"));
    assert!(error(&[(&down, &[2]), (&up, &[4, 2])]).contains("[2] and [4, 2]"));
    assert!(error(&[(&down, &[2, 4, 3, 3]), (&up, &[4, 2, 3, 3])]).contains("[4, 2, 3, 3]"));
}

const CONV_IN: &str = "base_model.model.conv_in";

/// A file of PEFT with one adapter of rank 2, whose B is `up`.
fn peft(folder: &Path, up: TensorData) -> PathBuf {
    let path = folder.join("adapter_model.safetensors");
    let down = TensorData::new(vec![1.0f32; 4], [2, 2]).convert_dtype(DType::F16);
    let tensors = vec![
        LazyTensor::ready(format!("{CONV_IN}.lora_A.weight"), down),
        LazyTensor::ready(format!("{CONV_IN}.lora_B.weight"), up),
    ];
    write_tensors(&path, tensors, HashMap::new()).expect("a writable folder");
    path
}

fn half(value: f32) -> TensorData {
    TensorData::new(vec![value; 4], [2, 2]).convert_dtype(DType::F16)
}

fn configure(folder: &Path, config: serde_json::Value) {
    write_json(folder.join("adapter_config.json"), &config).expect("a writable folder");
}

#[test]
fn factors_have_to_be_finite_floating_point_numbers() {
    let folder = tempfile::tempdir().expect("a writable folder");
    configure(folder.path(), serde_json::json!({"r": 2, "lora_alpha": 4}));
    let open = |up| AdapterFile::open(peft(folder.path(), up));
    let error = open(half(f32::INFINITY))
        .expect_err("it is infinite")
        .to_string();
    assert!(
        error.contains("conv_in") && error.contains("infinity"),
        "{error}"
    );
    let integers = TensorData::new(vec![1i64; 4], [2, 2]);
    let error = open(integers).expect_err("it holds integers").to_string();
    assert!(
        error.contains("lora_B.weight has the element type I64"),
        "{error}"
    );
    // A boolean of 2, which burn cannot represent.
    let path = peft(folder.path(), half(1.0));
    let bytes = std::fs::read(&path).expect("it was written");
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let header = &text[..text.find("}}").expect("the header ends") + 2];
    let header = header
        .replacen("F16", "BOOL", 2)
        .replace("[8,16]", "[4,8]")
        .replace("[0,8]", "[0,4]");
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [&length[..], header.as_bytes(), &[2; 8]].concat();
    std::fs::write(&path, bytes).expect("a writable folder");
    let error = AdapterFile::open(&path)
        .expect_err("it holds booleans")
        .to_string();
    assert!(error.contains("Bool"), "{error}");
}

#[test]
fn options_of_peft_that_change_the_result_are_named() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = peft(folder.path(), half(1.0));
    let error = AdapterFile::open(&path)
        .expect_err("α is unknown")
        .to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    for (option, named) in [
        (serde_json::json!({"use_dora": true}), "use_dora"),
        (
            serde_json::json!({"alpha_pattern": {"(": 2}}),
            "alpha_pattern",
        ),
        (serde_json::json!({"peft_type": "LOHA"}), "peft_type"),
        (
            serde_json::json!({"init_lora_weights": "pissa"}),
            "init_lora_weights",
        ),
        (
            serde_json::json!({"init_lora_weights": "pissa_niter_16"}),
            "init_lora_weights",
        ),
        (
            serde_json::json!({"init_lora_weights": "olora"}),
            "init_lora_weights",
        ),
        (
            serde_json::json!({"init_lora_weights": "loftq"}),
            "init_lora_weights",
        ),
        (
            serde_json::json!({"init_lora_weights": "corda"}),
            "init_lora_weights",
        ),
        (
            serde_json::json!({"modules_to_save": ["conv_in"]}),
            "modules_to_save",
        ),
        (serde_json::json!({"bias": "lora_only"}), "bias"),
        (serde_json::json!({"lora_bias": true}), "lora_bias"),
        (
            serde_json::json!({"fan_in_fan_out": true}),
            "fan_in_fan_out",
        ),
        (
            serde_json::json!({"layers_to_transform": [1]}),
            "layers_to_transform",
        ),
        (
            serde_json::json!({"layer_replication": [[0, 4]]}),
            "layer_replication",
        ),
        (
            serde_json::json!({"trainable_token_indices": [5]}),
            "trainable_token_indices",
        ),
        (
            serde_json::json!({"target_parameters": ["x"]}),
            "target_parameters",
        ),
        (
            serde_json::json!({"an_option_of_2030": 7}),
            "an_option_of_2030",
        ),
        (
            serde_json::json!({"target_modules": ["to_q"]}),
            "target_modules",
        ),
        (
            serde_json::json!({"target_modules": "down.*"}),
            "target_modules",
        ),
        (
            serde_json::json!({"exclude_modules": ["conv_in"]}),
            "exclude_modules",
        ),
        (
            serde_json::json!({"rank_pattern": {"conv_in": 4}}),
            "rank 4",
        ),
        (serde_json::json!({"r": "two"}), "`r`"),
    ] {
        let mut config = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        if let (Some(config), serde_json::Value::Object(option)) = (config.as_object_mut(), option)
        {
            config.extend(option);
        }
        configure(folder.path(), config);
        let error = AdapterFile::open(&path).expect_err(named).to_string();
        assert!(error.contains(named), "{error}");
        assert!(
            error.contains(&folder.path().display().to_string()),
            "{error}"
        );
    }
    configure(
        folder.path(),
        serde_json::json!({"r": 2, "lora_alpha": 4, "init_lora_weights": "eva", "eva_config": {"rho": 2.0},
            "target_modules": "all-linear", "modules_to_save": [], "an_option_of_2030": null}),
    );
    let file = AdapterFile::open(&path).expect("nothing changes the result");
    assert_eq!(
        file.unet.get("conv_in").map(|adapter| adapter.alpha),
        Some(4.0)
    );
}

#[test]
fn only_files_of_peft_read_its_configuration_and_a_folder_of_them_is_opened() {
    let folder = tempfile::tempdir().expect("a writable folder");
    peft(folder.path(), half(1.0));
    configure(folder.path(), serde_json::json!({"r": 2, "lora_alpha": 32}));
    let in_folder = AdapterFile::open(folder.path()).expect("it is a folder of PEFT");
    assert_eq!(
        in_folder.unet.get("conv_in").map(Adapter::scale),
        Some(16.0)
    );
    let other = write(
        folder.path(),
        &[
            ("unet.conv_in.lora.down.weight", &[4, 2]),
            ("unet.conv_in.lora.up.weight", &[2, 4]),
        ],
    );
    let other = AdapterFile::open(&other).expect("its layout has no α");
    assert_eq!(other.unet.get("conv_in").map(Adapter::scale), Some(1.0));

    let error = other.save(folder.path().join("b.safetensors"), Layout::Peft);
    let error = error
        .expect_err("the configuration is another's")
        .to_string();
    assert!(error.contains("adapter_config.json exists"), "{error}");
    let own = folder.path().join("adapter_model.safetensors");
    other
        .save(&own, Layout::Peft)
        .expect("its own configuration is replaced");
    assert_eq!(AdapterFile::open(&own).expect("it was saved"), other);

    let diffusers = folder.path().join("pytorch_lora_weights.safetensors");
    other
        .save(diffusers, Layout::Diffusers)
        .expect("a writable folder");
    let error = AdapterFile::open(folder.path())
        .expect_err("there are two")
        .to_string();
    assert!(error.contains("name one file"), "{error}");
    let empty = tempfile::tempdir().expect("a writable folder");
    let error = AdapterFile::open(empty.path())
        .expect_err("it is empty")
        .to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn files_without_adapters_or_for_other_models_are_named_as_such() {
    let empty = error(&[]);
    assert!(empty.contains("contains no adapters"), "{empty}");
    let network = error(&[("conv_in.weight", &[2, 2]), ("conv_in.bias", &[2])]);
    assert!(network.contains("a U-Net (conv_in.bias)"), "{network}");
    let names: Vec<_> = (1..250)
        .map(|i| {
            format!("lora_unet_input_blocks_4_1_transformer_blocks_{i}_attn1_to_q.lora_up.weight")
        })
        .collect();
    let tensors: Vec<(&str, &[usize])> = names
        .iter()
        .map(|name| (name.as_str(), &[2, 2][..]))
        .collect();
    let xl = error(&tensors);
    assert!(xl.contains("Stable Diffusion XL") && xl.len() < 400, "{xl}");
    let folder = tempfile::tempdir().expect("a writable folder");
    let saved = AdapterFile::default().save(folder.path().join("x"), Layout::Kohya);
    assert!(saved.is_err(), "an empty file is no file of adapters");
}

#[test]
fn headers_and_element_types_survive_conversion() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("lora.safetensors");
    let flat = "lora_unet_conv_in";
    let tensors = vec![
        LazyTensor::ready(format!("{flat}.lora_down.weight"), half(0.5)),
        LazyTensor::ready(format!("{flat}.lora_up.weight"), half(2.0)),
        LazyTensor::ready(format!("{flat}.alpha"), TensorData::new(vec![1i64], [1])),
    ];
    let header = [("ss_network_dim", "2"), ("sshs_model_hash", "0123")];
    let header = header.map(|(key, value)| (key.to_owned(), value.to_owned()));
    write_tensors(&path, tensors, header.into()).expect("a writable folder");
    let file = AdapterFile::open(&path).expect("it is valid");
    assert_eq!(
        file.unet.get("conv_in").map(|adapter| adapter.alpha),
        Some(1.0)
    );
    for layout in [Layout::Peft, Layout::Diffusers, Layout::Kohya] {
        let path = tempfile::tempdir().expect("a writable folder");
        let path = path.path().join("again.safetensors");
        file.save(&path, layout).expect("a writable folder");
        let weights = Weights::open(&path).expect("it was written");
        assert_eq!(weights.metadata()["ss_network_dim"], "2");
        assert!(!weights.metadata().contains_key("sshs_model_hash"));
        let factors = weights.names().filter(|name| name.ends_with(".weight"));
        for name in factors {
            assert_eq!(
                weights.dtype(name).expect("it exists"),
                DType::F16,
                "{name}"
            );
        }
        assert_eq!(AdapterFile::open(&path).expect("it is valid"), file);
    }
}

#[test]
fn eight_bit_factors_are_widened_and_reported() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("lora.safetensors");
    let header = r#"{"unet.conv_in.lora_A.weight":{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]},"unet.conv_in.lora_B.weight":{"dtype":"F8_E5M2","shape":[2,1],"data_offsets":[2,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    // 1 and −1.5 in E4M3, 2 and 0.25 in E5M2.
    let data = [0x38, 0xbc, 0x40, 0x34];
    std::fs::write(&path, [&length[..], header.as_bytes(), &data].concat())
        .expect("a writable folder");
    let file = AdapterFile::open(&path).expect("it is valid");
    let adapter = file.unet.get("conv_in").expect("it exists");
    assert_eq!(adapter.down.iter::<f32>().collect::<Vec<_>>(), [1.0, -1.5]);
    assert_eq!(adapter.up.iter::<f32>().collect::<Vec<_>>(), [2.0, 0.25]);
    assert_eq!(file.notes.len(), 2, "{:?}", file.notes);
}
