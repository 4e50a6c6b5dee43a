//! Pictures that generation starts from or that are edited, with their masks, checked before a model is loaded.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor};
use clap::Args;
use image::RgbImage;
use swiftbrush_images::{fit, round_down};
use swiftbrush_pipeline::edit::{AutomaticMask, Edit, Masking, Options, Refinement};
use swiftbrush_pipeline::{EditRecord, FileRecord, Mask, Method, Record, Start, StartRecord};

use examples_common::{enlargement, mask as mask_of, read_image, read_mask, shrunk, tensor};

/// The arguments of edits and masks.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// Picture to edit; the prompt describes the result. Needs a one-step model
    #[arg(long, conflicts_with_all = ["image", "noise", "previews", "low_memory"])]
    pub(crate) edit: Option<PathBuf>,
    /// Prompt that describes the whole picture to edit [default: that in the picture's record]
    #[arg(long, requires = "edit")]
    from: Option<String>,
    /// Greyscale mask of the same size as --edit or --image: black keeps every byte, white may change
    #[arg(long)]
    pub(crate) mask: Option<PathBuf>,
    /// Masks everything but the regions where the predictions for the two prompts differ most
    #[arg(long, requires = "edit", conflicts_with = "mask")]
    auto_mask: bool,
    /// Compares the prompts at one time instead of two, with half the samples
    #[arg(long, requires = "edit")]
    one_time: bool,
    /// Noisier time of an edit, above 0 and up to 1 [default: 0.9; with --one-time, 0.75]
    #[arg(long, requires = "edit")]
    edit_time: Option<f64>,
    /// Distance of the earlier time [default: 0.15]
    #[arg(long, requires = "edit", conflicts_with = "one_time")]
    edit_delta: Option<f64>,
    /// Size of the change: too low changes too little, too high spills beyond the edit [default: 1]
    #[arg(long, requires = "edit")]
    edit_step: Option<f64>,
    /// Number of noise samples that an edit is averaged over, 1 to 64 [default: 1]
    #[arg(long, requires = "edit")]
    edit_noises: Option<usize>,
    /// Skips the second call, which draws fine detail and changes more of the picture
    #[arg(long, requires = "edit")]
    no_refinement: bool,
    /// Share of the refinement in the result, 0 to 1 [default: 1]
    #[arg(long, requires = "edit", conflicts_with = "no_refinement")]
    blend: Option<f64>,
}

impl EditArgs {
    /// The options of the edit, which are checked.
    fn options(&self) -> Result<Options> {
        let mut options = match self.one_time {
            true => Options::one_time(),
            false => Options::default(),
        };
        let time = self.edit_time.unwrap_or(options.time);
        options = options
            .with_times(time, self.edit_delta.unwrap_or(options.delta))
            .with_step(self.edit_step.unwrap_or(options.step))
            .with_noises(self.edit_noises.unwrap_or(options.noises));
        let blend = self.blend.unwrap_or(Refinement::default().blend);
        let refinement = Refinement::default().with_blend(blend);
        let options = options.with_refinement((!self.no_refinement).then_some(refinement));
        options.check()?;
        Ok(options)
    }

    /// The prompt of the picture: given, or of its record.
    fn source_prompt(&self, path: &Path, record: &Result<&Record, String>) -> Result<String> {
        match (&self.from, record) {
            (Some(prompt), _) => Ok(prompt.clone()),
            (None, Ok(record)) => Ok(record.prompt.clone()),
            (None, Err(reason)) => bail!(
                "--edit {}: {reason}; say what the picture shows with --from PROMPT",
                path.display()
            ),
        }
    }
}

/// A picture of the size that generation has, and its mask.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) image: RgbImage,
    pub(crate) mask: Option<RgbImage>,
    pub(crate) purpose: Purpose,
}

/// The purpose of a picture.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Start(StartRecord),
    Edit(EditRecord),
}

