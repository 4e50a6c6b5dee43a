//! Paints pictures from prompts.
//!
//! Without `--model` it uses the miniature that lies beside this file: a one-step model of a world of
//! coloured shapes, small enough for any machine.
//!
//! ```sh
//! cargo run --release --example generate -- "a red circle above a green star on a white background"
//! cargo run --release --example generate -- --model sd-turbo --output cat.png "a photo of a cat"
//! ```
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

mod shared;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use image::RgbImage;
use swiftbrush_checkpoint::{Archive, LazyTensor, Model, write_tensors};
use swiftbrush_lora::{AdapterFile, fuse};
use swiftbrush_pipeline::{Decoder, Given, Loader, Method, Painting, Request, TextToImage, noise};
use swiftbrush_scheduler::SamplerKind;
use swiftbrush_torch_noise::{CpuGenerator, CudaGenerator};
use swiftbrush_vae::AutoencoderTiny;

use shared::{device, enlarged, pictures, write_png};

/// Paints pictures from prompts.
#[derive(Debug, Parser)]
struct Args {
    /// What to paint.
    prompt: Option<String>,
    /// A file with a prompt on each line; pictures are then 00000.png, 00001.png … in that order.
    #[arg(long, conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// A model folder in the layout of diffusers [default: the miniature].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Another denoiser: a component of the model folder such as "teacher".
    #[arg(long, default_value = "unet")]
    unet: String,
    /// The first picture's seed; the next has the next.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whose numbers a seed stands for; with PyTorch's, pictures of other programs can be painted again.
    #[arg(long, default_value = "native")]
    rng: RngName,
    /// Pictures of each prompt.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How latents are made of noise [default: what fits the model].
    #[arg(long)]
    sampler: Option<SamplerName>,
    /// Steps of the other samplers.
    #[arg(long)]
    steps: Option<usize>,
    /// Scale of classifier-free guidance; 1 is none.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    /// What to paint the opposite of, with guidance.
    #[arg(long, default_value = "")]
    negative_prompt: String,
    /// Which decoder makes the picture.
    #[arg(long, default_value = "kl")]
    vae: VaeName,
    /// An adapter file of PEFT or diffusers, FILE or FILE=weight; can be given again.
    #[arg(long)]
    lora: Vec<String>,
    /// Where to compute.
    #[arg(long, default_value = shared::DEVICES[0])]
    device: String,
    /// Precision of the networks.
    #[arg(long, default_value = "f32")]
    dtype: DtypeName,
    /// Pictures made in one go.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// The picture, or the folder for several.
    #[arg(long, short, default_value = "picture.png")]
    output: PathBuf,
    /// Enlarges the picture for viewing, each pixel to a square of this side.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    enlarge: u32,
    /// Initial noise instead of the seed's: the tensor "noise" of a safetensors file.
    #[arg(long)]
    noise: Option<PathBuf>,
    /// Writes tokens, context, noise, latents and image, to be compared with other programs.
    #[arg(long)]
    save_tensors: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SamplerName {
    /// SwiftBrush's rule: one call.
    OneStep,
    Ddim,
    Euler,
    /// DPM-Solver++(2M).
    DpmSolver,
    Pndm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RngName {
    /// ChaCha, the same on every machine and device.
    Native,
    /// PyTorch's on the CPU: diffusers with a generator there, ComfyUI.
    Cpu,
    /// PyTorch's on CUDA: AUTOMATIC1111's interface.
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum VaeName {
    Kl,
    Tiny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeName {
    F32,
    F16,
    Bf16,
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    paint(&Args::parse())
}

fn paint(args: &Args) -> Result<()> {
    let prompts = prompts(args)?;
    let device = device(&args.device)?;

    let begun = Instant::now();
    let pipeline = load(args, &device)?;
    let method = method(args, &pipeline)?;
    eprintln!("loaded in {:.2} s", begun.elapsed().as_secs_f64());

    let jobs: Vec<_> = prompts
        .iter()
        .flat_map(|prompt| (0..args.count).map(move |_| prompt.clone()))
        .zip(args.seed..)
        .collect();
    ensure!(args.batch > 0, "--batch must be at least 1");
    ensure!(
        args.noise.is_none() || jobs.len() <= args.batch,
        "--noise needs all pictures in one --batch"
    );
    ensure!(
        args.save_tensors.is_none() || jobs.len() <= args.batch,
        "--save-tensors needs all pictures in one --batch"
    );
    let is_single = jobs.len() == 1 && args.prompts.is_none();
    let mut index = 0;
    for jobs in jobs.chunks(args.batch) {
        let begun = Instant::now();
        let request = Request {
            method,
            guidance: args.guidance,
            negative_prompt: args.negative_prompt.clone(),
            ..Request::new(jobs.iter().map(|(prompt, _)| prompt.clone()))
        };
        let noise = initial_noise(args, &pipeline, jobs, &device)?;
        let painting = pipeline.generate(&request, &mut Given::from(noise.clone()))?;
        if let Some(path) = &args.save_tensors {
            save_tensors(path, &painting, noise)?;
        }
        for picture in pictures(painting.images) {
            let path = if is_single {
                args.output.clone()
            } else {
                args.output.join(format!("{index:05}.png"))
            };
            save(&picture, args.enlarge, &path)?;
            index += 1;
        }
        eprintln!(
            "{index} of {} pictures, {:.2} s for the last {}",
            prompts.len() * args.count,
            begun.elapsed().as_secs_f64(),
            jobs.len()
        );
    }
    Ok(())
}

fn prompts(args: &Args) -> Result<Vec<String>> {
    let prompts = match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            text.lines().map(str::to_owned).collect()
        }
        (None, None) => bail!("say what to paint, or give --prompts FILE"),
    };
    ensure!(!prompts.is_empty(), "there are no prompts");
    Ok(prompts)
}

fn load(args: &Args, device: &Device) -> Result<TextToImage> {
    let miniature = Path::new(env!("CARGO_MANIFEST_DIR")).join("miniature/model");
    let folder = Model::open(args.model.clone().unwrap_or(miniature))?;
    let dtype = match args.dtype {
        DtypeName::F32 => DType::F32,
        DtypeName::F16 => DType::F16,
        DtypeName::Bf16 => DType::BF16,
    };
    ensure!(
        device.supports_dtype(dtype),
        "--device {} cannot compute in {dtype:?}",
        args.device
    );
    let mut pipeline = Loader::new(folder.clone(), device)
        .with_denoiser(&args.unet)
        .with_dtype(dtype)
        .load()?;
    if args.vae == VaeName::Tiny {
        pipeline.decoder = Decoder::Tiny(AutoencoderTiny::from_model(
            &folder,
            "taesd",
            Some(dtype),
            device,
        )?);
    }
    for lora in &args.lora {
        let (file, weight) = match lora.rsplit_once('=') {
            Some((file, weight)) => (
                file,
                weight.parse().with_context(|| format!("--lora {lora}"))?,
            ),
            None => (lora.as_str(), 1.0),
        };
        pipeline.unet = fuse(
            pipeline.unet,
            &AdapterFile::open(Path::new(file))?.unet,
            weight,
        )?;
    }
    Ok(pipeline)
}

fn method(args: &Args, pipeline: &TextToImage) -> Result<Method> {
    let kind = match args.sampler {
        Some(SamplerName::OneStep) => None,
        Some(SamplerName::Ddim) => Some(SamplerKind::Ddim),
        Some(SamplerName::Euler) => Some(SamplerKind::Euler),
        Some(SamplerName::DpmSolver) => Some(SamplerKind::DpmSolver),
        Some(SamplerName::Pndm) => Some(SamplerKind::Pndm),
        None => match (pipeline.default_method(), args.steps) {
            (method, None) => return Ok(method),
            (Method::OneStep, Some(_)) => Some(SamplerKind::Ddim),
            (Method::Sampler(kind, _), Some(_)) => Some(kind),
        },
    };
    match (kind, args.steps) {
        (None, None | Some(1)) => Ok(Method::OneStep),
        (None, Some(steps)) => bail!("--sampler one-step takes one step, not {steps}"),
        (Some(kind), steps) => Ok(Method::Sampler(kind, steps.unwrap_or(25))),
    }
}

fn initial_noise(
    args: &Args,
    pipeline: &TextToImage,
    jobs: &[(String, u64)],
    device: &Device,
) -> Result<Tensor<4>> {
    if let Some(path) = &args.noise {
        let data = Archive::open(path)?
            .read("noise")?
            .convert_dtype(DType::F32);
        let rank = data.shape().num_dims();
        ensure!(
            rank == 4,
            "{}: noise has {rank} axes, expected [batch, channels, height, width]",
            path.display()
        );
        return Ok(Tensor::from_data(data, device));
    }
    let shape = pipeline.latent_shape(1);
    let count = shape.iter().product();
    let of_torch = |numbers: Vec<f32>| Tensor::from_data(TensorData::new(numbers, shape), device);
    let of_seed = |seed| match args.rng {
        RngName::Native => noise(shape, seed, device),
        RngName::Cpu => of_torch(CpuGenerator::new(seed).randn(count)),
        RngName::Cuda => of_torch(CudaGenerator::new(seed).randn(count)),
    };
    let noises = jobs.iter().map(|(_, seed)| of_seed(*seed));
    Ok(Tensor::cat(noises.collect(), 0))
}

fn save_tensors(path: &Path, painting: &Painting, noise: Tensor<4>) -> Result<()> {
    let tensors = vec![
        LazyTensor::ready(
            "tokens",
            painting.tokens.to_data().convert_dtype(DType::I64),
        ),
        LazyTensor::ready(
            "context",
            painting.context.to_data().convert_dtype(DType::F32),
        ),
        LazyTensor::ready("noise", noise.to_data()),
        LazyTensor::ready("latents", painting.latents.to_data()),
        LazyTensor::ready("image", painting.images.to_data().convert_dtype(DType::F32)),
    ];
    Ok(write_tensors(path, tensors, HashMap::new())?)
}

fn save(picture: &RgbImage, factor: u32, path: &Path) -> Result<()> {
    write_png(&enlarged(picture, factor), path)?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paint(more: &[&str]) -> Result<()> {
        let prompt = "a red circle on a blue background";
        let args = [&["generate", prompt], more].concat();
        super::paint(&Args::try_parse_from(args)?)
    }

    fn error(result: Result<()>) -> String {
        format!("{:#}", result.expect_err("it cannot be done"))
    }

    #[test]
    fn an_output_that_cannot_be_written_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        std::fs::write(&file, "mine")?;
        for (option, name) in [
            ("--output", "picture.png"),
            ("--save-tensors", "all.safetensors"),
        ] {
            let path = file.join(name);
            let path = path.to_str().context("the path is UTF-8")?;
            let rest = folder.path().join("picture.png");
            let rest = rest.to_str().context("the path is UTF-8")?;
            let error = match option {
                "--output" => error(paint(&[option, path])),
                _ => error(paint(&["--output", rest, option, path])),
            };
            assert!(error.contains(path), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file)?, "mine");
        Ok(())
    }

    /// What `torch.randn(1, 4, 8, 8)` begins with after `torch.manual_seed` of 0 and of 1.
    #[test]
    fn a_seed_can_stand_for_pytorchs_numbers() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name| folder.path().join(name).display().to_string();
        let (picture, tensors) = (path("picture.png"), path("all.safetensors"));
        let half = 4 * 8 * 8;
        for (rng, place, expected) in [
            ("cpu", 0, -1.125_8),
            ("cpu", half, -1.525_6),
            ("cuda", 0, -0.924_7),
        ] {
            let rest = ["--rng", rng, "--count", "2", "--batch", "2"];
            let files = ["--output", &path("folder"), "--save-tensors", &tensors];
            paint(&[&rest[..], &files[..]].concat())?;
            let noise: Vec<f32> = Archive::open(&tensors)?.read("noise")?.iter().collect();
            let found = noise[place];
            assert!((found - expected).abs() < 6e-5, "{rng} at {place}: {found}");
        }
        assert!(paint(&["--rng", "numpy", "--output", &picture]).is_err());
        Ok(())
    }

    #[test]
    fn a_picture_is_replaced_whole() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("picture.png");
        std::fs::write(&path, "an older picture")?;
        paint(&["--output", path.to_str().context("the path is UTF-8")?])?;
        let picture = image::open(&path)?;
        assert_eq!((picture.width(), picture.height()), (32, 32));
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
        Ok(())
    }
}
