//! Any file is loaded or rejected: no panic, and no allocation of a size that it merely claims.
//!
//! Each target runs for a second in tests, or as long as `SWIFTBRUSH_FUZZ_SECONDS` says:
//! `SWIFTBRUSH_FUZZ_SECONDS=600 cargo test --release --workspace --test fuzz`. Findings are kept in `corpus`.

use std::path::{Path, PathBuf};

use swiftbrush_pipeline::clip::{ClipConfig, TextConfig, Tokenizer};
use swiftbrush_pipeline::lora::{AdapterFile, Layout};
use swiftbrush_pipeline::scheduler::{NoiseSchedule, Sampler, SamplerKind, SchedulerConfig};
use swiftbrush_pipeline::unet::UNetConfig;
use swiftbrush_pipeline::vae::{AutoencoderKlConfig, AutoencoderTinyConfig};
use swiftbrush_pipeline::{Loader, Model};
use swiftbrush_testing::{device, fuzz};
use tempfile::TempDir;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name)
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(golden(file)).expect("it exists")
}

/// A folder with an empty component.
fn component(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a writable folder");
    let component = folder.path().join(name);
    std::fs::create_dir(&component).expect("a writable folder");
    (folder, component)
}

/// A small safetensors file.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let len = 4 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + len]});
        header.insert((*name).to_owned(), entry);
        end += len;
    }
    let header = serde_json::to_vec(&header).expect("it can be serialised");
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, &vec![0; end]].concat()
}

#[test]
fn files_of_weights() {
    let (folder, component) = component("unet");
    let names: [(&str, &[usize]); 3] = [
        ("conv_in.weight", &[2, 1, 3, 3]),
        ("input_blocks.0.0.weight", &[2]),
        ("model.diffusion_model.out.2.bias", &[]),
    ];
    let index =
        br#"{"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}"#;
    let seeds = [
        safetensors(&names),
        safetensors(&names[..1]),
        index.to_vec(),
        read("adapters/pytorch_lora_weights.bin")[..4096].to_vec(),
        read("twins/sd-turbo/taesd/taesd_encoder.pth"),
    ];
    let words = [
        "F32",
        "F16",
        "BOOL",
        "F8_E4M3",
        "shape",
        "data_offsets",
        "__metadata__",
        "PK\u{3}\u{4}",
        "../",
    ];
    let config = read("twins/one-block/unet/config.json");
    std::fs::write(component.join("config.json"), config).expect("a writable folder");
    fuzz(&corpus("weights"), &seeds, &words, |bytes| {
        for name in ["model.safetensors", "model.safetensors.index.json"] {
            let path = component.join(name);
            std::fs::write(&path, bytes).expect("a writable folder");
            let model = Model::open(folder.path()).expect("it is a folder");
            if let Ok(weights) = model.weights("unet") {
                for name in weights.names() {
                    let _ = weights.read(name);
                }
                let _ = Loader::new(model, &device()).unet();
            }
            if let Ok(model) = Model::open(&path) {
                let loader = Loader::new(model, &device());
                let _ = (loader.unet(), loader.decoder(), loader.text_encoder());
                let _ = (loader.scheduler(), loader.tokenizer());
            }
            std::fs::remove_file(&path).expect("it was written a moment ago");
        }
    });
}

/// The largest sizes of configurations that are built.
const MANY: usize = 64;

#[test]
fn configurations() {
    let (folder, component) = component("any");
    let files = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ];
    let mut seeds: Vec<_> = ["twins/sd15", "twins/unequal", "model"]
        .iter()
        .flat_map(|model| files.map(|file| read(&format!("{model}/{file}"))))
        .collect();
    seeds.push(read("model/taesd/config.json"));
    seeds.push(br#"{"model_cfg": {"embed_dim": 8, "quick_gelu": true, "vision_cfg": {"image_size": 8, "layers": 1, "width": 8,
        "patch_size": 4, "head_width": 4, "mlp_ratio": 1.5}, "text_cfg": {"context_length": 9, "vocab_size": 9, "width": 8, "heads": 2,
        "layers": 1}}}"#.to_vec());
    let words = [
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "attention_head_dim",
        "hidden_size",
        "scaling_factor",
        "beta_start",
        "original_inference_steps",
        "v_prediction",
        "rescale_betas_zero_snr",
        "true",
        "-Infinity",
        "DownBlock2D",
        "_class_name",
        "LCMScheduler",
        "PNDMScheduler",
    ];
    fuzz(&corpus("configurations"), &seeds, &words, |bytes| {
        for name in ["config.json", "open_clip_config.json"] {
            std::fs::write(component.join(name), bytes).expect("a writable folder");
        }
        let model = Model::open(folder.path()).expect("it is a folder");
        let device = device();
        let is_small = |sizes: &[usize]| sizes.iter().all(|&size| size <= MANY);
        if let Ok(config) = UNetConfig::from_model(&model, "any")
            && is_small(&config.block_out_channels)
            && is_small(&[
                config.in_channels,
                config.out_channels,
                config.cross_attention_dim,
            ])
            && (0..config.block_out_channels.len())
                .all(|block| config.layers_per_block.get(block) <= 4)
        {
            let _ = config.init(&device);
        }
        if let Ok(config) = AutoencoderKlConfig::from_model(&model, "any")
            && is_small(&config.block_out_channels)
            && is_small(&[
                config.layers_per_block,
                config.in_channels,
                config.out_channels,
                config.latent_channels,
            ])
        {
            let _ = config.init(&device);
        }
        let _ = AutoencoderTinyConfig::from_model(&model, "any");
        if let Ok(config) = TextConfig::from_model(&model, "any")
            && is_small(&[config.num_hidden_layers])
        {
            let _ = config.init(&device);
        }
        if let Ok(config) = ClipConfig::from_model(&model, "any")
            && is_small(&[
                config.text_config.num_hidden_layers,
                config.vision_config.num_hidden_layers,
            ])
            && config.vision_config.image_size <= 512
        {
            let _ = config.init(&device);
        }
        let text = String::from_utf8_lossy(bytes);
        if let Ok(config) = SchedulerConfig::from_json(&text)
            && config.num_train_timesteps <= 10_000
        {
            let _ = NoiseSchedule::new(&config);
            for kind in SamplerKind::ALL {
                for steps in [1, 3, config.num_train_timesteps] {
                    let _ = Sampler::new(kind, &config, steps);
                }
            }
            let written = serde_json::to_string(&config).expect("it can be serialised");
            let read = serde_json::from_str::<SchedulerConfig>(&written);
            let read = read.expect("what was written can be read");
            assert_eq!(
                serde_json::to_string(&read).expect("it can be serialised"),
                written
            );
        }
    });
}

