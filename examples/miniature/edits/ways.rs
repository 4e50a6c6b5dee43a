//! Editing methods.

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use examples_common::pictures;
use image::RgbImage;
use swiftbrush_pipeline::edit::{AutomaticMask, Edit, Masking, Options};
use swiftbrush_pipeline::{Mask, Request, Rng, Seeds, Start, TextToImage};

use crate::data::{SIDE, images};
use crate::edits::tasks::{Kind, Task};
use crate::world::Scene;

/// Best strength of image to image, the same for all kinds: `edits --choose --count 48`, 2026-11-27.
const STRENGTHS: [f64; 4] = [0.95; 4];

/// The best options of ChordEdit for the miniature over all kinds among the first 40 that `edits --choose --count 48`
/// tries (2026-11-27): close to the last timestep, the only one at which its student was distilled, and without a
/// refinement.
pub(crate) fn chosen() -> Options {
    Options::default()
        .with_times(0.95, 0.1)
        .with_step(1.4)
        .with_refinement(None)
}

/// An editing method.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) name: String,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Chord(Options, Region),
    /// Image to image, with a strength for each kind.
    Image([f64; 4]),
    /// From the noise of the image.
    Again,
    /// Encoded and decoded.
    Nothing,
}

/// The part of an image that an edit may change.
#[derive(Clone, Copy, Debug)]
enum Region {
    Whole,
    Automatic(AutomaticMask),
    /// The square of the object that changes, if an object changes.
    Object,
}

impl Way {
    fn new(name: &str, how: How) -> Self {
        let name = name.to_owned();
        Self { name, how }
    }

    /// ChordEdit without a mask, named by its options unless a name is given.
    pub(crate) fn chord(name: &str, options: Options) -> Self {
        let refined = options.refinement.map_or("none".to_owned(), |refinement| {
            format!("{}/{}", refinement.time, refinement.blend)
        });
        let described = format!(
            "t {}, δ {}, λ {}, n {}, refined {refined}",
            options.time, options.delta, options.step, options.noises
        );
        let name = if name.is_empty() { &described } else { name };
        Self::new(name, How::Chord(options, Region::Whole))
    }

    pub(crate) fn image_to_image(strength: f64) -> Self {
        let name = format!("image to image, strength {strength:.2}");
        Self::new(&name, How::Image([strength; 4]))
    }

    /// The rows of the table, in order.
    pub(crate) fn all() -> Vec<Self> {
        let two = Options::default();
        let plain = two.with_times(two.time, 0.0);
        let chord = |name: &str, options, region| Self::new(name, How::Chord(options, region));
        let automatic = Region::Automatic(AutomaticMask::default());
        vec![
            Self::chord("ChordEdit, two times", two.with_refinement(None)),
            Self::chord("ChordEdit, two times, refined", two),
            Self::chord(
                "ChordEdit, one time",
                Options::one_time().with_refinement(None),
            ),
            Self::chord("ChordEdit, one time, refined", Options::one_time()),
            Self::chord("plain difference (δ = 0)", plain.with_refinement(None)),
            Self::chord("plain difference (δ = 0), refined", plain),
            chord("two times, refined, automatic mask", two, automatic),
            chord(
                "two times, refined, mask of the object",
                two,
                Region::Object,
            ),
            Self::new("image to image at its best", How::Image(STRENGTHS)),
            Self::new("generated again, same seed", How::Again),
            Self::chord("ChordEdit, chosen options", chosen()),
            chord("chosen options, automatic mask", chosen(), automatic),
            Self::new("only encoded and decoded", How::Nothing),
        ]
    }

    /// Samples of the network in each call.
    pub(crate) fn n_samples(&self) -> String {
        match &self.how {
            How::Chord(options, _) => match options.refinement {
                Some(_) => format!("{} + 1", options.n_samples()),
                None => options.n_samples().to_string(),
            },
            How::Image(_) | How::Again => "1".to_owned(),
            How::Nothing => "0".to_owned(),
        }
    }

    /// Edits a batch. Noise has other seeds than that of the images, except when generating again.
    pub(crate) fn paint(
        &self,
        pipeline: &TextToImage,
        kind: Kind,
        tasks: &[Task],
    ) -> Result<Vec<RgbImage>> {
        let device = pipeline.device();
        let captions = |scene: fn(&Task) -> &Scene| -> Vec<String> {
            tasks.iter().map(|task| scene(task).caption()).collect()
        };
        let targets = captions(|task| &task.target);
        let bytes: Vec<_> = tasks
            .iter()
            .map(|task| task.picture.as_raw().clone())
            .collect();
        let originals = images(&bytes, device);
        let seeds =
            |other: u64| Seeds::new(Rng::Native, tasks.iter().map(|task| task.seed ^ other));
        let others = &mut seeds(1 << 63);
        let request = Request::new(targets.iter().cloned());
        let painted = match &self.how {
            How::Chord(options, region) => {
                let edit = Edit::new(originals, captions(|task| &task.source), targets)
                    .with_options(*options)
                    .with_masking(region.masking(tasks, device));
                pipeline.edit(&edit, others)?.images
            }
            How::Image(strengths) => {
                let start = Start::new(originals, strengths[kind as usize]);
                pipeline
                    .generate(&request.with_start(start), others)?
                    .images
            }
            How::Again => pipeline.generate(&request, &mut seeds(0))?.images,
            How::Nothing => {
                let latents = pipeline.decoder.encode_mode(originals);
                pipeline.decoder.decode(latents)
            }
        };
        Ok(pictures(painted))
    }
}

impl Region {
    fn masking(self, tasks: &[Task], device: &Device) -> Masking {
        match self {
            Self::Whole => Masking::None,
            Self::Automatic(automatic) => Masking::Automatic(automatic),
            Self::Object => {
                let masks = tasks.iter().map(|task| {
                    let mask = Mask::from_bytes(SIDE, SIDE, &task.mask(), device);
                    mask.expect("a byte for each pixel").pixels
                });
                Masking::Given(Mask::new(Tensor::cat(masks.collect(), 0)))
            }
        }
    }
}
