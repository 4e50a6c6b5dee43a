//! Edits, masks and animations, from arguments to files.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use swiftbrush_checkpoint::sha256;
use swiftbrush_pipeline::{Method, Record};

use super::Args;

const RED: &str = "a red circle on a blue background";
const GREEN: &str = "a green circle on a blue background";

fn paint(args: &[&str]) -> Result<()> {
    super::paint(&Args::try_parse_from([&["generate"], args].concat())?)
}

fn file(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[track_caller]
fn rejected(args: &[&str], expected: &str) {
    let error = match paint(args) {
        Err(error) => format!("{error:#}"),
        Ok(()) => panic!("{args:?} is not rejected"),
    };
    assert!(error.contains(expected), "{expected:?} is not in {error}");
}

/// Black but for a square of white.
fn draw_mask(path: &str, side: u32) -> Result<()> {
    let inside = |at: u32| (side / 4..side / 2).contains(&at);
    let pixel = |x, y| Luma([if inside(x) && inside(y) { 255 } else { 0 }]);
    Ok(GrayImage::from_fn(side, side, pixel).save(path)?)
}

#[test]
fn a_picture_is_edited_from_its_own_record() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [first, second] = ["first.png", "second.png"].map(|name| file(&folder, name));
    paint(&[RED, "--output", &first])?;
    paint(&[GREEN, "--edit", &first, "--output", &second])?;
    let record = Record::read(Path::new(&second))?;
    assert_eq!((&*record.prompt, record.method), (GREEN, Method::OneStep));
    let edit = record.edit.context("it is an edit")?;
    assert_eq!(edit.source_prompt, RED);
    assert_eq!(edit.image.sha256, sha256(Path::new(&first))?);
    ensure!(
        image::open(&first)?.into_rgb8() != image::open(&second)?.into_rgb8(),
        "the edit changes nothing"
    );
    Ok(())
}

/// Two equal prompts differ nowhere, so what is left is the way through the autoencoder.
#[test]
fn an_edit_to_the_same_prompt_keeps_the_picture() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [first, second] = ["first.png", "second.png"].map(|name| file(&folder, name));
    paint(&[RED, "--output", &first])?;
    paint(&[
        RED,
        "--edit",
        &first,
        "--no-refinement",
        "--output",
        &second,
    ])?;
    let [before, after] = [&first, &second].map(|path| image::open(path).map(|p| p.into_rgb8()));
    let (before, after) = (before?, after?);
    let error: f64 = before
        .iter()
        .zip(after.iter())
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum();
    let mean = error / before.len() as f64;
    ensure!(mean < 4.0, "off by {mean} of 255");
    Ok(())
}

#[test]
fn outside_a_mask_the_picture_is_the_original_to_the_byte() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [first, second, mask] =
        ["first.png", "second.png", "mask.png"].map(|name| file(&folder, name));
    paint(&[RED, "--output", &first])?;
    draw_mask(&mask, 32)?;
    for how in [["--edit", &first], ["--image", &first]] {
        paint(&[&[GREEN, "--mask", &mask, "--output", &second], &how[..]].concat())?;
        let [before, after] =
            [&first, &second].map(|path| image::open(path).map(|p| p.into_rgb8()));
        let (before, after) = (before?, after?);
        let mut changed = 0;
        for (x, y, pixel) in after.enumerate_pixels() {
            let is_inside = (8..16).contains(&x) && (8..16).contains(&y);
            let is_same = before.get_pixel(x, y) == pixel;
            assert!(is_inside || is_same, "({x}, {y})");
            changed += usize::from(!is_same);
        }
        assert!(changed > 10, "{changed} pixels changed");
    }
    Ok(())
}

#[test]
fn an_enlarged_picture_is_edited_at_its_own_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let names = ["small.png", "large.png", "mask.png", "a.png", "b.png"];
    let [small, large, mask, first, second] = names.map(|name| file(&folder, name));
    draw_mask(&mask, 96)?;
    paint(&[RED, "--output", &small])?;
    paint(&[RED, "--enlarge", "3", "--output", &large])?;
    paint(&[GREEN, "--edit", &small, "--output", &first])?;
    paint(&[GREEN, "--edit", &large, "--output", &second])?;
    assert_eq!(image::open(&first)?, image::open(&second)?);
    paint(&[
        GREEN, "--edit", &large, "--mask", &mask, "--output", &second,
    ])?;
    assert_eq!(image::open(&second)?.into_rgb8().dimensions(), (32, 32));
    Ok(())
}

