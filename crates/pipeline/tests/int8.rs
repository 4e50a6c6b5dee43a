//! Whole models in int8: by an option, from a folder, and combinations that are rejected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_checkpoint::{
    Archive, NamedVisitor, read, read_json, sha256, visit_named, write_json,
};
use swiftbrush_clip::TextEncoder;
use swiftbrush_kernels::{Int8Weight, is_int8};
use swiftbrush_lora::AdapterFile;
use swiftbrush_pipeline::{DecoderKind, Error, Loader, Model, Rng, Seeds, TextToImage};
use swiftbrush_scheduler::{PredictionType, SchedulerConfig};
use swiftbrush_testing::{assert_close, cpu};
use swiftbrush_vae::AutoencoderKl;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// A model in f32 with convolutional projections, and one in f16.
const MODELS: [&str; 2] = ["model", "twins/sd15"];

fn loader(path: impl AsRef<Path>) -> Loader {
    Loader::new(Model::open(path).unwrap(), &cpu())
}

fn latents(pipeline: &TextToImage) -> Tensor<4> {
    let request = pipeline
        .request(["a red circle on a blue background"])
        .unwrap();
    let generation = pipeline
        .generate(&request, &mut Seeds::new(Rng::Cpu, [3]))
        .unwrap();
    generation.latents
}

fn adapter() -> AdapterFile {
    AdapterFile::open(golden("adapters/diffusers.safetensors")).unwrap()
}

fn message(result: Result<impl Sized, Error>) -> String {
    match result {
        Ok(_) => panic!("it is not rejected"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_model_is_quantised_on_loading_and_nearly_so_from_its_folder() {
    for name in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("int8");
        let exact = latents(&loader(golden(name)).load().unwrap());
        let option = loader(golden(name)).with_int8();
        let expected = latents(&option.load().unwrap());
        assert_close(expected.clone(), exact.clone(), 0.1);
        assert!(
            expected.to_data() != exact.to_data(),
            "nothing is quantised"
        );
        loader(golden(name)).quantize(&output).unwrap();
        assert_stored(&loader(&output), &option);
        // With embeddings that are not rounded, the model in f16 is the same.
        let is_f16 = name == MODELS[1];
        let stored = latents(&loader(&output).load().unwrap());
        assert_close(stored.clone(), expected.clone(), 0.02);
        for loader in [
            loader(&output),
            loader(&output).with_int8(),
            loader(&output).with_weights_as_stored(),
        ] {
            assert!(loader.is_int8().unwrap());
            let mut pipeline = loader.load().unwrap();
            assert_close(latents(&pipeline), stored.clone(), 0.0);
            pipeline.text_encoder = option.text_encoder().unwrap();
            let error = if is_f16 { 0.0 } else { 0.01 };
            assert_close(latents(&pipeline), expected.clone(), error);
        }
        assert!(!loader(golden(name)).is_int8().unwrap() && option.is_int8().unwrap());
    }
}

#[test]
fn embeddings_and_the_autoencoder_are_in_int8_only_in_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("int8");
    // In f16, so that everything else is stored exactly.
    let source = golden(MODELS[1]);
    loader(&source).quantize(&output).unwrap();
    let [stored, plain] = [&output, &source].map(|path| Model::open(path).unwrap());
    let values = |model: &Model| {
        let vae = AutoencoderKl::from_model(model, "vae", None, &cpu()).unwrap();
        assert!(Names::of(&vae).int8.is_empty());
        let text_encoder = TextEncoder::from_model(model, "text_encoder", None, &cpu()).unwrap();
        let mut values = Values::default();
        visit_named(&vae, &mut values);
        visit_named(&text_encoder, &mut values);
        values.0
    };
    let (found, exact) = (values(&stored), values(&plain));
    let is_stored = |name: &str| {
        let dtype = |component| stored.weights(component).unwrap().dtype(name);
        let mut dtypes = ["vae", "text_encoder"].into_iter().map(dtype);
        dtypes.any(|dtype| matches!(dtype, Ok(DType::I8)))
    };
    for (name, is_int8) in [
        ("text_model.embeddings.token_embedding.weight", true),
        ("text_model.embeddings.position_embedding.weight", false),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", true),
        ("encoder.mid_block.attentions.0.to_q.weight", true),
        ("decoder.up_blocks.0.resnets.0.norm1.weight", false),
        ("encoder.conv_in.weight", false),
        ("decoder.conv_out.weight", false),
        ("quant_conv.weight", false),
        ("post_quant_conv.weight", false),
    ] {
        assert_eq!(is_stored(name), is_int8, "{name}");
        let expected = match is_int8 {
            true => Int8Weight::quantize(&exact[name]).unwrap().dequantize(),
            false => exact[name].clone(),
        };
        assert_eq!(found[name], expected, "{name}");
    }
}

#[test]
fn a_folder_names_its_layout_and_origin() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("int8");
    let model = golden("twins/sd15");
    let adapted = loader(&model).with_adapter(adapter(), 0.5);
    adapted.quantize(&output).unwrap();
    for (component, file, source) in [
        (
            "unet",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
        ),
        (
            "text_encoder",
            "model.safetensors",
            "model.fp16.safetensors",
        ),
    ] {
        let folder = output.join(component);
        let metadata = Archive::open(folder.join(file)).unwrap().metadata();
        assert_eq!(metadata["quantization"], "int8-per-output-v1");
        assert_eq!(metadata["adapters"], "[0.5]");
        let hash = sha256(model.join(component).join(source)).unwrap();
        assert_eq!(metadata["source"], format!("{{\"{source}\":\"{hash}\"}}"));
        let config: serde_json::Value = read_json(folder.join("config.json")).unwrap();
        let method = &config["quantization_config"]["quant_method"];
        assert_eq!(method, "int8-per-output-v1");
    }
    let vae = output.join("vae/diffusion_pytorch_model.safetensors");
    let metadata = Archive::open(vae).unwrap().metadata();
    assert_eq!(metadata["quantization"], "int8-per-output-v1");
    assert!(!metadata.contains_key("adapters"));
    for copied in ["scheduler", "tokenizer"] {
        let count = std::fs::read_dir(model.join(copied)).unwrap().count();
        let found = std::fs::read_dir(output.join(copied)).unwrap().count();
        assert_eq!(found, count, "{copied}");
    }
    assert!(output.join("model_index.json").is_file());
}

