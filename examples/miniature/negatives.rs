//! Measures negative prompts in one network call: what they remove from images, and what that costs.

use std::ops::ControlFlow;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;
use examples_common::pictures;
use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_pipeline::{Given, NegativeMethod, Request, TextToImage, noise};
use swiftbrush_trainer::Threads;

use crate::model::Workshop;
use crate::protocol::{Captions, Interval, Paired, Set};
use crate::scorer::{objects, score};
use crate::training::PARTS;
use crate::world::{COLORS, HeldOut, SHAPES, Scene};

/// Images in a batch.
const BATCH: usize = 64;
/// Maximum number of objects to find in an image, one more than in a caption.
const OBJECTS: usize = 3;

/// Denoiser, captions and methods of a measurement.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of the denoiser, a one-step student.
    name: String,
    /// Captions of each row.
    #[arg(long, default_value_t = 2048)]
    captions: usize,
    /// Caption set.
    #[arg(long, value_enum, default_value = "choose")]
    set: Set,
    /// Wording of the negative prompts.
    #[arg(long, value_enum, default_value = "word")]
    wording: Wording,
    /// Methods: nasa/SCALE, nag/SCALE or guidance/SCALE.
    #[arg(long, num_args = 1.., default_values = ["nasa/0.2", "nag/2", "guidance/1.5"])]
    methods: Vec<Steering>,
}

/// Wording of a negative prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Wording {
    /// Only the unwanted thing, as users write it: "star".
    Word,
    /// The caption with the unwanted thing in it: "a red star on a blue background", for "a red circle on a blue
    /// background". The text encoder was trained only on captions.
    Caption,
}

/// A method of applying a negative prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Steering {
    Attention(NegativeMethod),
    Guidance(f64),
}

impl FromStr for Steering {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || format!("{text}: expected nasa/SCALE, nag/SCALE or guidance/SCALE");
        let (name, scale) = text.split_once('/').with_context(wrong)?;
        let scale = scale.parse().with_context(wrong)?;
        Ok(match name {
            "nasa" => Self::Attention(NegativeMethod::NASA.with_scale(scale)),
            "nag" => Self::Attention(NegativeMethod::NAG.with_scale(scale)),
            "guidance" => Self::Guidance(scale),
            _ => bail!(wrong()),
        })
    }
}

impl std::fmt::Display for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attention(method) => method.fmt(f),
            Self::Guidance(scale) => write!(f, "guidance {scale}"),
        }
    }
}

/// A thing that a negative prompt names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unwanted {
    Shape(usize),
    Color(usize),
    Ground(usize),
}

impl Unwanted {
    fn word(self) -> String {
        match self {
            Self::Shape(shape) => SHAPES[shape].to_owned(),
            Self::Color(color) => COLORS[color].0.to_owned(),
            Self::Ground(color) => format!("{} background", COLORS[color].0),
        }
    }

    /// The scene with the unwanted thing in it, as its first object or as its ground.
    fn in_scene(self, scene: &Scene) -> Scene {
        match self {
            Self::Shape(shape) => scene.with_object(0, |object| object.shape = shape),
            Self::Color(color) => scene.with_object(0, |object| object.color = color),
            Self::Ground(ground) => Scene { ground, ..*scene },
        }
    }

    fn is_in(self, picture: &[u8]) -> bool {
        let (ground, objects) = objects(picture, OBJECTS);
        match self {
            Self::Shape(shape) => objects.iter().any(|object| object.shape == shape),
            Self::Color(color) => {
                ground == color || objects.iter().any(|object| object.color == color)
            }
            Self::Ground(color) => ground == color,
        }
    }
}

/// Rows of the table: the captions, and the choice of the unwanted thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// A shape that the caption does not name.
    Shape,
    /// The same for captions with a held-out pair, of which every second image has a wrong shape.
    UnseenShape,
    /// A colour that the caption does not name.
    Color,
    /// A colour of the ground, which the prompt leaves open.
    OpenGround,
    /// The shape of an object in the caption itself.
    NamedShape,
}

