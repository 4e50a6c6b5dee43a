//! Generation batch by batch, and the resulting files.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn::tensor::{DType, Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_checkpoint::{LazyTensor, write_tensors};
use swiftbrush_pipeline::{
    Decoder, Generation, Given, Loader, Noise, Picture, Progress, Record, Request, Seeds, Stage,
    Start, TextToImage,
};

use crate::jobs::Job;
use crate::settings::StartImage;
use crate::{Args, STOP};
use examples_common::{enlarged, image, tensor, write_picture, write_png};

/// A model, loaded whole or one network at a time.
pub(crate) enum Painter {
    InTurn(Box<Loader>),
    AtOnce(Box<TextToImage>),
}

/// A run over all jobs.
pub(crate) struct Run<'a> {
    pub(crate) args: &'a Args,
    pub(crate) painter: Painter,
    pub(crate) start: Option<StartImage>,
    pub(crate) noise: Option<Tensor<4>>,
    pub(crate) device: Device,
    /// Record of all pictures, without prompt and seed.
    pub(crate) record: Record,
    pub(crate) hashes: Hashes,
}

impl Run<'_> {
    pub(crate) fn run(mut self, jobs: &[Job]) -> Result<()> {
        let mut done = 0;
        for batch in jobs.chunks(self.args.batch) {
            let begun = Instant::now();
            let painting = self.generate(batch)?;
            self.record.hashes = self.hashes.get()?;
            for warning in &painting.warnings {
                eprintln!("warning: {warning}");
            }
            let pictures = painting.pictures();
            for (index, (picture, job)) in pictures.iter().zip(batch).enumerate() {
                self.write(picture, job, [index, batch.len()])?;
            }
            done += batch.len();
            eprintln!(
                "{done} of {} pictures, {:.2} s for the last {}",
                jobs.len(),
                begun.elapsed().as_secs_f64(),
                batch.len()
            );
        }
        Ok(())
    }

    fn generate(&self, batch: &[Job]) -> Result<Generation> {
        let start = self.start.as_ref().map(|start| Start {
            images: tensor(&start.image, batch.len(), &self.device),
            strength: start.record.strength,
        });
        let mut request = self
            .record
            .request()
            .with_prompts(batch.iter().map(|job| job.prompt.clone()));
        request.start = start;
        let seeds = batch.iter().map(|job| job.seed);
        let mut noise = Kept {
            source: match &self.noise {
                Some(noise) => Box::new(Given::from(noise.clone())),
                None => Box::new(Seeds::new(self.record.rng, seeds)),
            },
            first: None,
        };
        let painting = watch(self.args, &self.painter, &request, &mut noise)?;
        if let (Some(path), Some(noise)) = (&self.args.save_tensors, noise.first) {
            save_tensors(path, &painting, noise)?;
        }
        Ok(painting)
    }

    fn write(&mut self, picture: &Picture, job: &Job, place: [usize; 2]) -> Result<()> {
        let picture = enlarged(picture, self.args.enlarge);
        match self.noise {
            // Noise from a file has no seed, so there is nothing to verify.
            Some(_) => write_png(&image(&picture), &job.path)?,
            None => {
                self.record.prompt.clone_from(&job.prompt);
                self.record.seed = job.seed;
                self.record.batch = place;
                write_picture(&picture, &self.record, &job.path)?;
            }
        }
        eprintln!("wrote {}", job.path.display());
        Ok(())
    }
}

/// Generates a batch, with a progress bar if there is more than one network call.
fn watch(
    args: &Args,
    painter: &Painter,
    request: &Request,
    noise: &mut dyn Noise,
) -> Result<Generation> {
    let bar = ProgressBar::new(request.method.n_calls() as u64);
    let template = "{bar:30} call {pos} of {len}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    let decoder = match painter {
        Painter::AtOnce(pipeline) if args.previews => Some(&pipeline.decoder),
        _ => None,
    };
    let mut report = |progress: Progress| {
        if let Stage::Call {
            done,
            n_calls,
            expected,
        } = progress.stage
        {
            if n_calls > 1 {
                bar.set_length(n_calls as u64);
                bar.set_position(done as u64);
            }
            if let (Some(decoder), Some(expected)) = (decoder, expected)
                && let Err(error) = preview(args, decoder, expected, done)
            {
                bar.suspend(|| eprintln!("cannot write a preview: {error:#}"));
            }
        }
        match STOP.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let painting = match painter {
        Painter::InTurn(loader) => loader.generate_sequentially(request, noise, &mut report),
        Painter::AtOnce(pipeline) => pipeline.generate_with(request, noise, &mut report),
    };
    bar.finish_and_clear();
    Ok(painting?)
}

fn preview(args: &Args, decoder: &Decoder, expected: Tensor<4>, call: usize) -> Result<()> {
    let images = decoder.decode(expected);
    let output = args.output.as_deref().unwrap_or(Path::new("picture.png"));
    let path = output.with_extension(format!("preview-{call:03}.png"));
    match Picture::of_images(images).first() {
        Some(picture) => write_png(&image(picture), &path),
        None => Ok(()),
    }
}

/// Hashes of the model's files, computed on another thread.
pub(crate) struct Hashes(
    Option<JoinHandle<Result<BTreeMap<String, String>, swiftbrush_pipeline::Error>>>,
);

impl Hashes {
    /// Starts hashing in parallel with loading and generation, unless `--no-hashes` is given.
    pub(crate) fn start(args: &Args, source: &swiftbrush_pipeline::Source) -> Self {
        Self((!args.no_hashes).then(|| {
            let source = source.clone();
            std::thread::spawn(move || source.hashes())
        }))
    }

    /// Waits for the hashes and takes them; later calls return nothing.
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

/// Noise that keeps its first draw.
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

fn save_tensors(path: &Path, painting: &Generation, noise: Tensor<4>) -> Result<()> {
    let f32 = |name, data: burn::tensor::TensorData| {
        LazyTensor::ready(name, data.convert_dtype(DType::F32))
    };
    let conditioning = &painting.conditioning;
    let tokens = conditioning.tokens.as_ref();
    let tokens = tokens.context("prompts are encoded with their tokens")?;
    let tokens = tokens.to_data().convert_dtype(DType::I64);
    let tensors = vec![
        LazyTensor::ready("tokens", tokens),
        f32("context", conditioning.context.to_data()),
        f32("noise", noise.to_data()),
        f32("latents", painting.latents.to_data()),
        f32("image", painting.images.to_data()),
    ];
    Ok(write_tensors(path, tensors, HashMap::new())?)
}
