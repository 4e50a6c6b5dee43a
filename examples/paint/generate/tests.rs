//! The program, from arguments to files.

use anyhow::Context;
use image::{Rgb, RgbImage};
use swiftbrush_checkpoint::sha256;
use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::{Method, NegativeMethod, Rng};

use super::*;
use examples_common::{miniature, read_image};

fn paint(more: &[&str]) -> Result<()> {
    let prompt = "a red circle on a blue background";
    let args = [&["generate", prompt], more].concat();
    super::paint(&Args::try_parse_from(args)?)
}

fn error(result: Result<()>) -> String {
    format!("{:#}", result.expect_err("it fails"))
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

#[test]
fn weights_in_int8_give_nearly_the_same_picture() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name| folder.path().join(name).display().to_string();
    let names = ["f32.png", "int8.png", "low.png"].map(path);
    let [plain, int8, low] = &names;
    paint(&["--output", plain])?;
    paint(&["--precision", "int8", "--output", int8])?;
    let all = ["--precision", "int8", "--low-memory", "--output", low];
    paint(&[&all[..], &["--vae", "kl"]].concat())?;
    let [plain, int8, low] = [plain, int8, low].map(|path| read_image(Path::new(path)));
    let (plain, int8) = (plain?, int8?);
    assert_eq!(int8, low?, "int8 is not replaced by f16");
    let error: f64 = plain
        .iter()
        .zip(int8.iter())
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum();
    let mean = error / plain.len() as f64;
    assert!(mean > 0.0 && mean < 4.0, "off by {mean} of 255");
    for (more, expected) in [
        (
            ["--dtype", "f16"],
            "compute in f32; found the element type F16",
        ),
        (
            ["--storage", "f16"],
            "compute in f32; found the element type F16",
        ),
    ] {
        let output = ["--precision", "int8", "--output", "unused.png"];
        let error = self::error(paint(&[&output[..], &more[..]].concat()));
        assert!(error.contains(expected), "{error}");
    }
    assert!(Args::try_parse_from(["generate", "--precision", "int4"]).is_err());
    Ok(())
}

