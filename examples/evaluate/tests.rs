//! The program, from arguments to files, on the miniature and its world.

use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_evaluator::Measure;
use swiftbrush_metrics::{Features, Moments};
use tempfile::TempDir;

use super::*;

mod files;
mod inputs;
mod runs;
mod values;

#[path = "../miniature/world.rs"]
#[allow(dead_code, reason = "only the pictures of the world are needed")]
mod world;

const SIDE: usize = 32;

/// Pictures of random scenes, and their captions.
fn truth(seed: u64, count: usize) -> (Vec<RgbImage>, Vec<String>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let draw = |_| {
        let scene = world::Scene::random(&mut rng, world::HeldOut::None);
        let bytes = scene.draw(SIDE, &mut rng);
        let picture = RgbImage::from_raw(SIDE as u32, SIDE as u32, bytes).unwrap();
        (picture, scene.caption())
    };
    (0..count).map(draw).unzip()
}

/// A folder with pictures and their prompts.
fn folder(pictures: &[RgbImage], prompts: &[String]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (index, picture) in pictures.iter().enumerate() {
        picture
            .save(folder.path().join(format!("{index:04}.png")))
            .unwrap();
    }
    std::fs::write(folder.path().join("prompts.txt"), prompts.join("\n")).unwrap();
    folder
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
/// The prompts that [`folder`] writes.
fn prompts_of(folder: &TempDir) -> String {
    text(&folder.path().join("prompts.txt"))
}

/// The miniature's CLIP.
fn clip() -> String {
    format!("clip={}", text(&examples_common::miniature().join("clip")))
}

/// A protocol of only the Fréchet distance, which needs no prompts.
fn distance_alone(folder: &Path) -> String {
    let path = folder.join("distance.json");
    let protocol = r#"{
        "name": "distance", "version": 1, "pictures": "as-they-are",
        "measures": [{ "measure": "frechet-distance", "network": "clip/crop" }]
    }"#;
    std::fs::write(&path, protocol).unwrap();
    text(&path)
}

/// Arguments that compare pictures with a reference by the miniature's CLIP, without a contact sheet.
fn against(pictures: &Path, reference: &Path, more: &[&str]) -> Vec<String> {
    let options = [
        ("--pictures", text(pictures)),
        ("--reference", text(reference)),
        ("--network", clip()),
        ("--sheet", "0".to_owned()),
    ];
    let options = options
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value]);
    options
        .chain(more.iter().map(|&word| word.to_owned()))
        .collect()
}

fn measured(more: &[impl AsRef<str>], output: &Path, stop: &AtomicBool) -> Result<Evaluation> {
    let output = text(output);
    let usual = ["evaluate", "--resamples", "0", "--output", &output];
    let args = usual.into_iter().chain(more.iter().map(AsRef::as_ref));
    evaluate(&Args::try_parse_from(args)?, stop)
}

fn measure_into(more: &[impl AsRef<str>], output: &Path) -> Result<Evaluation> {
    measured(more, output, &AtomicBool::new(false))
}

fn measure(more: &[impl AsRef<str>]) -> Result<Evaluation> {
    measure_into(more, tempfile::tempdir()?.path())
}

#[track_caller]
fn rejected(more: &[impl AsRef<str>], reasons: &[&str]) {
    let error = format!("{:#}", measure(more).expect_err("it is rejected"));
    for reason in reasons {
        assert!(error.contains(reason), "{reason:?} is not in {error}");
    }
}

fn value(evaluation: &Evaluation, name: &str) -> f64 {
    let value = evaluation.values.iter().find(|value| value.name == name);
    value.unwrap_or_else(|| panic!("no {name}")).value
}

fn notes(evaluation: &Evaluation, expected: &str) -> bool {
    evaluation.notes.iter().any(|note| note.contains(expected))
}

/// Evaluates pictures and their prompts against a reference with the miniature's CLIP.
fn beside(pictures: &[RgbImage], prompts: &[String], reference: &TempDir) -> Evaluation {
    let folder = folder(pictures, prompts);
    let more = ["--prompts", &prompts_of(&folder)];
    measure(&against(folder.path(), reference.path(), &more)).unwrap()
}