impl Input {
    /// The picture of `--image` or `--edit`, in its own size.
    pub(crate) fn read(args: &crate::Args) -> Result<Option<Self>> {
        let edits = &args.edits;
        let Some(path) = args.image.as_ref().or(edits.edit.as_ref()) else {
            ensure!(
                edits.mask.is_none(),
                "--mask needs a picture to keep: give --image or --edit"
            );
            return Ok(None);
        };
        let image = read_image(path)?;
        let file = edits.mask.as_deref();
        let mask = file.map(|file| read_mask(file, &image)).transpose()?;
        let mask_record = file.map(FileRecord::of_file).transpose()?;
        if edits.edit.is_none() {
            let mut record = StartRecord::of_file(path, args.strength)?;
            record.mask = mask_record;
            let purpose = Purpose::Start(record);
            return Ok(Some(Self {
                image,
                mask,
                purpose,
            }));
        }
        let record = Record::read(path);
        let of_picture = record.as_ref().map_err(|error| reason(error, path));
        let record = EditRecord {
            image: FileRecord::of_file(path)?,
            source_prompt: edits.source_prompt(path, &of_picture)?,
            options: edits.options()?,
            automatic_mask: edits.auto_mask.then(AutomaticMask::default),
            mask: mask_record,
        };
        let input = Self {
            image,
            mask,
            purpose: Purpose::Edit(record),
        };
        Ok(Some(match of_picture {
            Ok(record) => input.without_enlargement(record),
            Err(_) => input,
        }))
    }

    /// The picture at the size at which it was generated, if each pixel was enlarged afterwards.
    fn without_enlargement(self, record: &Record) -> Self {
        let factor = enlargement(&self.image, record);
        if factor == 1 {
            return self;
        }
        let image = shrunk(&self.image, factor);
        let (width, height) = image.dimensions();
        eprintln!("the picture was enlarged {factor} times; it is edited at {width}x{height}");
        Self {
            image,
            mask: self.mask.as_ref().map(|mask| shrunk(mask, factor)),
            ..self
        }
    }

    /// The picture and its mask in `--size`, resized and cropped, or rounded down to multiples of `scale`.
    pub(crate) fn fitted(self, size: Option<[usize; 2]>, scale: usize) -> Result<Self> {
        let fitted = |image: &RgbImage| fitted(image, size, scale);
        let image = fitted(&self.image)?;
        if image.dimensions() != self.image.dimensions() {
            let [(width, height), (new_width, new_height)] =
                [&self.image, &image].map(RgbImage::dimensions);
            eprintln!("the picture of {width}x{height} is resized to {new_width}x{new_height}");
        }
        Ok(Self {
            image,
            mask: self.mask.as_ref().map(fitted).transpose()?,
            ..self
        })
    }

    /// Height and width.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.image.height(), self.image.width()].map(|side| side as usize)
    }

    fn images(&self, count: usize, device: &Device) -> Tensor<4> {
        tensor(&self.image, count, device)
    }

    fn mask(&self, device: &Device) -> Result<Option<Mask>> {
        let mask = self.mask.as_ref();
        mask.map(|picture| mask_of(picture, device)).transpose()
    }

    /// The picture as the start of `count` images; none if it is edited.
    pub(crate) fn start(&self, count: usize, device: &Device) -> Result<Option<Start>> {
        let Purpose::Start(record) = &self.purpose else {
            return Ok(None);
        };
        let mut start = Start::new(self.images(count, device), record.strength);
        start.mask = self.mask(device)?;
        Ok(Some(start))
    }

    /// The edit of the picture to each of these prompts; none if generation starts from it.
    pub(crate) fn edit(
        &self,
        prompts: &[String],
        method: Method,
        device: &Device,
    ) -> Result<Option<Edit>> {
        let Purpose::Edit(record) = &self.purpose else {
            return Ok(None);
        };
        let sources = vec![record.source_prompt.clone(); prompts.len()];
        let masking = match (record.automatic_mask, self.mask(device)?) {
            (Some(automatic), _) => Masking::Automatic(automatic),
            (None, Some(mask)) => Masking::Given(mask),
            (None, None) => Masking::None,
        };
        let images = self.images(prompts.len(), device);
        let edit = Edit::new(images, sources, prompts)
            .with_options(record.options)
            .with_masking(masking)
            .with_method(method);
        Ok(Some(edit))
    }
}

/// The cause of an error without the path, which the message has already.
fn reason(error: &swiftbrush_pipeline::Error, path: &Path) -> String {
    let text = error.to_string();
    let prefix = format!("{}: ", path.display());
    text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
}

/// A picture in `--size`, resized and cropped, or rounded down to multiples of `scale`; both as diffusers does.
fn fitted(image: &RgbImage, size: Option<[usize; 2]>, scale: usize) -> Result<RgbImage> {
    if let Some([height, width]) = size {
        crate::settings::check_size([height, width], scale, 1)?;
        return Ok(fit(image, width as u32, height as u32, scale as u32));
    }
    let (width, height) = image.dimensions();
    round_down(image, scale as u32).with_context(|| {
        format!("the picture has {width}x{height} pixels; expected at least {scale} a side")
    })
}