#[test]
fn a_folder_has_the_scheduler_of_its_denoiser() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    for file in [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ] {
        std::fs::create_dir_all(other.join("unet")).unwrap();
        std::fs::copy(golden("model").join(file), other.join(file)).unwrap();
    }
    let scheduler = SchedulerConfig::default()
        .with_class("DDIMScheduler")
        .with_prediction_type(PredictionType::VPrediction);
    let path = other.join("scheduler/scheduler_config.json");
    write_json(path, &scheduler).unwrap();
    let model = Model::open(golden("model")).unwrap();
    let source = Loader::new(model.with_component("unet", other.join("unet")), &cpu());
    let output = folder.path().join("int8");
    source.quantize(&output).unwrap();
    let found = loader(&output).scheduler().unwrap();
    assert_eq!(found.prediction_type, PredictionType::VPrediction);
    assert_eq!(found, source.scheduler().unwrap());
}

#[test]
fn a_folder_has_the_tiny_autoencoder_of_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    let file = golden("model/taesd/diffusion_pytorch_model.safetensors");
    let renamed = folder.path().join("tiny.safetensors");
    std::fs::copy(file, &renamed).unwrap();
    let replaced = Model::open(golden("model")).unwrap();
    let replaced = replaced.with_component("taesd", renamed);
    let own_layout = Model::open(golden("twins/sd-turbo")).unwrap();
    for (index, model) in [replaced, own_layout].into_iter().enumerate() {
        let output = folder.path().join(index.to_string());
        let source = Loader::new(model, &cpu()).with_decoder(DecoderKind::Tiny);
        source.quantize(&output).unwrap();
        let stored = loader(&output).with_decoder(DecoderKind::Tiny);
        let decoded = |loader: &Loader| {
            let latents = Tensor::<4>::ones([1, 4, 8, 8], &cpu());
            loader.decoder().unwrap().decode(latents)
        };
        assert_close(decoded(&stored), decoded(&source), 0.0);
    }
}

#[test]
fn first_last_and_time_layers_stay_in_f32() {
    let unet = loader(golden("model")).with_int8().unet().unwrap();
    let names = Names::of(&unet);
    assert!(names.int8.len() > 20 && names.other.iter().all(|name| !names.int8.contains(name)));
    for name in [
        "conv_in.weight",
        "conv_out.weight",
        "time_embedding.linear_1.weight",
        "down_blocks.0.resnets.0.time_emb_proj.weight",
        "down_blocks.0.resnets.0.norm1.weight",
        "down_blocks.0.resnets.0.conv1.bias",
    ] {
        assert!(names.other.iter().any(|other| other == name), "{name}");
    }
    for name in [
        "down_blocks.0.resnets.0.conv1.weight",
        "mid_block.attentions.0.proj_in.weight",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight",
        "up_blocks.0.upsamplers.0.conv.weight",
    ] {
        assert!(names.int8.iter().any(|other| other == name), "{name}");
    }
    let names = Names::of(&loader(golden("model")).with_int8().text_encoder().unwrap());
    let linear = |name: &String| name.contains("_proj.weight") || name.contains(".fc");
    assert!(!names.int8.is_empty() && names.int8.iter().all(linear));
    assert!(
        names
            .other
            .iter()
            .any(|name| name.ends_with("token_embedding.weight"))
    );
}

