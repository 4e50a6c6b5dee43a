//! The program from its arguments to its files.

use anyhow::Context;
use swiftbrush_pipeline::Rng;

use super::*;
use examples_common::miniature;

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
