//! Paints pictures from prompts.
//!
//! Without `--model` it uses the miniature that lies beside this file: a one-step model of a world of
//! coloured shapes, small enough for any machine.
//!
//! ```sh
//! cargo run --release --example generate -- "a red circle above a green star on a white background"
//! cargo run --release --example generate -- --model stabilityai/sd-turbo --output cat.png "a photo of a cat"
//! cargo run --release --example generate -- --model v1-5.safetensors --lora style.safetensors=0.8 \
//!     --steps 25 --guidance 7.5 --rng cpu --seed 42 "a castle"
//! cargo run --release --example generate -- --model sd-turbo --image sketch.png --strength 0.6 "a castle"
//! ```
//!
//! Each picture says how it was made; the example `verify` paints it again.
#![allow(clippy::print_stderr, reason = "a program talks to its user")]

mod shared;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Tensor};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_checkpoint::{Archive, LazyTensor, sha256, write_tensors};
use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    Decoder, DecoderKind, Family, Given, Loader, Method, Noise, Painting, Picture, Progress,
    Record, Request, Rng, Seeds, Source, Start, StartRecord, TextToImage,
};

use shared::{Wanted, device, enlarged, find, miniature, named, read_image, write_picture};

/// Paints pictures from prompts.
#[derive(Debug, Parser)]
struct Args {
    /// What to paint.
    prompt: Option<String>,
    /// A file with a prompt on each line; pictures are then 00000.png, 00001.png … in that order.
    #[arg(long, conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// A model: a folder in the layout of diffusers, one file (.safetensors, .ckpt), or a name on the Hugging Face hub
    /// (stabilityai/sd-turbo) [default: the miniature].
    #[arg(long)]
    model: Option<String>,
    /// For a model in one file: a folder with the configurations, tokenizer and scheduler of its like.
    #[arg(long)]
    configs: Option<PathBuf>,
    /// For a model in one file that does not say it: sd1.5, sd2.1-base, sd2.1 or sd-turbo.
    #[arg(long, value_parser = named::<Family>)]
    family: Option<Family>,
    /// Another denoiser: a component of the model such as "teacher", or a file, a folder, or a name on the hub.
    #[arg(long, default_value = "unet")]
    unet: String,
    /// A component from elsewhere, such as vae=DIR or taesd=madebyollin/taesd; can be given again.
    #[arg(long, value_name = "NAME=PATH")]
    component: Vec<String>,
    /// Prefers weights with this in their file names, such as fp16.
    #[arg(long)]
    variant: Option<String>,
    /// The first picture's seed; the next has the next.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whose numbers a seed stands for: native ones; PyTorch's on the cpu (diffusers with a generator there, ComfyUI) or on
    /// cuda (AUTOMATIC1111's interface), with which pictures of other programs can be painted again.
    #[arg(long, default_value = "native", value_parser = named::<Rng>)]
    rng: Rng,
    /// Pictures of each prompt.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How latents are made of noise: one-step (SwiftBrush's rule), ddim, euler, euler-ancestral, dpm-solver, pndm or lcm
    /// [default: what fits the model].
    #[arg(long, value_parser = sampler)]
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
    /// Width and height in pixels, such as 768x512 [default: what the model was trained on].
    #[arg(long, value_parser = size)]
    size: Option<[usize; 2]>,
    /// A picture to begin with instead of noise.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How much of that picture is lost in noise, 0 to 1.
    #[arg(long, default_value_t = 0.8, requires = "image")]
    strength: f64,
    /// Which decoder makes the picture: kl, or tiny, which is the component taesd.
    #[arg(long, default_value = "kl", value_parser = named::<DecoderKind>)]
    vae: DecoderKind,
    /// Decodes in tiles, for large pictures.
    #[arg(long)]
    tiled: bool,
    /// A file of adapters (PEFT, diffusers, kohya), here or on the hub (owner/name/file), FILE or FILE=weight; can be
    /// given again.
    #[arg(long)]
    lora: Vec<String>,
    /// Where to compute.
    #[arg(long, default_value = shared::DEVICES[0])]
    device: String,
    /// Precision of the arithmetic: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    /// Precision in which the denoiser's weights are kept [default: that of the arithmetic].
    #[arg(long, value_parser = dtype)]
    storage: Option<DType>,
    /// The least memory: weights in f16, one network at a time, decoding in tiles of 256 pixels.
    #[arg(long)]
    low_memory: bool,
    /// Pictures made in one go.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// The picture, or the folder for several.
    #[arg(long, short, default_value = "picture.png")]
    output: PathBuf,
    /// Enlarges the picture for viewing, each pixel to a square of this side.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    enlarge: u32,
    /// Writes what the network expects after each step, beside the picture.
    #[arg(long, conflicts_with = "low_memory")]
    previews: bool,
    /// Does not write the hashes of the model's files into the picture.
    #[arg(long)]
    no_hashes: bool,
    /// Initial noise instead of the seed's: the tensor "noise" of a safetensors file.
    #[arg(long)]
    noise: Option<PathBuf>,
    /// Writes tokens, context, noise, latents and image, to be compared with other programs.
    #[arg(long)]
    save_tensors: Option<PathBuf>,
}