const ROWS: [Row; 5] = [
    Row::Shape,
    Row::UnseenShape,
    Row::Color,
    Row::OpenGround,
    Row::NamedShape,
];

/// A prompt with the thing to keep out.
struct Case {
    scene: Scene,
    prompt: String,
    unwanted: Unwanted,
}

impl Case {
    fn negative(&self, wording: Wording) -> String {
        match wording {
            Wording::Word => self.unwanted.word(),
            Wording::Caption => self.unwanted.in_scene(&self.scene).caption(),
        }
    }
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Self::Shape => "another shape",
            Self::UnseenShape => "another shape, held-out pair",
            Self::Color => "another colour",
            Self::OpenGround => "background, if the prompt names none",
            Self::NamedShape => "a shape of the caption",
        }
    }

    fn captions(self, set: Set) -> Captions {
        let class = match self {
            Self::UnseenShape => HeldOut::Any,
            _ => HeldOut::None,
        };
        Captions { set, class }
    }

    fn case(self, scene: Scene, rng: &mut ChaCha8Rng) -> Case {
        let named = scene.objects();
        let mut other_color = |with_ground: bool| loop {
            let color = rng.random_range(0..COLORS.len());
            let is_named = named.iter().any(|object| object.color == color);
            if !is_named && (with_ground || color != scene.ground) {
                return color;
            }
        };
        let caption = scene.caption();
        let (mut prompt, on_ground) = (caption.clone(), caption.rsplit_once(" on "));
        let unwanted = match self {
            Self::Color => Unwanted::Color(other_color(false)),
            Self::OpenGround => {
                prompt = on_ground.map_or(prompt, |(objects, _)| objects.to_owned());
                Unwanted::Ground(other_color(true))
            }
            Self::NamedShape => Unwanted::Shape(named[rng.random_range(0..named.len())].shape),
            Self::Shape | Self::UnseenShape => Unwanted::Shape(loop {
                let shape = rng.random_range(0..SHAPES.len());
                if named.iter().all(|object| object.shape != shape) {
                    break shape;
                }
            }),
        };
        Case {
            scene,
            prompt,
            unwanted,
        }
    }

    /// True if the image has everything that its prompt names.
    fn is_right(self, picture: &[u8], case: &Case) -> bool {
        let score = score(picture, &case.scene);
        let is_ground_open = self == Self::OpenGround;
        score.color && score.shape && score.relation && (score.ground || is_ground_open)
    }
}

/// Outcomes per caption.
struct Outcomes {
    unwanted: Vec<bool>,
    right: Vec<bool>,
}

/// Prints a row for each group of captions and each method, after one without a negative prompt.
pub(crate) fn negatives(workshop: &Workshop, options: &Options) -> Result<()> {
    let pipeline = workshop.pipeline(&options.name)?;
    println!(
        "| negative prompt | method | calls | unwanted | difference | all right | difference |"
    );
    println!("|---|---|---|---|---|---|---|");
    for row in ROWS {
        if row == Row::NamedShape && options.wording == Wording::Caption {
            // The caption is the prompt itself.
            continue;
        }
        let captions = row.captions(options.set);
        let mut scenes = captions.scenes();
        ensure!(
            options.captions <= scenes.len(),
            "--captions {}: the set has {}",
            options.captions,
            scenes.len()
        );
        scenes.truncate(options.captions);
        let mut rng = ChaCha8Rng::seed_from_u64(workshop.seed);
        let cases: Vec<_> = scenes.into_iter().map(|s| row.case(s, &mut rng)).collect();
        let measure = |steering| {
            let seed = captions.noise_seed(0);
            outcomes(&pipeline, row, &cases, seed, steering, options.wording)
        };
        let plain = measure(None)?;
        print_row(row, None, &plain, &plain)?;
        for steering in &options.methods {
            print_row(row, Some(*steering), &measure(Some(*steering))?, &plain)?;
        }
    }
    Ok(())
}

