//! `distill export`: the student of a run as a model folder.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use swiftbrush_checkpoint::{Model, read_json, remove_unfinished, write_atomically, write_json};
use swiftbrush_lora::{AdapterFile, Adapters, Layout};
use swiftbrush_pipeline::Loader;
use swiftbrush_trainer::{Snapshot, Student, snapshot_path, snapshot_steps};
use swiftbrush_unet::{UNet, UNetConfig};

use crate::{SOURCES, Sources, single_file};

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Folder of the run.
    run: PathBuf,
    /// Folder to write.
    #[arg(long, short)]
    output: PathBuf,
    /// Step of the snapshot [default: the last].
    #[arg(long)]
    step: Option<u64>,
    /// Exports the current weights instead of their averages.
    #[arg(long)]
    current: bool,
    /// Also writes the whole model to this file, in the layout read by ComfyUI and AUTOMATIC1111's web UI.
    #[arg(long)]
    single_file: Option<PathBuf>,
    /// Element type of the denoiser, and of everything in a single file: f32 or f16.
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32 or f16".to_owned()),
    }
}

/// Components that the student shares with its teacher, with library and class for `model_index.json`.
const SHARED: [(&str, &str, &str); 3] = [
    ("text_encoder", "transformers", "CLIPTextModel"),
    ("tokenizer", "transformers", "CLIPTokenizer"),
    ("vae", "diffusers", "AutoencoderKL"),
];

/// Folders of an export, besides the shared components.
const FOLDERS: [&str; 5] = ["", "unet", "adapters", "adapters/peft", "scheduler"];

pub(crate) fn export(args: &ExportArgs) -> Result<()> {
    let shared = SHARED.map(|(name, _, _)| name);
    for folder in FOLDERS.into_iter().chain(shared) {
        remove_unfinished(args.output.join(folder))?;
    }
    if let Some(folder) = args.single_file.as_ref().and_then(|path| path.parent()) {
        remove_unfinished(folder)?;
    }
    let sources: Sources = read_json(args.run.join(SOURCES))?;
    let path = snapshot(args)?;
    let student_model = Model::open(&sources.student)?;
    let device = examples_common::device(examples_common::DEVICES[0])?;
    let base = UNet::from_model(
        &student_model,
        &sources.student_unet,
        Some(DType::F32),
        &device,
    )?;
    let mut student = Student::from_snapshot(&Snapshot::open(&path)?, &path, &base)?;
    if !args.current {
        student = student.averaged();
    }
    let component = &sources.student_unet;
    let folder = args.output.join("unet");
    write_denoiser(&student, &student_model, component, args.dtype, &folder)?;
    if let Some(adapters) = student.adapters() {
        write_adapters(adapters, &args.output.join("adapters"))?;
    }
    let teacher = Model::open(&sources.teacher)?;
    if let Some(path) = &args.single_file {
        let loader = Loader::new(student_model.clone(), &device).with_denoiser(component);
        let scheduler = loader.scheduler()?;
        let unet = student.merged();
        single_file::write(&unet, &teacher, &scheduler, args.dtype, &device, path)?;
    }
    write_rest(&teacher, &student_model, component, &args.output, &device)
}

fn snapshot(args: &ExportArgs) -> Result<PathBuf> {
    let steps = snapshot_steps(&args.run)?;
    let step = match args.step {
        Some(step) if !steps.contains(&step) => {
            bail!("--step {step}: the run has snapshots of steps {steps:?}")
        }
        Some(step) => step,
        None => *steps
            .last()
            .with_context(|| format!("{} has no snapshots", args.run.display()))?,
    };
    Ok(snapshot_path(&args.run, step))
}

/// Writes the denoiser with its configuration; adapters are merged.
pub(crate) fn write_denoiser(
    student: &Student,
    model: &Model,
    component: &str,
    dtype: DType,
    folder: &Path,
) -> Result<()> {
    let config = match model.config(component)? {
        Some(path) => read_json(&path)?,
        None => {
            let mut config = serde_json::to_value(UNetConfig::from_model(model, component)?)?;
            if let Value::Object(fields) = &mut config {
                fields.retain(|_, value| !value.is_null());
                fields.insert("_class_name".to_owned(), json!("UNet2DConditionModel"));
            }
            config
        }
    };
    write_json(folder.join("config.json"), &config)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("diffusion_pytorch_model.safetensors");
    student.save(&path, dtype, metadata)?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// Writes the adapters in the layouts of PEFT and of kohya's scripts.
fn write_adapters(adapters: Adapters, folder: &Path) -> Result<()> {
    let file = AdapterFile::new(adapters, Adapters::default());
    for (name, layout) in [
        ("peft/adapter_model.safetensors", Layout::Peft),
        ("kohya.safetensors", Layout::Kohya),
    ] {
        let path = folder.join(name);
        file.save(&path, layout)?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Copies the other components and writes `model_index.json`, so that
/// `StableDiffusionPipeline.from_pretrained` opens the folder.
fn write_rest(
    teacher: &Model,
    student: &Model,
    component: &str,
    output: &Path,
    device: &Device,
) -> Result<()> {
    if teacher.single_file().is_some() {
        let path = teacher.root().display();
        eprintln!(
            "{path} is a single file: text encoder, tokenizer and vae are not copied from it"
        );
        return Ok(());
    }
    for (name, _, _) in SHARED {
        copy_component(teacher, name, &output.join(name))?;
    }
    let loader = Loader::new(student.clone(), device).with_denoiser(component);
    let scheduler = loader.scheduler()?;
    let path = output.join("scheduler/scheduler_config.json");
    let source = student.path("scheduler/scheduler_config.json");
    match source.filter(|source| source.is_file()) {
        Some(source) => copy(&source, &path)?,
        None => write_json(&path, &scheduler)?,
    }
    let class = &scheduler.class_name;
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.21.0",
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", class],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    for (name, library, class) in SHARED {
        index[name] = json!([library, class]);
    }
    write_json(output.join("model_index.json"), &index)?;
    eprintln!("wrote {}", output.display());
    Ok(())
}

/// Copies configurations, vocabularies and weights of a component, but only the weight files that are
/// loaded.
fn copy_component(model: &Model, component: &str, output: &Path) -> Result<()> {
    let folder = model.path(component).filter(|folder| folder.is_dir());
    let folder = folder.with_context(|| {
        let model = model.root().display();
        format!("{model} has no folder {component} to copy")
    })?;
    let mut files = model.weight_files(component);
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let is_text = path
            .extension()
            .is_some_and(|extension| extension == "json" || extension == "txt");
        if is_text && path.is_file() {
            files.push(path);
        }
    }
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // diffusers looks for the plain name unless a variant is requested.
        let name = name.replace(".fp16.safetensors", ".safetensors");
        copy(&path, &output.join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_atomically(to, |file| std::io::copy(&mut source, file).map(drop))?;
    Ok(())
}