/// First values of `torch.randn(1, 4, 8, 8)` after `torch.manual_seed` of 0 and of 1.
#[test]
fn seeds_can_be_those_of_pytorch() -> Result<()> {
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
fn pictures_are_replaced_whole() -> Result<()> {
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
fn pictures_contain_their_record() -> Result<()> {
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
        sha256(miniature().join("unet/diffusion_pytorch_model.safetensors"))?
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
fn every_batch_records_the_hashes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    paint(&[
        "--count",
        "3",
        "--batch",
        "2",
        "--output",
        &file(&folder, ""),
    ])?;
    let mut hashes = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        hashes.push(Record::read(entry?.path())?.hashes);
    }
    assert_eq!(hashes.len(), 3);
    assert!(!hashes[0].is_empty() && hashes.iter().all(|found| *found == hashes[0]));
    Ok(())
}

#[test]
fn prompts_beyond_latin_1_are_recorded() -> Result<()> {
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
fn files_without_a_record_are_rejected() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (plain, text) = (file(&folder, "plain.png"), file(&folder, "text.png"));
    image::RgbImage::new(3, 2).save(&plain)?;
    std::fs::write(&text, "no picture")?;
    for (path, reason) in [
        (&plain, "how it was generated"),
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
fn a_start_image_is_used_and_previews_are_written() -> Result<()> {
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
    let start = record.start.context("it has a start image")?;
    assert_eq!(
        (start.strength, start.sha256),
        (0.5, sha256(Path::new(&first))?)
    );
    assert!(Path::new(&file(&folder, "second.preview-002.png")).is_file());
    assert!(!Path::new(&file(&folder, "second.preview-003.png")).exists());
    Ok(())
}

#[test]
fn low_memory_changes_nothing_for_weights_in_f16() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, second) = (file(&folder, "first.png"), file(&folder, "second.png"));
    paint(&["--output", &first])?;
    paint(&["--low-memory", "--output", &second])?;
    let (first, second) = (
        read_image(Path::new(&first))?,
        read_image(Path::new(&second))?,
    );
    assert_eq!(first, second);
    Ok(())
}

/// Checks that the program fails before it loads anything: the model has no weights.
#[track_caller]
fn rejected(more: &[&str], expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    for file in [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ] {
        let to = model.join(file);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
        std::fs::copy(miniature().join(file), to).expect("a configuration");
    }
    let model = model.display().to_string();
    let args = [&["generate", "--model", &model], more].concat();
    let error = match Args::try_parse_from(args) {
        Ok(args) => error(super::paint(&args)),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(expected), "{expected:?} is not in {error}");
}

#[test]
fn arguments_are_checked_before_loading() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (here, none) = (file(&folder, ""), file(&folder, "none.png"));
    let start = file(&folder, "start.png");
    RgbImage::new(40, 24).save(&start)?;
    let prompts = file(&folder, "prompts.txt");
    std::fs::write(&prompts, "\n \n")?;
    let out = file(&folder, "out.png");
    for (args, expected) in [
        (&["--output", &out][..], "give a prompt"),
        (&["p", "--output", &here], "expected a file, found a folder"),
        (&["p", "--output", "cat.jpg"], "ends in .png"),
        (&["p", "--output", "cat"], "ends in .png"),
        (&["p", "--count", "0"], "at least 1"),
        (&["p", "--batch", "0"], "from 1 to 256"),
        (&["p", "--batch", "257"], "from 1 to 256"),
        (&["p", "--count", "2"], "give --output FOLDER"),
        (
            &["p", "--count", "2", "--output", &out],
            "the name of a file",
        ),
        (&["--prompts", &prompts, "--output", &here], "has no text"),
        (&["p", "--seed", "-2"], "-1 for a random seed"),
        (
            &["p", "--seed", "18446744073709551616"],
            "-1 for a random seed",
        ),
        (
            &[
                "p",
                "--seed",
                "18446744073709551615",
                "--count",
                "2",
                "--output",
                &here,
            ],
            "too large",
        ),
        (&["p", "--output", &out, "--image", &none], "cannot read"),
        (
            &["p", "--output", &out, "--image", "/dev/zero"],
            "regular file",
        ),
        (
            &["p", "--output", &out, "--image", &start, "--strength", "2"],
            "from 0 to 1",
        ),
        (&["p", "--output", &out, "--size", "33x32"], "such as 32x32"),
        (
            &["p", "--output", &out, "--size", "0x32"],
            "expected multiples",
        ),
        (
            &["p", "--output", &out, "--size", "100000x100000"],
            "10000000000 pixels",
        ),
        (
            &[
                "p",
                "--output",
                &out,
                "--size",
                "1024x1024",
                "--enlarge",
                "64",
            ],
            "with --enlarge 64",
        ),
        (
            &["p", "--output", &out, "--sampler", "ddim", "--steps", "0"],
            "expected 1 to",
        ),
        (
            &[
                "p",
                "--output",
                &out,
                "--sampler",
                "ddim",
                "--steps",
                "1001",
            ],
            "expected 1 to 1000",
        ),
        (
            &[
                "p",
                "--output",
                &out,
                "--sampler",
                "ddim",
                "--steps",
                "2",
                "--image",
                &start,
                "--strength",
                "0.4",
            ],
            "at least 3 steps",
        ),
        (
            &["p", "--output", &here, "--count", "2", "--noise", "x"],
            "give --batch 2",
        ),
        (
            &["p", "--output", &out, "--save-tensors", &here],
            "found a folder",
        ),
    ] {
        rejected(args, expected);
    }
    assert!(!Path::new(&out).exists());
    Ok(())
}

