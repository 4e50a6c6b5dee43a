//! Generates pictures again from their records, and compares them.
//!
//! ```sh
//! cargo run --release --example verify -- picture.png
//! cargo run --release --example verify -- --model elsewhere/sd-turbo picture.png
//! ```
//!
//! A picture fails if the hash of a model file differs from the record, or if a byte of its pixels differs by more than
//! `--tolerance`, which can be 0 on the device that generated it; other devices differ in the last bits. A picture from a batch
//! is generated in a batch of the same size, because the batch size affects the last bits, too.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "programs print")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Parser;
use image::RgbImage;
use swiftbrush_checkpoint::sha256;
use swiftbrush_images::{MAX_PIXELS, fit};
use swiftbrush_pipeline::edit::{Edit, Masking};
use swiftbrush_pipeline::{
    Between, EditRecord, FileRecord, InterpolationRecord, Record, Seeds, Source, Start,
};
use swiftbrush_weight_interp::interpolate;

use examples_common::{
    device, enlarged, enlargement, image, mask as mask_of, read_image, read_mask, shrunk, tensor,
};

/// Generates pictures again from their records, and compares them.
#[derive(Debug, Parser)]
struct Args {
    /// Pictures written by `generate`
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Model, if it has moved or the record contains only its name
    #[arg(long)]
    model: Option<PathBuf>,
    /// Adapters, in the order of the record, if they have moved; repeatable
    #[arg(long)]
    lora: Vec<PathBuf>,
    /// Start image or edited picture, if it has moved
    #[arg(long)]
    image: Option<PathBuf>,
    /// Mask, if it has moved
    #[arg(long)]
    mask: Option<PathBuf>,
    /// The denoiser that the model's own was interpolated with, if it has moved
    #[arg(long)]
    interpolated: Option<PathBuf>,
    /// Device [default: that of the record]
    #[arg(long)]
    device: Option<String>,
    /// Largest accepted difference of a pixel byte
    #[arg(long, default_value_t = 0)]
    tolerance: u8,
    /// Only prints the record
    #[arg(long)]
    show: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for path in &args.pictures {
        verify(&args, path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn verify(args: &Args, path: &Path) -> Result<()> {
    let record = Record::read(path)?;
    if args.show {
        println!("{}", serde_json::to_string_pretty(&record)?);
        return Ok(());
    }
    check(&record)?;
    let record = located(args, record)?;
    check_hashes(&record)?;
    let expected = read_image(path)?;
    let found = generate(args, &record)?;
    let worst = compare(&found, &expected, args.tolerance)?;
    let [_, batch] = record.batch;
    let how = match batch {
        1 => String::new(),
        _ => format!(", generated in a batch of {batch}, as originally"),
    };
    eprintln!(
        "{}: as recorded, largest difference {worst}{how}",
        path.display()
    );
    Ok(())
}

/// Checks the size of the enlarged picture; [`Record::read`] has checked everything else.
fn check(record: &Record) -> Result<()> {
    let [height, width] = record.size;
    let enlarged = u128::from(record.enlarged);
    let pixels = (width as u128).saturating_mul(height as u128);
    ensure!(
        (1..=u128::from(MAX_PIXELS)).contains(&pixels.saturating_mul(enlarged * enlarged)),
        "the record has a picture of {width}x{height}, enlarged {enlarged} times; expected at most {MAX_PIXELS} pixels"
    );
    Ok(())
}

/// The record with the current paths of its files, each of which must be a regular file or a folder.
fn located(args: &Args, mut record: Record) -> Result<Record> {
    let adapters = record.source.adapters.len();
    ensure!(
        args.lora.is_empty() || args.lora.len() == adapters,
        "found {} --lora; expected {adapters}, as in the record",
        args.lora.len()
    );
    for ((path, _), now) in record.source.adapters.iter_mut().zip(&args.lora) {
        path.clone_from(now);
    }
    if let Some(model) = &args.model {
        record.source.model.clone_from(model);
    }
    if let (Some(interpolation), Some(other)) = (&mut record.interpolation, &args.interpolated) {
        interpolation.other.clone_from(other);
    }
    move_inputs(args, &mut record);
    let inputs = inputs(&record);
    let source = &record.source;
    let others = source.configs.iter().chain(source.components.values());
    let files = others.map(|path| (path, "--model"));
    let adapters = source.adapters.iter().map(|(path, _)| (path, "--lora"));
    let inputs = inputs.iter().map(|(input, option)| (&input.file, *option));
    let all = std::iter::once((&source.model, "--model"));
    let others = record
        .interpolation
        .iter()
        .map(|it| (&it.other, "--interpolated"));
    for (path, option) in all.chain(others).chain(files).chain(adapters).chain(inputs) {
        ensure!(
            path.is_dir() || path.is_file(),
            "the record names {}, which is not a file or folder here: give {option} PATH",
            path.display()
        );
    }
    Ok(record)
}

/// Sets where the picture that the recorded one was made from is now, and its mask.
fn move_inputs(args: &Args, record: &mut Record) {
    let (start, edit) = (&mut record.start, &mut record.edit);
    if let Some(image) = &args.image {
        let of_start = start.iter_mut().map(|start| &mut start.file);
        let of_edit = edit.iter_mut().map(|edit| &mut edit.image.file);
        of_start
            .chain(of_edit)
            .for_each(|file| file.clone_from(image));
    }
    if let Some(mask) = &args.mask {
        let of_start = start.iter_mut().filter_map(|start| start.mask.as_mut());
        let of_edit = edit.iter_mut().filter_map(|edit| edit.mask.as_mut());
        let masks = of_start.chain(of_edit);
        masks.for_each(|file| file.file.clone_from(mask));
    }
}

/// Pictures that the recorded one was made from, with the option that says where each is now.
fn inputs(record: &Record) -> Vec<(FileRecord, &'static str)> {
    let pair = |image: FileRecord, mask: &Option<FileRecord>| {
        let mask = mask.clone().map(|mask| (mask, "--mask"));
        std::iter::once((image, "--image")).chain(mask)
    };
    let start = record.start.iter().flat_map(|start| {
        let (file, sha256) = (start.file.clone(), start.sha256.clone());
        pair(FileRecord { file, sha256 }, &start.mask)
    });
    let edit = record.edit.iter();
    let edit = edit.flat_map(|edit| pair(edit.image.clone(), &edit.mask));
    start.chain(edit).collect()
}

/// Checks the hashes of the model's files and of pictures.
fn check_hashes(record: &Record) -> Result<()> {
    let expect = |file: &str, found: &str, expected: &str| {
        ensure!(
            found == expected,
            "{file} has changed: expected SHA-256 {expected}, found {found}"
        );
        Ok(())
    };
    if !record.hashes.is_empty() {
        let hashes = record.source.hashes()?;
        for (file, expected) in &record.hashes {
            let found = hashes.get(file).map_or("no such file", String::as_str);
            expect(file, found, expected)?;
        }
    }
    if let Some(interpolation) = &record.interpolation {
        let other = interpolation_source(record, &interpolation.other);
        for path in other.model()?.weight_files(&other.options.denoiser) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(expected) = interpolation.hashes.get(name.as_ref()) {
                expect(&path.display().to_string(), &sha256(&path)?, expected)?;
            }
        }
    }
    for (input, _) in inputs(record) {
        let file = input.file.display().to_string();
        expect(&file, &sha256(&input.file)?, &input.sha256)?;
    }
    Ok(())
}

/// The source with another denoiser.
fn interpolation_source(record: &Record, other: &Path) -> Source {
    let mut source = record.source.clone();
    let denoiser = source.options.denoiser.clone();
    source.components.insert(denoiser, other.to_owned());
    source
}

/// Generates the recorded picture again in a batch of the recorded size.
fn generate(args: &Args, record: &Record) -> Result<RgbImage> {
    let device = device(args.device.as_deref().unwrap_or(&record.device))?;
    let loader = record.source.loader(&device)?;
    let scale = loader.scale()?;
    let mut pipeline = loader.load()?;
    pipeline.scheduler = record.scheduler.clone();
    if let Some(InterpolationRecord { lambda, other, .. }) = &record.interpolation {
        let other = interpolation_source(record, other)
            .loader(&device)?
            .unet()?;
        pipeline.unet = interpolate(pipeline.unet, &other, *lambda)?;
    }
    let [index, batch] = record.batch;
    let seeds = |seed| Seeds::new(record.rng, std::iter::repeat_n(seed, batch));
    let mut noise = seeds(record.seed);
    let prompts = vec![record.prompt.clone(); batch];
    let mut request = record.request().with_prompts(prompts.iter().cloned());
    request.start = start(record, batch, scale, &device)?;
    let painting = match (&record.edit, &record.between) {
        (Some(edit), _) => {
            let edit = again(edit, record, prompts, scale, &device)?;
            pipeline.edit(&edit, &mut noise)?
        }
        (None, Some(between)) => {
            let shares = vec![between.share; batch];
            let first = request.clone().with_prompts([record.prompt.as_str()]);
            let last = pipeline.encode(&[&between.prompt])?;
            let conditioning = pipeline
                .encode_request(&first)?
                .interpolate(&last, &shares)?;
            let noise = &mut Between::new(noise, seeds(between.seed), shares);
            let mut watch = |_| ControlFlow::Continue(());
            pipeline.generate_encoded(&conditioning, &request, noise, &mut watch)?
        }
        (None, None) => pipeline.generate(&request, &mut noise)?,
    };
    let pictures = painting.pictures();
    let picture = pictures.get(index).context("a picture for each prompt")?;
    Ok(image(&enlarged(picture, record.enlarged)))
}

/// The start image, fitted as in `generate`.
fn start(record: &Record, batch: usize, scale: usize, device: &Device) -> Result<Option<Start>> {
    let Some(start) = &record.start else {
        return Ok(None);
    };
    let image = read_image(&start.file)?;
    let mask = start.mask.as_ref();
    let mask = mask.map(|mask| read_mask(&mask.file, &image)).transpose()?;
    let [height, width] = record.size.map(|side| side as u32);
    let fitted = |image: &RgbImage| fit(image, width, height, scale as u32);
    let mut start = Start::new(tensor(&fitted(&image), batch, device), start.strength);
    let mask = mask.map(|mask| mask_of(&fitted(&mask), device));
    start.mask = mask.transpose()?;
    Ok(Some(start))
}

/// The edit, as in `generate`.
fn again(
    edit: &EditRecord,
    record: &Record,
    prompts: Vec<String>,
    scale: usize,
    device: &Device,
) -> Result<Edit> {
    let file = &edit.image.file;
    let picture = read_image(file)?;
    let factor = Record::read(file).map_or(1, |record| enlargement(&picture, &record));
    let mask = edit.mask.as_ref();
    let mask = mask
        .map(|mask| read_mask(&mask.file, &picture))
        .transpose()?;
    let [height, width] = record.size.map(|side| side as u32);
    let fitted = |image: &RgbImage| fit(&shrunk(image, factor), width, height, scale as u32);
    let sources = vec![edit.source_prompt.clone(); prompts.len()];
    let masking = match (edit.automatic_mask, mask) {
        (Some(automatic), _) => Masking::Automatic(automatic),
        (None, Some(mask)) => Masking::Given(mask_of(&fitted(&mask), device)?),
        (None, None) => Masking::None,
    };
    let images = tensor(&fitted(&picture), prompts.len(), device);
    Ok(Edit::new(images, sources, prompts)
        .with_options(edit.options)
        .with_masking(masking)
        .with_method(record.method))
}

/// The largest difference of a byte, if it is within `tolerance`.
fn compare(found: &RgbImage, expected: &RgbImage, tolerance: u8) -> Result<u8> {
    ensure!(
        found.dimensions() == expected.dimensions(),
        "expected {:?} pixels, generated {:?}",
        expected.dimensions(),
        found.dimensions()
    );
    let differences = found.iter().zip(expected.iter());
    let differences: Vec<_> = differences.map(|(a, b)| a.abs_diff(*b)).collect();
    let worst = differences.iter().max().copied().unwrap_or_default();
    let count = differences.iter().filter(|&&by| by > tolerance).count();
    ensure!(
        count == 0,
        "{count} of {} bytes differ by more than {tolerance}, by at most {worst}",
        differences.len()
    );
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swiftbrush_pipeline::{BetweenRecord, Picture, Request, Rng, Source, StartRecord};

    use super::*;
    use examples_common::{miniature, write_picture};

    fn record() -> Result<Record> {
        let source = Source::new(miniature());
        let hashes: BTreeMap<_, _> = source.hashes()?;
        let scheduler = source.loader(&Device::flex())?.scheduler()?;
        let request = Request::new(Vec::<String>::new());
        let mut record = Record::with_parts(&source, &request, [32, 32], scheduler);
        record = record.with_image("a red circle", 3);
        record.source = source;
        record.hashes = hashes;
        record.device = "flex".to_owned();
        record.enlarged = 2;
        Ok(record)
    }

    /// Verifies a changed picture that has a record.
    fn verified(record: &Record, change: impl FnOnce(&mut Picture), more: &[&str]) -> Result<()> {
        let pipeline = record.source.loader(&Device::flex())?.load()?;
        let original = self::record()?;
        let seeds = &mut Seeds::new(Rng::Native, [3]);
        let painting = pipeline.generate(&original.request(), seeds)?;
        let mut picture = enlarged(&painting.pictures()[0], 2);
        change(&mut picture);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("picture.png");
        write_picture(&picture, record, &path)?;
        let program = ["verify".as_ref(), path.as_os_str()].into_iter();
        let args = Args::try_parse_from(program.chain(more.iter().map(AsRef::as_ref)))?;
        verify(&args, &path)
    }

    #[track_caller]
    fn rejected(record: &Record, expected: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("picture.png");
        let picture = Picture {
            width: 2,
            height: 2,
            bytes: vec![0; 12],
        };
        write_picture(&picture, record, &path).expect("it can be written");
        let args = Args::try_parse_from(["verify".as_ref(), path.as_os_str()]);
        let error = verify(&args.expect("they are right"), &path).expect_err(expected);
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_picture_is_verified_until_a_pixel_changes() -> Result<()> {
        let record = record()?;
        verified(&record, |_| (), &[])?;
        let change = |picture: &mut Picture| picture.bytes[100] ^= 4;
        let error = verified(&record, change, &[]).expect_err("a pixel was changed");
        let error = error.to_string();
        assert!(error.contains("1 of 12288 bytes differ"), "{error}");
        verified(&record, change, &["--tolerance", "4"])
    }

    #[test]
    fn a_picture_of_two_denoisers_is_verified_with_both() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("picture.png");
        let (mut record, device) = (record()?, Device::flex());
        let other = miniature().join("../teacher");
        record.enlarged = 1;
        let mut pipeline = record.source.loader(&device)?.load()?;
        let second = interpolation_source(&record, &other)
            .loader(&device)?
            .unet()?;
        pipeline.unet = interpolate(pipeline.unet, &second, 0.75)?;
        let seeds = &mut Seeds::new(Rng::Native, [3]);
        let painting = pipeline.generate(&record.request(), seeds)?;
        let verified = |record: &Record, more: &[&str]| {
            write_picture(&painting.pictures()[0], record, &path)?;
            let program = ["verify".as_ref(), path.as_os_str()].into_iter();
            let args = Args::try_parse_from(program.chain(more.iter().map(AsRef::as_ref)))?;
            verify(&args, &path)
        };
        let mut interpolation = InterpolationRecord {
            lambda: 0.75,
            other: "elsewhere".into(),
            hashes: BTreeMap::new(),
        };
        let moved = ["--interpolated", other.to_str().context("a path")?];
        record.interpolation = Some(interpolation.clone());
        verified(&record, &moved)?;
        let error = verified(&record, &[]).expect_err("it is not there");
        assert!(error.to_string().contains("give --interpolated"), "{error}");
        interpolation.lambda = 0.5;
        record.interpolation = Some(interpolation.clone());
        let error = verified(&record, &moved).expect_err("another share");
        assert!(error.to_string().contains("bytes differ"), "{error}");
        let weights = "diffusion_pytorch_model.safetensors".to_owned();
        interpolation.hashes.insert(weights, "0".to_owned());
        record.interpolation = Some(interpolation);
        let error = verified(&record, &moved).expect_err("another file");
        assert!(error.to_string().contains("has changed"), "{error}");
        Ok(())
    }

    /// An edit of an enlarged picture, and a picture between two prompts.
    #[test]
    fn edits_and_frames_are_verified() -> Result<()> {
        let (folder, device) = (tempfile::tempdir()?, Device::flex());
        let [first, second] = ["first.png", "second.png"].map(|name| folder.path().join(name));
        let (mut record, seeds) = (record()?, || Seeds::new(Rng::Native, [3]));
        let pipeline = record.source.loader(&device)?.load()?;
        let verified = |record: &Record, picture: &Picture| {
            write_picture(&enlarged(picture, 2), record, &second)?;
            let args = Args::try_parse_from(["verify".as_ref(), second.as_os_str()])?;
            verify(&args, &second)
        };
        let painting = pipeline.generate(&record.request(), &mut seeds())?;
        let picture = &painting.pictures()[0];
        write_picture(&enlarged(picture, 2), &record, &first)?;

        let edit = Edit::of_picture(picture, "a red circle", "a blue circle", &device)?;
        let edited = pipeline.edit(&edit, &mut seeds())?;
        let mut of_edit = record.clone().with_image("a blue circle", 3);
        of_edit.edit = Some(EditRecord {
            image: FileRecord::of_file(&first)?,
            source_prompt: "a red circle".to_owned(),
            options: edit.options,
            automatic_mask: None,
            mask: None,
        });
        verified(&of_edit, &edited.pictures()[0])?;
        std::fs::write(&first, "another")?;
        let error = verified(&of_edit, &edited.pictures()[0]).expect_err("it has changed");
        assert!(error.to_string().contains("has changed"), "{error}");

        let [from, to] = ["a red circle", "a blue ring"].map(|prompt| pipeline.encode(&[prompt]));
        let conditioning = from?.interpolate(&to?, &[0.5])?;
        let noise = &mut Between::new(seeds(), Seeds::new(Rng::Native, [4]), [0.5]);
        let watch = &mut |_| ControlFlow::Continue(());
        let request = record.request();
        let painting = pipeline.generate_encoded(&conditioning, &request, noise, watch)?;
        record.between = Some(BetweenRecord {
            prompt: "a blue ring".to_owned(),
            seed: 4,
            share: 0.5,
        });
        verified(&record, &painting.pictures()[0])
    }

    #[test]
    fn another_seed_or_model_is_noticed() -> Result<()> {
        let mut other = record()?;
        other.seed = 4;
        assert!(verified(&other, |_| (), &[]).is_err());
        let mut other = record()?;
        let unet = "unet/diffusion_pytorch_model.safetensors";
        other.hashes.insert(unet.to_owned(), "0".repeat(64));
        let error = verified(&other, |_| (), &[])
            .expect_err("it is another model")
            .to_string();
        assert!(error.contains(unet), "{error}");
        Ok(())
    }

    #[test]
    fn records_with_names_need_the_paths() -> Result<()> {
        let mut record = record()?;
        let model = record.source.model.display().to_string();
        record.source.model = "no such model".into();
        rejected(&record, "give --model PATH");
        verified(&self::record()?, |_| (), &["--model", &model])?;
        record = self::record()?;
        record.source.adapters = vec![("no such file".into(), 1.0)];
        rejected(&record, "give --lora PATH");
        Ok(())
    }

    #[test]
    fn records_are_not_trusted() -> Result<()> {
        type Change = fn(&mut Record);
        let changes: [(&str, Change); 9] = [
            ("enlarged 1000000", |of| of.enlarged = 1_000_000),
            ("enlarged 0", |of| of.enlarged = 0),
            ("the limit is 67108864 pixels", |of| {
                of.size = [usize::MAX; 2];
            }),
            ("expected at most 178956970 pixels", |of| {
                (of.size, of.enlarged) = ([4096, 4096], 64);
            }),
            ("a batch of 10000", |of| of.batch = [0, 10_000]),
            ("image 1 of a batch of 1", |of| of.batch = [1, 1]),
            ("num_train_timesteps", |of| {
                of.scheduler.num_train_timesteps = 0;
            }),
            ("not a file or folder", |of| {
                of.source.model = "/dev/zero".into();
            }),
            ("not a file or folder", |of| {
                of.start = Some(StartRecord {
                    file: "/dev/zero".into(),
                    sha256: String::new(),
                    strength: 0.5,
                    mask: None,
                });
            }),
        ];
        for (expected, change) in changes {
            let mut record = record()?;
            change(&mut record);
            rejected(&record, expected);
        }
        Ok(())
    }
}
