//! The converter between layouts: what goes in comes out, and what is not understood is an error with its name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use proptest::prelude::*;
use swiftbrush_checkpoint::{LazyTensor, write_json, write_tensors};
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

/// α/rank · B·A, row by row, in f64.
fn update(adapter: &Adapter) -> Vec<f64> {
    let (up, down): (Vec<f64>, Vec<f64>) =
        (adapter.up.iter().collect(), adapter.down.iter().collect());
    let rank = adapter.rank();
    let inputs = down.len() / rank;
    up.chunks(rank)
        .flat_map(|row| (0..inputs).map(move |input| (row, input)))
        .map(|(row, input)| {
            let products = row
                .iter()
                .enumerate()
                .map(|(r, up)| up * down[r * inputs + input]);
            adapter.scale() * products.sum::<f64>()
        })
        .collect()
}

fn assert_same(found: &Adapters, expected: &Adapters) -> Result<(), TestCaseError> {
    prop_assert_eq!(
        found.names().collect::<Vec<_>>(),
        expected.names().collect::<Vec<_>>()
    );
    for ((_, found), (module, expected)) in found.iter().zip(expected.iter()) {
        let (found, expected) = (update(found), update(expected));
        let scale = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            // A product with α is rounded to f32 where a layout has no place for α.
            prop_assert!(
                (found - expected).abs() <= 1e-6 * scale.max(1e-3),
                "{}",
                module
            );
        }
    }
    Ok(())
}

fn round_trip(file: &AdapterFile, layouts: &[Layout]) -> Result<AdapterFile, TestCaseError> {
    let folder = tempfile::tempdir().expect("there is room");
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
        let file = AdapterFile { unet, text_encoder };
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
        let file = AdapterFile { unet, text_encoder };
        let again = round_trip(&file, &[Layout::Diffusers, Layout::Kohya, Layout::KohyaLdm])?;
        prop_assert_eq!(again, file.clone());
        let unet = AdapterFile { text_encoder: Adapters::default(), ..file };
        prop_assert_eq!(round_trip(&unet, &[Layout::Peft])?, unet);
    }
}

fn write(folder: &Path, tensors: &[(&str, &[usize])]) -> PathBuf {
    let path = folder.join("lora.safetensors");
    let tensors = tensors.iter().map(|(name, shape)| {
        let ones = vec![1.0f32; shape.iter().product()];
        LazyTensor::ready(*name, TensorData::new(ones, shape.to_vec()))
    });
    write_tensors(&path, tensors.collect(), HashMap::new()).expect("there is room");
    path
}

fn error(tensors: &[(&str, &[usize])]) -> String {
    let folder = tempfile::tempdir().expect("there is room");
    let path = write(folder.path(), tensors);
    let error = AdapterFile::open(&path).expect_err("it is not understood");
    assert!(error.to_string().contains("lora.safetensors"), "{error}");
    error.to_string()
}

#[test]
fn what_is_not_understood_is_named() {
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

#[test]
fn infinite_factors_and_configurations_that_cannot_be_followed_are_refused() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("lora.safetensors");
    let ready = |name: &str, value: f32| {
        let data = TensorData::new(vec![value; 4], [2, 2]).convert_dtype(DType::F16);
        LazyTensor::ready(format!("base_model.model.conv_in.{name}.weight"), data)
    };
    let write = |up: f32| {
        let tensors = vec![ready("lora_A", 1.0), ready("lora_B", up)];
        write_tensors(&path, tensors, HashMap::new()).expect("there is room");
    };
    write(f32::INFINITY);
    let error = AdapterFile::open(&path)
        .expect_err("it is infinite")
        .to_string();
    assert!(
        error.contains("conv_in") && error.contains("infinity"),
        "{error}"
    );
    write(1.0);
    for (config, named) in [
        (serde_json::json!({"use_dora": true}), "use_dora"),
        (
            serde_json::json!({"alpha_pattern": {"(": 2}}),
            "alpha_pattern",
        ),
    ] {
        write_json(&folder.path().join("adapter_config.json"), &config).expect("there is room");
        let error = AdapterFile::open(&path)
            .expect_err("it cannot be followed")
            .to_string();
        assert!(error.contains(named), "{error}");
    }
}