/// The values of parameters in floating point, and the codes of those in int8.
#[derive(Default)]
struct Values(BTreeMap<String, TensorData>);

impl NamedVisitor for Values {
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let weight = Int8Weight::of_tensor(&param.base());
        let values = weight.map_or_else(|| read(param.base()), |weight| weight.codes().clone());
        self.0.insert(name.to_owned(), values);
    }
}

#[derive(Default)]
struct Names {
    int8: Vec<String>,
    other: Vec<String>,
}

impl Names {
    fn of<M: Module>(module: &M) -> Self {
        let mut names = Self::default();
        visit_named(module, &mut names);
        names
    }
}

impl NamedVisitor for Names {
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        match is_int8(&param.base()) {
            true => self.int8.push(name.to_owned()),
            false => self.other.push(name.to_owned()),
        }
    }
}

/// Asserts that a folder has the codes of a model that is quantised while loading; its matrices in floating point are in f16, and
/// its token embeddings in int8.
fn assert_stored(folder: &Loader, option: &Loader) {
    let values = |loader: &Loader| {
        let mut values = Values::default();
        visit_named(&loader.unet().unwrap(), &mut values);
        visit_named(&loader.text_encoder().unwrap(), &mut values);
        values.0
    };
    let (found, exact) = (values(folder), values(option));
    assert!(found.keys().eq(exact.keys()));
    for (name, data) in exact {
        let expected = match (data.dtype(), data.shape().num_dims()) {
            _ if name.ends_with("token_embedding.weight") => {
                Int8Weight::quantize(&data).unwrap().dequantize()
            }
            (DType::F32, 2..) => data.convert_dtype(DType::F16).convert_dtype(DType::F32),
            _ => data,
        };
        assert_eq!(found[&name], expected, "{name}");
    }
}

#[test]
fn adapters_are_merged_before_and_rejected_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("int8");
    let adapted = loader(golden("twins/sd15")).with_adapter(adapter(), 1.0);
    let expected = latents(&adapted.clone().with_int8().load().unwrap());
    assert_close(expected.clone(), latents(&adapted.load().unwrap()), 0.1);
    adapted.quantize(&output).unwrap();
    // Codes are those of the merged weights; matrices in floating point are in f16, and the token embeddings are rounded.
    assert_close(latents(&loader(&output).load().unwrap()), expected, 0.02);
    assert_stored(&loader(&output), &adapted.with_int8());
    let later = loader(&output).load().unwrap();
    for error in [
        message(loader(&output).with_adapter(adapter(), 1.0).load()),
        message(later.with_adapters(&[(&adapter(), 1.0)])),
    ] {
        let expected = "adapters cannot be merged into weights in int8";
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn contradictions_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("int8");
    let original = || loader(golden("model"));
    original().quantize(&output).unwrap();
    let check = |loader: Loader, expected: &str| {
        let error = message(loader.check());
        assert!(error.contains(expected), "{error}");
    };
    check(
        original().with_int8().with_dtype(DType::F16),
        "compute in f32; found the element type F16",
    );
    check(
        loader(&output).with_storage(DType::BF16),
        "found the element type BF16",
    );
    let autodiff = cpu().autodiff();
    let elsewhere = Loader::new(Model::open(&output).unwrap(), &autodiff);
    check(elsewhere, "weights in int8 are not supported on");
    assert!(Int8Weight::check_device(&autodiff).is_err());
    let file = Model::open(golden("twins/sd21.safetensors")).unwrap();
    let file = Loader::new(file.with_configs(golden("twins/sd21")), &cpu());
    for (result, expected) in [
        (
            loader(&output).quantize(folder.path().join("again")),
            "in int8 already",
        ),
        (original().quantize(&output), "the folder is not empty"),
        (file.quantize(folder.path().join("x")), "a single file"),
    ] {
        let error = message(result);
        assert!(error.contains(expected), "{error}");
    }
}