#[test]
fn prompts_are_numbered_without_blank_lines() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let prompts = file(&folder, "prompts.txt");
    std::fs::write(&prompts, "\u{feff}a red circle\r\n\r\na green star\r\n")?;
    let output = file(&folder, "output");
    let args = [
        "generate",
        "--prompts",
        &prompts,
        "--output",
        &output,
        "--seed",
        "5",
    ];
    super::paint(&Args::try_parse_from(args)?)?;
    let record = |name: &str| Record::read(Path::new(&output).join(name));
    let [first, second] = [record("00000.png")?, record("00001.png")?];
    assert_eq!(
        [&*first.prompt, &*second.prompt],
        ["a red circle", "a green star"]
    );
    assert_eq!([first.seed, second.seed], [5, 6]);
    assert_eq!(std::fs::read_dir(&output)?.count(), 2);
    Ok(())
}

#[test]
fn seed_minus_one_draws_a_seed_and_records_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let draw = |name: &str| -> Result<u64> {
        let path = file(&folder, name);
        paint(&["--seed", "-1", "--output", &path])?;
        Ok(Record::read(Path::new(&path))?.seed)
    };
    let seeds = [draw("a.png")?, draw("b.png")?];
    assert_ne!(seeds[0], seeds[1]);
    assert!(seeds.iter().all(|seed| *seed < 1 << 32));
    Ok(())
}

#[test]
fn start_images_are_upright_and_of_a_size_that_fits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (start, output) = (file(&folder, "start.png"), file(&folder, "output.png"));
    RgbImage::from_fn(37, 21, |x, y| Rgb([x as u8 * 5, y as u8 * 9, 90])).save(&start)?;
    let paint = |more: &[&str]| paint(&[&["--image", &start, "--output", &output], more].concat());
    for (args, expected) in [
        (&[][..], (36, 20)),
        (&["--size", "32x32"], (32, 32)),
        (&["--size", "16x40"], (16, 40)),
    ] {
        paint(args)?;
        assert_eq!(image::open(&output)?.into_rgb8().dimensions(), expected);
    }
    let golden = "../../crates/images/tests/golden/pictures/exif6.jpg";
    let turned = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(golden)
        .display()
        .to_string();
    super::paint(&Args::try_parse_from([
        "generate", "p", "--image", &turned, "--output", &output,
    ])?)?;
    assert_eq!(image::open(&output)?.into_rgb8().dimensions(), (24, 16));
    Ok(())
}

/// SD-Turbo's default is one step, which the one-step rule takes from any timestep; diffusers counts whole steps.
#[test]
fn one_step_models_have_any_strength_and_others_take_a_step() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let start = file(&folder, "start.png");
    RgbImage::new(32, 32).save(&start)?;
    let method = |strength: &str, more: &[&str], own: Method| -> Result<Method> {
        let args = ["generate", "p", "--image", &start, "--strength", strength];
        let args = Args::try_parse_from([&args[..], more].concat())?;
        settings::with_steps_for_strength(&args, own)
    };
    let turbo = Method::Sampler(SamplerKind::Euler, 1);
    for strength in ["1", "0.8", "0.37"] {
        assert_eq!(method(strength, &[], turbo)?, Method::OneStep, "{strength}");
    }
    for (strength, steps) in [("1", 1), ("0.8", 2), ("0.5", 2), ("0.3", 4), ("0.1", 10)] {
        let named = method(strength, &["--sampler", "euler"], turbo)?;
        assert_eq!(
            named,
            Method::Sampler(SamplerKind::Euler, steps),
            "{strength}"
        );
    }
    assert!(error(method("0", &[], turbo).map(drop)).contains("expected more than 0"));
    Ok(())
}