#[test]
fn tokenizers() {
    let (folder, component) = component("tokenizer");
    let files = [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
    ];
    let miniature =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/miniature/model/tokenizer");
    let mut seeds: Vec<_> = files[..4]
        .iter()
        .map(|file| std::fs::read(miniature.join(file)).expect("it exists"))
        .collect();
    seeds.push(read("twins/sd15/tokenizer/tokenizer.json"));
    let words = [
        "<|endoftext|>",
        "<|startoftext|>",
        "pad_token",
        "content",
        "model_max_length",
        "1e30",
        "</w>",
        "Ġ",
    ];
    let whole = seeds.clone();
    fuzz(&corpus("tokenizers"), &seeds, &words, |bytes| {
        // Each file in turn is the changed one.
        for (changed, file) in files.iter().enumerate() {
            for (file, contents) in files.iter().zip(&whole) {
                std::fs::write(component.join(file), contents).expect("a writable folder");
            }
            std::fs::write(component.join(file), bytes).expect("a writable folder");
            if changed + 1 == files.len() {
                std::fs::remove_file(component.join("vocab.json")).expect("it was written");
            }
            let model = Model::open(folder.path()).expect("it is a folder");
            if let Ok(tokenizer) = Tokenizer::from_model(&model, "tokenizer")
                && tokenizer.length() <= 1000
            {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
                assert_eq!(tokenizer.encode(&text).ids.len(), tokenizer.length());
            }
        }
    });
}

#[cfg(feature = "png")]
#[test]
fn records() {
    use swiftbrush_pipeline::{Record, Request, Source};

    let request = Request::new(["a"]);
    let scheduler = SchedulerConfig::default();
    let record = Record::with_parts(&Source::new("a"), &request, [512, 512], scheduler);
    let seed = serde_json::to_vec(&record).expect("it can be serialised");
    let words = [
        "F32",
        "I32",
        "QFloat",
        "1e308",
        "-1",
        "18446744073709551615",
        "null",
        "euler",
        "one-step",
        "overlap",
        "side",
        "enlarged",
        "strength",
        "adapters",
        "_use_default_values",
        "num_train_timesteps",
        "/dev/zero",
        "spacing",
        "linspace",
    ];
    fuzz(&corpus("records"), &[seed], &words, |bytes| {
        if let Ok(record) = serde_json::from_slice::<Record>(bytes)
            && record.check().is_ok()
        {
            let _ = (
                record.parameters(),
                record.request(),
                record.source.without_paths(),
            );
            let _ = record.source.hashes();
        }
    });
}

#[test]
fn files_of_adapters() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let (path, again) = (
        folder.path().join("lora.safetensors"),
        folder.path().join("again.safetensors"),
    );
    let flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let ldm = "lora_unet_output_blocks_5_2_conv";
    let seeds = [
        safetensors(&[
            (&format!("{flat}.lora_down.weight"), &[1, 2]),
            (&format!("{flat}.lora_up.weight"), &[2, 1]),
            (&format!("{flat}.alpha"), &[]),
        ]),
        safetensors(&[
            (&format!("{ldm}.lora_down.weight"), &[1, 1, 3, 3]),
            (&format!("{ldm}.lora_up.weight"), &[1, 1, 1, 1]),
        ]),
        safetensors(&[
            (
                "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
                &[1, 2],
            ),
            (
                "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
                &[2, 1],
            ),
        ]),
        safetensors(&[
            (
                "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
                &[1, 2],
            ),
            (
                "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
                &[2, 1],
            ),
        ]),
    ];
    let words = [
        "down_blocks",
        "_0",
        ".0",
        "mid_block",
        "to_out",
        "conv_in",
        "lora_te_",
        "lora_te2_",
        ".lora_A.weight",
        ".lora_mid.weight",
        "input_blocks",
        "output_blocks",
        "middle_block",
        "time_embed",
        ".alpha",
        "_",
        "..",
        "hada_w1_a",
    ];
    fuzz(&corpus("adapters"), &seeds, &words, |bytes| {
        std::fs::write(&path, bytes).expect("a writable folder");
        let Ok(file) = AdapterFile::open(&path) else {
            return;
        };
        for layout in [
            Layout::Diffusers,
            Layout::DiffusersLora,
            Layout::Kohya,
            Layout::KohyaLdm,
        ] {
            if file.save(&again, layout).is_ok() {
                let read = AdapterFile::open(&again).expect("what was written can be read");
                let names = |file: &AdapterFile| -> Vec<_> {
                    file.unet.names().map(str::to_owned).collect()
                };
                assert_eq!(names(&read), names(&file), "{layout:?}");
            }
        }
    });
}
