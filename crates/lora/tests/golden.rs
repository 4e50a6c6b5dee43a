//! Parity with PEFT and diffusers; the files are written by `golden/make.py` and `golden/make_peft.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use swiftbrush_checkpoint::{Model, Weights};
use swiftbrush_lora::{
    AdapterFile, Adapters, Error, Layout, LoraConfig, attach, fuse, insert, materialize,
};
use swiftbrush_testing::{F32, Golden, assert_close, assert_values_close, device};
use swiftbrush_unet::UNet;

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

struct Case {
    golden: Golden,
    device: Device,
    unet: UNet,
}

impl Case {
    fn new() -> Self {
        let (golden, device) = (Golden::open(env!("CARGO_MANIFEST_DIR"), "lora"), device());
        let folder = golden.model_folder("unet");
        let unet =
            UNet::from_model(&Model::open(folder.path()).unwrap(), "unet", None, &device).unwrap();
        Self {
            golden,
            device,
            unet,
        }
    }

    fn run(&self, unet: &UNet) -> Tensor<4> {
        let context = self.golden.tensor::<3>("context", &self.device);
        unet.forward(
            self.tensor("latents"),
            self.golden.tensor("timesteps", &self.device),
            context,
        )
    }

    fn tensor(&self, name: &str) -> Tensor<4> {
        self.golden.tensor(name, &self.device)
    }
}

#[test]
fn files_of_peft_and_diffusers_give_their_output_fused_and_inserted() {
    let case = Case::new();
    assert_close(case.run(&case.unet), case.tensor("plain"), F32);
    for file in [
        "pytorch_lora_weights.safetensors",
        "peft/adapter_model.safetensors",
    ] {
        let adapters = AdapterFile::open(here(file)).unwrap().unet;
        let inserted = insert(case.unet.clone(), &adapters).unwrap();
        assert_close(case.run(&inserted), case.tensor("adapted"), F32);
        assert_close(
            case.run(&materialize(inserted)),
            case.tensor("adapted"),
            F32,
        );
        let fused = fuse(case.unet.clone(), &adapters, 1.0).unwrap();
        assert_close(case.run(&fused), case.tensor("adapted"), F32);
        let unfused = fuse(fused, &adapters, -1.0).unwrap();
        assert_close(case.run(&unfused), case.tensor("plain"), F32);
    }
}

#[test]
fn written_files_are_read_back_and_have_the_names_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lora.safetensors");
    let reference = here("pytorch_lora_weights.safetensors");
    let adapters = AdapterFile::open(&reference).unwrap();
    for layout in [Layout::Diffusers, Layout::Peft] {
        adapters.save(&file, layout).unwrap();
        assert_eq!(AdapterFile::open(&file).unwrap(), adapters);
    }
    adapters.save(&file, Layout::Diffusers).unwrap();
    let names = |path: &Path| swiftbrush_checkpoint::Archive::open(path).unwrap().names();
    assert_eq!(names(&file), names(&reference));
}

#[test]
fn an_untrained_adapter_changes_nothing_and_comes_back_from_the_module() {
    let case = Case::new();
    let config = LoraConfig::new(2, 4.0, ["to_q", "attn2.to_v"]);
    let attach = |config: &LoraConfig, seed| attach(case.unet.clone(), config, seed).unwrap();
    let adapted = attach(&config, 7);
    assert_close(case.run(&adapted), case.tensor("plain"), F32);
    let adapters = Adapters::from_module(&adapted, config.alpha);
    // Five transformers with two attentions each: ten to_q, five to_v of cross-attention.
    assert_eq!(adapters.names().count(), 7 * 2 + 7);
    assert_eq!(Adapters::from_module(&attach(&config, 7), 4.0), adapters);
    assert_ne!(Adapters::from_module(&attach(&config, 8), 4.0), adapters);
}

#[test]
fn adapters_without_a_layer_are_named() {
    let case = Case::new();
    let other = swiftbrush_unet::UNetConfig {
        block_out_channels: vec![16, 16],
        ..swiftbrush_unet::UNetConfig::tiny()
    };
    let adapters = AdapterFile::open(here("pytorch_lora_weights.safetensors"))
        .unwrap()
        .unet;
    let error = insert(other.init(&case.device), &adapters)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        "{error}"
    );
    let file = here("lora.safetensors");
    let error = AdapterFile::open(file).unwrap_err().to_string();
    assert!(error.contains("not adapter tensors"), "{error}");
    assert!(error.contains(" more"), "lists are cut: {error}");
    for strength in [f64::NAN, f64::INFINITY] {
        let error = fuse(case.unet.clone(), &adapters, strength).unwrap_err();
        assert!(matches!(error, Error::Strength(_)), "{error}");
    }
    let error =
        swiftbrush_lora::attach(case.unet, &LoraConfig::new(2, 2.0, ["conv_in", "to_z"]), 0);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("conv_in, to_z"), "{error}");
}

/// `golden/make_peft.py` merges each adapter with PEFT.
#[test]
fn options_of_peft_have_the_same_effect_or_are_rejected_by_name() {
    const REFUSED: [(&str, &str); 4] = [
        ("pissa", "init_lora_weights"),
        ("olora", "init_lora_weights"),
        ("dora", "DoRA"),
        ("bias", "lora_B.bias"),
    ];
    let entries = std::fs::read_dir(here("configurations")).unwrap();
    let folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 14);
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        let file = AdapterFile::open(&folder);
        if let Some((_, option)) = refused {
            let error = file.unwrap_err().to_string();
            assert!(error.contains(option), "{name}: {error}");
            continue;
        }
        let adapters = file.unwrap_or_else(|error| panic!("{name}: {error}")).unet;
        let expected = Weights::open(folder.join("expected.safetensors")).unwrap();
        assert_eq!(
            adapters.names().collect::<Vec<_>>(),
            expected.names().collect::<Vec<_>>(),
            "{name}"
        );
        for (module, adapter) in adapters.iter() {
            let matrix = |data: &TensorData| Tensor::<2>::from_data(data.clone(), &device());
            let update = matrix(&adapter.up).matmul(matrix(&adapter.down)) * adapter.scale();
            let expected: Vec<f32> = expected.read(module).unwrap().iter().collect();
            let found: Vec<f32> = update.into_data().iter().collect();
            assert_values_close(&found, &expected, F32);
        }
    }
}