fn print_row(
    row: Row,
    steering: Option<Steering>,
    found: &Outcomes,
    plain: &Outcomes,
) -> Result<()> {
    let calls = match steering {
        Some(Steering::Guidance(_)) => 2,
        _ => 1,
    };
    let name = steering.map_or("none".to_owned(), |steering| steering.to_string());
    let difference = |found: &[bool], plain: &[bool]| -> Result<String> {
        Ok(match steering {
            None => String::new(),
            Some(_) => format!("{:+.3}", Paired::new(found, plain)?.difference),
        })
    };
    println!(
        "| {} | {name} | {calls} | {:.3} | {} | {:.3} | {} |",
        row.name(),
        Interval::of_share(&found.unwanted),
        difference(&found.unwanted, &plain.unwanted)?,
        Interval::of_share(&found.right),
        difference(&found.right, &plain.right)?,
    );
    Ok(())
}

/// Generates and scores an image of each case; the noise is that of the protocol, the same for all methods.
fn outcomes(
    pipeline: &TextToImage,
    row: Row,
    cases: &[Case],
    first_seed: u64,
    steering: Option<Steering>,
    wording: Wording,
) -> Result<Outcomes> {
    let batches: Vec<_> = (first_seed..).zip(cases.chunks(BATCH)).collect();
    let painted = Threads::new(PARTS as usize).map(&batches, |&(seed, cases)| {
        paint(pipeline, cases, seed, steering, wording)
    });
    let painted: Result<Vec<_>> = painted.into_iter().collect();
    let painted: Vec<_> = painted?.into_iter().flatten().collect();
    let pairs = || cases.iter().zip(&painted);
    Ok(Outcomes {
        unwanted: pairs().map(|(case, p)| case.unwanted.is_in(p)).collect(),
        right: pairs().map(|(case, p)| row.is_right(p, case)).collect(),
    })
}

fn paint(
    pipeline: &TextToImage,
    cases: &[Case],
    seed: u64,
    steering: Option<Steering>,
    wording: Wording,
) -> Result<Vec<RgbImage>> {
    let prompts: Vec<_> = cases.iter().map(|case| case.prompt.as_str()).collect();
    let negatives: Vec<_> = cases.iter().map(|case| case.negative(wording)).collect();
    let conditioning = pipeline.encode(&prompts)?;
    let conditioning = conditioning.with_negative(pipeline.encode(&negatives)?.context);
    let request = Request::new(prompts);
    let request = match steering {
        None => request,
        Some(Steering::Attention(method)) => request.with_negative_method(method),
        Some(Steering::Guidance(scale)) => request.with_guidance(scale),
    };
    let noise = noise(pipeline.latent_shape(cases.len()), seed, pipeline.device());
    let painting = pipeline.generate_encoded(
        &conditioning,
        &request,
        &mut Given::from(noise),
        &mut |_| ControlFlow::Continue(()),
    )?;
    Ok(pictures(painting.images))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SIDE;

    #[test]
    fn methods_are_read_by_name() {
        let read = |text: &str| text.parse::<Steering>();
        let nag = NegativeMethod::NAG.with_scale(3.0);
        assert_eq!(read("nag/3").unwrap(), Steering::Attention(nag));
        assert_eq!(read("guidance/1.5").unwrap(), Steering::Guidance(1.5));
        for text in ["nasa", "nasa/x", "other/1"] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn unwanted_things_are_found_in_images_that_have_them_and_nowhere_else() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for row in ROWS {
            let scenes = row.captions(Set::Choose).scenes();
            let (mut found, mut right) = (0, 0);
            for scene in scenes.into_iter().take(200) {
                let case = row.case(scene, &mut rng);
                let picture = scene.draw(SIDE, &mut rng);
                found += usize::from(case.unwanted.is_in(&picture));
                right += usize::from(row.is_right(&picture, &case));
            }
            assert!(right >= 198, "{row:?}: {right} of 200 are right");
            match row {
                Row::NamedShape => assert!(found >= 198, "{found} of 200"),
                // A tenth of the grounds, as nothing else decides them.
                Row::OpenGround => assert!((8..40).contains(&found), "{found} of 200"),
                _ => assert!(found <= 2, "{row:?}: {found} of 200"),
            }
        }
    }
}
