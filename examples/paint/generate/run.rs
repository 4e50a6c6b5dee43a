//! Generation batch by batch, and the resulting files.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::{DType, Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_checkpoint::{LazyTensor, write_tensors};
use swiftbrush_kernels::release_mapped_weights;
use swiftbrush_pipeline::edit::Edit;
use swiftbrush_pipeline::{
    Between, BetweenRecord, Conditioning, Decoder, Generation, Given, Loader, Noise, Picture,
    Progress, Record, Request, Seeds, Stage, TextToImage, Watch,
};

use crate::inputs::Input;
use crate::jobs::Job;
use crate::{Args, STOP};
use examples_common::{enlarged, image, write_picture, write_png};

/// A model, loaded whole or one network at a time.
pub(crate) enum Painter {
    InTurn(Box<Loader>),
    AtOnce(Box<TextToImage>),
}

/// A run over all jobs.
pub(crate) struct Run<'a> {
    pub(crate) args: &'a Args,
    pub(crate) painter: Painter,
    /// The model's weights are in int8.
    pub(crate) is_int8: bool,
    pub(crate) input: Option<Input>,
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
            let is_last = done + batch.len() == jobs.len();
            let painting = self.generate(batch, is_last)?;
            if let Some(hashes) = self.hashes.take()? {
                self.record.hashes = hashes;
            }
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

    /// Generates a batch; in the last one, each network is needed once more at most.
    fn generate(&self, batch: &[Job], is_last: bool) -> Result<Generation> {
        let prompts: Vec<_> = batch.iter().map(|job| job.prompt.clone()).collect();
        let mut request = self.record.request().with_prompts(prompts.iter().cloned());
        let (mut edit, mut between) = (None, None);
        if let Some(input) = &self.input {
            request.start = input.start(batch.len(), &self.device)?;
            edit = input.edit(&prompts, request.method, &self.device)?;
        }
        let rng = self.record.rng;
        let seeds = Seeds::new(rng, batch.iter().map(|job| job.seed));
        let ends: Vec<_> = batch.iter().filter_map(|job| job.between.clone()).collect();
        let source: Box<dyn Noise> = match (&self.noise, ends.is_empty()) {
            (Some(noise), _) => Box::new(Given::from(noise.clone())),
            (None, true) => Box::new(seeds),
            (None, false) => {
                let last = Seeds::new(rng, ends.iter().map(|end| end.seed));
                let shares: Vec<_> = ends.iter().map(|end| end.share).collect();
                between = Some(self.painter.between(&request, &ends)?);
                Box::new(Between::new(seeds, last, shares))
            }
        };
        let first = None;
        let mut noise = Kept { source, first };
        let work = match (&edit, &between) {
            (Some(edit), _) => Work::Edit(edit),
            (None, Some(between)) => Work::Between(between, &request),
            (None, None) => Work::Generate(&request),
        };
        let painting = self.watch(work, &mut noise, is_last)?;
        if let (Some(path), Some(noise)) = (&self.args.save_tensors, noise.first) {
            save_tensors(path, &painting, noise)?;
        }
        Ok(painting)
    }

    /// Generates a batch, with a progress bar if there is more than one network call.
    fn watch(&self, work: Work<'_>, noise: &mut dyn Noise, is_last: bool) -> Result<Generation> {
        let bar = ProgressBar::new(work.n_calls() as u64);
        let template = "{bar:30} call {pos} of {len}, {eta} left";
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or(ProgressStyle::default_bar()));
        let mut report = |progress: Progress| {
            if is_last {
                self.release(&progress.stage);
            }
            self.show(progress.stage, &bar);
            match STOP.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let painting = self.painter.work(work, noise, &mut report);
        bar.finish_and_clear();
        painting
    }

    /// Releases the pages of weight files before a stage of the last batch, whose earlier networks are not needed again.
    ///
    /// Before the denoiser this saves the text encoder's pages, but those of the denoiser, which were read when its weights were
    /// checked, are read again: 0.3 s of processor time with 3.5 GB in f32, little with 0.9 GB in int8.
    fn release(&self, stage: &Stage) {
        let is_time = match stage {
            Stage::Call { done, .. } => *done == 0 && self.is_int8,
            Stage::Decoding { done, .. } => *done == 0,
            _ => false,
        };
        if is_time {
            release_mapped_weights();
        }
    }

    fn show(&self, stage: Stage, bar: &ProgressBar) {
        let Stage::Call {
            done,
            n_calls,
            expected,
        } = stage
        else {
            return;
        };
        if n_calls > 1 {
            bar.set_length(n_calls as u64);
            bar.set_position(done as u64);
        }
        if let (true, Painter::AtOnce(pipeline), Some(expected)) =
            (self.args.previews, &self.painter, expected)
            && let Err(error) = preview(self.args, &pipeline.decoder, expected, done)
        {
            bar.suspend(|| eprintln!("cannot write a preview: {error:#}"));
        }
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
                self.record.between.clone_from(&job.between);
                write_picture(&picture, &self.record, &job.path)?;
            }
        }
        eprintln!("wrote {}", job.path.display());
        Ok(())
    }
}

impl Painter {
    /// The whole model; edits and animations are rejected where it is not loaded at once.
    fn pipeline(&self) -> Result<&TextToImage> {
        match self {
            Self::AtOnce(pipeline) => Ok(pipeline),
            Self::InTurn(_) => bail!("--low-memory generates only from prompts and start images"),
        }
    }

    /// Embeddings between the first prompt of a request and the prompt of the other end.
    fn between(&self, request: &Request, ends: &[BetweenRecord]) -> Result<Conditioning> {
        let pipeline = self.pipeline()?;
        let first = |prompts: &[String]| prompts.first().cloned();
        let from = request.clone().with_prompts(first(&request.prompts));
        let last = ends.first().map(|end| end.prompt.clone());
        let to = pipeline.encode(&last.into_iter().collect::<Vec<_>>())?;
        let shares: Vec<_> = ends.iter().map(|end| end.share).collect();
        Ok(pipeline.encode_request(&from)?.interpolate(&to, &shares)?)
    }

    fn work(&self, work: Work<'_>, noise: &mut dyn Noise, watch: Watch<'_>) -> Result<Generation> {
        Ok(match (self, work) {
            (Self::InTurn(loader), Work::Generate(request)) => {
                loader.generate_sequentially(request, noise, watch)?
            }
            (Self::AtOnce(pipeline), Work::Generate(request)) => {
                pipeline.generate_with(request, noise, watch)?
            }
            (_, Work::Edit(edit)) => self.pipeline()?.edit_with(edit, noise, watch)?,
            (_, Work::Between(conditioning, request)) => {
                let pipeline = self.pipeline()?;
                pipeline.generate_encoded(conditioning, request, noise, watch)?
            }
        })
    }
}

/// A batch to generate.
#[derive(Clone, Copy)]
enum Work<'a> {
    Generate(&'a Request),
    Between(&'a Conditioning, &'a Request),
    Edit(&'a Edit),
}

impl Work<'_> {
    fn n_calls(self) -> usize {
        match self {
            Self::Generate(request) | Self::Between(_, request) => request.method.n_calls(),
            Self::Edit(edit) => edit.options.n_calls(),
        }
    }
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

    /// Waits for the hashes and takes them, once.
    fn take(&mut self) -> Result<Option<BTreeMap<String, String>>> {
        let Some(thread) = self.0.take() else {
            return Ok(None);
        };
        let hashes = thread.join();
        Ok(Some(hashes.map_err(|_| {
            anyhow!("hashing the model's files failed")
        })??))
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
