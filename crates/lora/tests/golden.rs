//! Against PEFT and diffusers: `golden/make.py` writes the files.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use swiftbrush_checkpoint::Model;
use swiftbrush_lora::{
    AdapterFile, Adapters, Layout, LoraConfig, attach, fuse, insert, materialize,
};
use swiftbrush_testing::{F32, Golden, assert_close, device};
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
        let context = self.golden.tensor("context", &self.device);
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
fn files_of_peft_and_diffusers_give_their_output_fused_and_not() {
    let case = Case::new();
    assert_close(case.run(&case.unet), case.tensor("plain"), F32);
    for file in [
        "pytorch_lora_weights.safetensors",
        "peft/adapter_model.safetensors",
    ] {
        let adapters = AdapterFile::open(&here(file)).unwrap().unet;
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
fn what_is_written_is_read_back_and_has_the_names_of_the_reference() {
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
    let adapted = attach(case.unet.clone(), &config, 7);
    assert_close(case.run(&adapted), case.tensor("plain"), F32);
    let adapters = Adapters::from_module(&adapted, config.alpha);
    // Five transformers with two attentions each: ten to_q, five to_v of cross-attention.
    assert_eq!(adapters.names().count(), 7 * 2 + 7);
    assert_eq!(
        Adapters::from_module(&attach(case.unet.clone(), &config, 7), 4.0),
        adapters
    );
    assert_ne!(
        Adapters::from_module(&attach(case.unet.clone(), &config, 8), 4.0),
        adapters
    );
}

#[test]
fn an_adapter_without_a_layer_is_refused_by_name() {
    let case = Case::new();
    let other = swiftbrush_unet::UNetConfig {
        block_out_channels: vec![16, 16],
        ..swiftbrush_unet::UNetConfig::tiny()
    };
    let adapters = AdapterFile::open(&here("pytorch_lora_weights.safetensors"))
        .unwrap()
        .unet;
    let error = insert(other.init(&case.device), &adapters)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        "{error}"
    );
    let error = AdapterFile::open(&here("lora.safetensors"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("are not adapter tensors"), "{error}");
}