/// SwiftBrush's rule, or a sampler.
#[derive(Clone, Copy, Debug)]
enum SamplerName {
    OneStep,
    Kind(SamplerKind),
}

fn sampler(text: &str) -> Result<SamplerName, String> {
    match text {
        "one-step" => Ok(SamplerName::OneStep),
        _ => named(text)
            .map(SamplerName::Kind)
            .map_err(|error| format!("{error}, or `one-step`")),
    }
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32, f16 or bf16".to_owned()),
    }
}

/// Height and width of "WIDTHxHEIGHT".
fn size(text: &str) -> Result<[usize; 2], String> {
    let size = text
        .split_once('x')
        .and_then(|(width, height)| Some([height.parse().ok()?, width.parse().ok()?]));
    size.ok_or_else(|| "expected WIDTHxHEIGHT, such as 768x512".to_owned())
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    paint(&Args::parse())
}

/// Set by Ctrl-C: the painting ends after the network's current call.
static STOP: AtomicBool = AtomicBool::new(false);

/// A network at a time, or all of them.
enum Painter {
    InTurn(Box<Loader>),
    AtOnce(Box<TextToImage>),
}

fn paint(args: &Args) -> Result<()> {
    let prompts = prompts(args)?;
    let device = device(&args.device)?;
    let source = source(args)?;
    for dtype in [source.dtype, source.storage.unwrap_or(source.dtype)] {
        ensure!(
            device.supports_dtype(dtype),
            "--device {} cannot compute in {dtype:?}",
            args.device
        );
    }
    // Set once; in tests it is already.
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));

    // Hashing reads every file to its end: beside loading and painting, not before.
    let hashes = (!args.no_hashes).then(|| {
        let source = source.clone();
        std::thread::spawn(move || source.hashes())
    });
    let begun = Instant::now();
    let loader = source.loader(&device)?;
    let scheduler = loader.scheduler()?;
    let method = method(args, Method::of_scheduler(&scheduler))?;
    let (side, scale) = (loader.side()?, loader.scale()?);
    let painter = match args.low_memory {
        true => Painter::InTurn(Box::new(loader)),
        false => Painter::AtOnce(Box::new(loader.load()?)),
    };
    eprintln!("loaded in {:.2} s", begun.elapsed().as_secs_f64());

    let jobs: Vec<_> = prompts
        .iter()
        .flat_map(|prompt| (0..args.count).map(move |_| prompt.clone()))
        .zip(args.seed..)
        .collect();
    ensure!(args.batch > 0, "--batch must be at least 1");
    for (option, is_given) in [
        ("--noise", args.noise.is_some()),
        ("--save-tensors", args.save_tensors.is_some()),
    ] {
        ensure!(
            !is_given || jobs.len() <= args.batch,
            "{option} needs all pictures in one --batch"
        );
    }
    let start = args.image.as_deref().map(read_image).transpose()?;
    let given = args.noise.as_deref().map(|path| given(path, &device));
    let given = given.transpose()?;
    let [height, width] = match (&start, &given, args.size) {
        (_, _, Some(size)) => size,
        (Some(picture), _, None) => [picture.height, picture.width],
        (None, Some(noise), None) => {
            let [_, _, height, width] = noise.dims();
            [height, width].map(|side| side * scale)
        }
        (None, None, None) => [side; 2],
    };
    let start_record = args.image.as_ref().map(|file| {
        Ok::<_, anyhow::Error>(StartRecord {
            file: file.clone(),
            sha256: sha256(file)?,
            strength: args.strength,
        })
    });
    let mut record = Record {
        software: Record::software(),
        source,
        hashes: BTreeMap::new(),
        device: args.device.clone(),
        prompt: String::new(),
        negative_prompt: args.negative_prompt.clone(),
        method,
        guidance: args.guidance,
        size: [height, width],
        seed: 0,
        rng: args.rng,
        start: start_record.transpose()?,
        scheduler,
        enlarged: args.enlarge,
    };
    let mut hashes = Hashes(hashes);
    let is_single = jobs.len() == 1 && args.prompts.is_none();
    let mut index = 0;
    for jobs in jobs.chunks(args.batch) {
        let begun = Instant::now();
        let images = start
            .as_ref()
            .map(|picture| shared::tensor(picture, jobs.len(), &device));
        let request = Request {
            prompts: jobs.iter().map(|(prompt, _)| prompt.clone()).collect(),
            start: images.map(|images| Start {
                images,
                strength: args.strength,
            }),
            ..record.request()
        };
        let seeds = jobs.iter().map(|(_, seed)| *seed);
        let mut noise = Kept {
            source: match &given {
                Some(noise) => Box::new(Given::from(noise.clone())),
                None => Box::new(Seeds::new(record.rng, seeds)),
            },
            first: None,
        };
        let painting = watch(args, &painter, &request, &mut noise)?;
        if let (Some(path), Some(noise)) = (&args.save_tensors, noise.first) {
            save_tensors(path, &painting, noise)?;
        }
        record.hashes = hashes.get()?;
        for (picture, (prompt, seed)) in Picture::of_images(painting.images).iter().zip(jobs) {
            let path = if is_single {
                args.output.clone()
            } else {
                args.output.join(format!("{index:05}.png"))
            };
            record.prompt.clone_from(prompt);
            record.seed = *seed;
            let picture = enlarged(picture, args.enlarge);
            match args.noise {
                // No seed leads to it.
                Some(_) => shared::write_png(&shared::image(&picture), &path)?,
                None => write_picture(&picture, &record, &path)?,
            }
            eprintln!("wrote {}", path.display());
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

/// Paints, with a bar where there is more than one call of the network.
fn watch(
    args: &Args,
    painter: &Painter,
    request: &Request,
    noise: &mut dyn Noise,
) -> Result<Painting> {
    let bar = ProgressBar::new(request.method.n_calls() as u64);
    let template = "{bar:30} call {pos} of {len}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    let decoder = match painter {
        Painter::AtOnce(pipeline) if args.previews => Some(&pipeline.decoder),
        _ => None,
    };
    let mut told = |progress: Progress| {
        if progress.n_calls > 1 {
            bar.set_length(progress.n_calls as u64);
            bar.set_position(progress.call as u64);
        }
        if let Some(decoder) = decoder
            && let Err(error) = preview(&args.output, decoder, &progress)
        {
            bar.suspend(|| eprintln!("no preview: {error:#}"));
        }
        match STOP.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let painting = match painter {
        Painter::InTurn(loader) => loader.paint_in_turn(request, noise, &mut told),
        Painter::AtOnce(pipeline) => pipeline.generate_watched(request, noise, &mut told),
    };
    bar.finish_and_clear();
    Ok(painting?)
}

fn preview(output: &Path, decoder: &Decoder, progress: &Progress) -> Result<()> {
    let images = decoder.decode(progress.expected.clone());
    let name = format!("preview-{:03}.png", progress.call);
    for picture in Picture::of_images(images).iter().take(1) {
        shared::write_png(&shared::image(picture), &output.with_extension(&name))?;
    }
    Ok(())
}

/// Hashes that another thread is taking.
struct Hashes(Option<JoinHandle<Result<BTreeMap<String, String>, swiftbrush_pipeline::Error>>>);

impl Hashes {
    /// Waits for them the first time.
    fn get(&mut self) -> Result<BTreeMap<String, String>> {
        match self.0.take() {
            None => Ok(BTreeMap::new()),
            Some(thread) => {
                let hashes = thread.join();
                Ok(hashes.map_err(|_| anyhow!("hashing the model's files failed"))??)
            }
        }
    }
}

/// Noise whose first is kept, to be saved.
struct Kept {
    source: Box<dyn Noise>,
    first: Option<Tensor<4>>,
}

impl Noise for Kept {
    fn draw(
        &mut self,
        shape: [usize; 4],
        device: &Device,
    ) -> Result<Tensor<4>, swiftbrush_pipeline::Error> {
        let noise = self.source.draw(shape, device)?;
        self.first.get_or_insert_with(|| noise.clone());
        Ok(noise)
    }
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

fn source(args: &Args) -> Result<Source> {
    let is_elsewhere = |name: &str| {
        let mut names = args
            .component
            .iter()
            .filter_map(|component| component.split_once('='));
        names.any(|(component, _)| component == name)
    };
    let decoder = match args.vae {
        DecoderKind::Kl => "vae",
        DecoderKind::Tiny => "taesd",
    };
    let components: Vec<_> = ["unet", "text_encoder", decoder]
        .into_iter()
        .filter(|component| !is_elsewhere(component))
        .collect();
    let wanted = Wanted::Model(&components, args.variant.as_deref());
    let mut source = Source::new(match &args.model {
        Some(model) => find(model, wanted)?,
        None => miniature(),
    });
    source.configs.clone_from(&args.configs);
    source.variant.clone_from(&args.variant);
    source.family = args.family;
    for component in &args.component {
        let (name, path) = component
            .split_once('=')
            .with_context(|| format!("--component {component}: expected NAME=PATH"))?;
        let path = find(path, Wanted::Component)?;
        source.components.insert(name.to_owned(), path);
    }
    // A name of a component, or else of something elsewhere.
    if args.unet == source.denoiser || source.model.join(&args.unet).is_dir() {
        source.denoiser.clone_from(&args.unet);
    } else {
        let path = find(&args.unet, Wanted::Component)?;
        source.components.insert(source.denoiser.clone(), path);
    }
    source.dtype = args.dtype;
    source.storage = args.storage;
    source.decoder = args.vae;
    source.tiling = args.tiled.then(Tiling::default);
    if args.low_memory {
        source.storage = source.storage.or(Some(DType::F16));
        source.tiling = Some(Tiling {
            side: 32,
            overlap: 8,
        });
    }
    for lora in &args.lora {
        let (file, weight) = match lora.rsplit_once('=') {
            Some((file, weight)) => (
                file,
                weight.parse().with_context(|| format!("--lora {lora}"))?,
            ),
            None => (lora.as_str(), 1.0),
        };
        source
            .adapters
            .push((find(file, Wanted::Component)?, weight));
    }
    Ok(source)
}

fn method(args: &Args, default: Method) -> Result<Method> {
    const STEPS: usize = 25;
    let kind = match args.sampler {
        Some(SamplerName::OneStep) => None,
        Some(SamplerName::Kind(kind)) => Some(kind),
        None => match (default, args.steps) {
            (method, None) => return Ok(method),
            (Method::OneStep, Some(_)) => Some(SamplerKind::Ddim),
            (Method::Sampler(kind, _), Some(_)) => Some(kind),
        },
    };
    match (kind, args.steps) {
        (None, None | Some(1)) => Ok(Method::OneStep),
        (None, Some(steps)) => bail!("--sampler one-step takes one step, not {steps}"),
        (Some(kind), steps) => Ok(Method::Sampler(kind, steps.unwrap_or(STEPS))),
    }
}

fn given(path: &Path, device: &Device) -> Result<Tensor<4>> {
    let data = Archive::open(path)?
        .read("noise")?
        .convert_dtype(DType::F32);
    let rank = data.shape().num_dims();
    ensure!(
        rank == 4,
        "{}: noise has {rank} axes, expected [batch, channels, height, width]",
        path.display()
    );
    Ok(Tensor::from_data(data, device))
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

    fn file(folder: &tempfile::TempDir, name: &str) -> String {
        folder.path().join(name).display().to_string()
    }

    #[test]
    fn a_picture_says_how_it_was_made() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = file(&folder, "picture.png");
        paint(&["--seed", "7", "--rng", "cpu", "--output", &path])?;
        let record = Record::read(Path::new(&path))?;
        assert_eq!((record.seed, record.rng), (7, Rng::Cpu));
        assert_eq!(record.prompt, "a red circle on a blue background");
        assert_eq!((record.method, record.size), (Method::OneStep, [32, 32]));
        let unet = &record.hashes["unet/diffusion_pytorch_model.safetensors"];
        assert_eq!(
            *unet,
            sha256(&miniature().join("unet/diffusion_pytorch_model.safetensors"))?
        );
        let text = record.parameters();
        let (prompt, line) = text.split_once('\n').context("there are two lines")?;
        assert_eq!(prompt, record.prompt);
        assert!(
            line.starts_with("Steps: 1, Sampler: SwiftBrush, CFG scale: 1, Seed: 7, Size: 32x32, "),
            "{line}"
        );
        assert!(
            line.contains(&format!("Model hash: {}", &unet[..10])),
            "{line}"
        );
        Ok(())
    }

    #[test]
    fn what_latin_1_does_not_have_is_kept_too() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = file(&folder, "picture.png");
        let args = [
            "generate",
            "円 \"ä\", a: b\nc",
            "--no-hashes",
            "--output",
            &path,
        ];
        super::paint(&Args::try_parse_from(args)?)?;
        let record = Record::read(Path::new(&path))?;
        assert_eq!(record.prompt, "円 \"ä\", a: b\nc");
        assert!(record.hashes.is_empty());
        Ok(())
    }

    #[test]
    fn pictures_without_a_record_and_other_files_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (plain, text) = (file(&folder, "plain.png"), file(&folder, "text.png"));
        image::RgbImage::new(3, 2).save(&plain)?;
        std::fs::write(&text, "no picture")?;
        for (path, reason) in [
            (&plain, "how it was made"),
            (&text, ""),
            (&file(&folder, "none"), ""),
        ] {
            let error = error(Record::read(Path::new(path)).map(drop).map_err(Into::into));
            assert!(
                error.contains(path.as_str()) && error.contains(reason),
                "{error}"
            );
        }
        let bytes = std::fs::read(&plain)?;
        for len in 0..bytes.len() {
            std::fs::write(&text, &bytes[..len])?;
            assert!(Record::read(Path::new(&text)).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_picture_can_be_painted_over_with_previews() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (first, second) = (file(&folder, "first.png"), file(&folder, "second.png"));
        paint(&["--output", &first])?;
        let steps = [
            "--sampler",
            "lcm",
            "--steps",
            "4",
            "--strength",
            "0.5",
            "--previews",
        ];
        paint(&[&steps[..], &["--image", &first, "--output", &second]].concat())?;
        let record = Record::read(Path::new(&second))?;
        let start = record.start.context("it began with the first")?;
        assert_eq!(
            (start.strength, start.sha256),
            (0.5, sha256(Path::new(&first))?)
        );
        assert!(Path::new(&file(&folder, "second.preview-002.png")).is_file());
        assert!(!Path::new(&file(&folder, "second.preview-003.png")).exists());
        Ok(())
    }

    #[test]
    fn the_least_memory_paints_nearly_the_same() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (first, second) = (file(&folder, "first.png"), file(&folder, "second.png"));
        paint(&["--output", &first])?;
        paint(&["--low-memory", "--output", &second])?;
        let (first, second) = (
            read_image(Path::new(&first))?,
            read_image(Path::new(&second))?,
        );
        // The miniature ships in f16: nothing is lost by keeping it so.
        assert_eq!(first, second);
        Ok(())
    }
}
