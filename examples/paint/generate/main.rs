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

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Tensor};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_checkpoint::{Archive, LazyTensor, sha256, write_tensors};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    Decoder, Given, Loader, Method, Noise, Painting, Picture, Progress, Record, Request, Seeds,
    Start, StartRecord, TextToImage,
};

use examples_common::model::{MethodArgs, ModelArgs};
use examples_common::{enlarged, read_image, write_picture};

/// Paints pictures from prompts.
#[derive(Debug, Parser)]
struct Args {
    /// What to paint.
    prompt: Option<String>,
    /// A file with a prompt on each line; pictures are then 00000.png, 00001.png … in that order.
    #[arg(long, conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// The first picture's seed; the next has the next.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures of each prompt.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// A picture to begin with instead of noise.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How much of that picture is lost in noise, 0 to 1.
    #[arg(long, default_value_t = 0.8, requires = "image")]
    strength: f64,
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

fn main() -> Result<()> {
    swiftbrush_kernels::keep_freed_memory();
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
    let device = args.model.device()?;
    let mut source = args.model.source()?;
    if args.low_memory {
        source.storage = source.storage.or(Some(DType::F16));
        source.tiling = Some(Tiling {
            side: 32,
            overlap: 8,
        });
    }
    // Set once; in tests it is already.
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));

    // Hashing reads every file to its end: beside loading and painting, not before.
    let hashes = (!args.no_hashes).then(|| {
        let source = source.clone();
        std::thread::spawn(move || source.hashes())
    });
    let begun = Instant::now();
    let loader = ModelArgs::loader(&source, &device)?;
    let scheduler = loader.scheduler()?;
    let method = args.method.method(Method::of_scheduler(&scheduler))?;
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
    let [height, width] = match (&start, &given, args.method.size) {
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
        device: args.model.device.clone(),
        prompt: String::new(),
        negative_prompt: args.method.negative_prompt.clone(),
        method,
        guidance: args.method.guidance,
        size: [height, width],
        seed: 0,
        rng: args.method.rng,
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
            .map(|picture| examples_common::tensor(picture, jobs.len(), &device));
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
                Some(_) => examples_common::write_png(&examples_common::image(&picture), &path)?,
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
        examples_common::write_png(&examples_common::image(picture), &output.with_extension(&name))?;
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
    match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => Ok(vec![prompt.clone()]),
        (None, Some(path)) => examples_common::read_prompts(path),
        (None, None) => bail!("say what to paint, or give --prompts FILE"),
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
mod tests;