#[test]
fn settings_are_described_in_one_line() -> Result<()> {
    let args = [
        "generate",
        "p",
        "--sampler",
        "ddim",
        "--steps",
        "4",
        "--guidance",
        "2",
        "--seed",
        "7",
        "--count",
        "3",
        "--output",
        "unused",
        "--size",
        "64x32",
        "--rng",
        "cpu",
    ];
    let folder = tempfile::tempdir()?;
    let mut args = Args::try_parse_from(args)?;
    args.output = Some(folder.path().to_owned());
    let (jobs, source) = (jobs(&args)?, source(&args, &Device::flex())?);
    let device = args.model.device()?;
    let loader = ModelArgs::loader(&source, &device)?;
    let settings = Settings::new(&args, &loader, &source, None, None, &device)?;
    let expected = "sampler ddim, 4 steps, trailing spacing, guidance 2, 64x32, seeds 7 to 9, cpu noise, on flex in f32";
    assert_eq!(settings.describe(&args, &source, &jobs), expected);
    Ok(())
}

#[test]
fn a_negative_prompt_acts_in_one_call_and_is_described_and_recorded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (plain, steered) = (file(&folder, "plain.png"), file(&folder, "steered.png"));
    paint(&["--output", &plain])?;
    let negative = ["--negative-prompt", "star", "--output", &steered];
    paint(&negative)?;
    let record = Record::read(Path::new(&steered))?;
    assert_eq!(record.negative_method, Some(NegativeMethod::NASA));
    let [plain, steered] = [&plain, &steered].map(|path| read_image(Path::new(path)));
    assert_ne!(plain?, steered?);

    let args = Args::try_parse_from([&["generate", "p"][..], &negative].concat())?;
    let (jobs, source) = (jobs(&args)?, source(&args, &Device::flex())?);
    let loader = ModelArgs::loader(&source, &args.model.device()?)?;
    let device = args.model.device()?;
    let settings = Settings::new(&args, &loader, &source, None, None, &device)?;
    let line = settings.describe(&args, &source, &jobs);
    assert!(
        line.contains("guidance 1, negative prompt by nasa 0.2,"),
        "{line}"
    );
    let steps = [
        "--sampler",
        "ddim",
        "--steps",
        "4",
        "--negative-prompt",
        "star",
    ];
    assert!(error(paint(&steps)).contains("has no effect at guidance 1"));
    Ok(())
}

#[test]
fn records_can_hold_names_instead_of_paths() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (start, output) = (file(&folder, "start.png"), file(&folder, "output.png"));
    RgbImage::new(32, 32).save(&start)?;
    paint(&["--image", &start, "--output", &output, "--names-only"])?;
    let record = Record::read(Path::new(&output))?;
    assert_eq!(record.source.model, Path::new("model"));
    assert_eq!(
        record.start.context("it has a start image")?.file,
        Path::new("start.png")
    );
    let bytes = std::fs::read(&output)?;
    let path = folder.path().as_os_str().as_encoded_bytes();
    assert!(!bytes.windows(path.len()).any(|window| window == path));
    Ok(())
}

#[test]
fn pictures_of_a_batch_record_their_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = file(&folder, "output");
    paint(&["--count", "3", "--batch", "2", "--output", &output])?;
    for (name, place) in [
        ("00000.png", [0, 2]),
        ("00001.png", [1, 2]),
        ("00002.png", [0, 1]),
    ] {
        let record = Record::read(Path::new(&output).join(name))?;
        assert_eq!(record.batch, place, "{name}");
    }
    Ok(())
}

#[test]
fn sizes_beyond_the_memory_are_rejected_with_an_estimate() -> Result<()> {
    let source = Source::new(miniature());
    let check = |size, memory| settings::check_memory(size, &source, memory);
    // 32 channels read and 32 written, in four bytes each.
    check([1024, 1024], Some(256 << 20))?;
    let error = error(check([1024, 2048], Some(256 << 20)));
    assert!(
        error.contains(
            "--size 2048x1024: decoding takes at least 0.5 GiB, this machine has 0.2 GiB"
        ),
        "{error}"
    );
    let mut tiled = source.clone();
    tiled.options.tiling = Some(Tiling::default());
    settings::check_memory([1024, 2048], &tiled, Some(256 << 20))?;
    check([1024, 2048], None)
}