#[test]
fn bad_edits_are_rejected() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let names = [
        "plain.png",
        "out.png",
        "wide.png",
        "colour.png",
        "clear.png",
        "all.png",
    ];
    let [plain, out, wide, colour, clear, all] = names.map(|name| file(&folder, name));
    RgbImage::new(32, 32).save(&plain)?;
    GrayImage::new(64, 32).save(&wide)?;
    RgbImage::from_pixel(32, 32, Rgb([255, 0, 0])).save(&colour)?;
    RgbaImage::from_pixel(32, 32, Rgba([255, 255, 255, 9])).save(&clear)?;
    GrayImage::from_pixel(32, 32, Luma([255])).save(&all)?;
    let with = |more: &[&str], expected: &str| {
        let base = [GREEN, "--edit", &plain, "--output", &out];
        rejected(&[&base[..], more].concat(), expected);
    };
    with(
        &[],
        "does not say how it was generated; say what the picture shows with --from PROMPT",
    );
    with(
        &["--from", RED, "--mask", &wide],
        "expected 32x32 pixels as the picture, found 64x32",
    );
    with(
        &["--from", RED, "--mask", &colour],
        "found the colour [255, 0, 0] at (0, 0)",
    );
    with(&["--from", RED, "--mask", &clear], "without transparency");
    with(&["--from", RED, "--mask", &out], "cannot read");
    with(
        &["--from", RED, "--mask", &all, "--auto-mask"],
        "cannot be used with",
    );
    with(&["--from", RED, "--edit-time", "1.5"], "time 1.5");
    with(&["--from", RED, "--edit-delta", "0.95"], "delta 0.95");
    with(&["--from", RED, "--blend", "2"], "blend 2");
    with(
        &["--from", RED, "--steps", "4"],
        "editing needs a one-step model",
    );
    with(&["--from", RED, "--guidance", "3"], "without guidance");
    with(&["--from", RED, "--low-memory"], "cannot be used with");
    rejected(&[GREEN, "--from", RED, "--output", &out], "--edit");
    rejected(
        &[GREEN, "--mask", &all, "--output", &out],
        "give --image or --edit",
    );
    let hole = [GREEN, "--image", &plain, "--mask", &all, "--output", &out];
    let strong = ["--strength", "1"];
    rejected(&[&hole[..], &strong].concat(), "take two steps");
    assert!(!Path::new(&out).exists());
    paint(&[&hole[..], &strong, &["--sampler", "lcm", "--steps", "2"]].concat())
}

#[test]
fn frames_lead_from_one_prompt_and_seed_to_another() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (frames, last) = (file(&folder, "frames"), file(&folder, "last.png"));
    let ends = ["--seed", "3", "--to", GREEN, "--to-seed", "8"];
    let more = ["--frames", "3", "--batch", "2", "--output", &frames];
    paint(&[&[RED], &ends[..], &more[..]].concat())?;
    assert_eq!(std::fs::read_dir(&frames)?.count(), 3);
    let path = |name: &str| Path::new(&frames).join(name);
    let middle = Record::read(path("00001.png"))?
        .between
        .context("it has another end")?;
    assert_eq!(
        (middle.share, middle.seed, &*middle.prompt),
        (0.5, 8, GREEN)
    );
    paint(&[GREEN, "--seed", "8", "--output", &last])?;
    let [found, expected] = [path("00002.png"), last.into()].map(image::open);
    let (found, expected) = (found?.into_rgb8(), expected?.into_rgb8());
    let bytes = found.iter().zip(expected.iter());
    assert!(bytes.clone().all(|(a, b)| a.abs_diff(*b) <= 1));
    let [first, middle] = ["00000.png", "00001.png"].map(|name| image::open(path(name)));
    assert_ne!(first?, middle?);
    for (args, expected) in [
        (&["--to", GREEN, "--frames", "1"][..], "at least 2"),
        (&["--frames", "4"], "--to"),
        (&["--to", GREEN, "--count", "2"], "cannot be used with"),
        (&["--to", GREEN], "16 pictures need a folder"),
    ] {
        rejected(&[&[RED], args].concat(), expected);
    }
    Ok(())
}
