//! The program, from arguments to files, on the miniature and its world.

use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_evaluator::Measure;
use swiftbrush_metrics::{Features, Moments};
use tempfile::TempDir;

use super::*;

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

fn measured(more: &[&str], output: &Path, stop: &AtomicBool) -> Result<Evaluation> {
    let output = text(output);
    let usual = ["evaluate", "--resamples", "0", "--output", &output];
    let args = [&usual[..], more].concat();
    evaluate(&Args::try_parse_from(args)?, stop)
}

fn measure(more: &[&str]) -> Result<Evaluation> {
    let output = tempfile::tempdir()?;
    measured(more, output.path(), &AtomicBool::new(false))
}

#[track_caller]
fn rejected(more: &[&str], reasons: &[&str]) {
    let error = format!("{:#}", measure(more).expect_err("it is rejected"));
    for reason in reasons {
        assert!(error.contains(reason), "{reason:?} is not in {error}");
    }
}

fn value(evaluation: &Evaluation, name: &str) -> f64 {
    let value = evaluation.values.iter().find(|value| value.name == name);
    value.unwrap_or_else(|| panic!("no {name}")).value
}

/// Evaluates pictures against a reference with the miniature's CLIP.
fn beside(pictures: &[RgbImage], prompts: &[String], reference: &TempDir) -> Evaluation {
    let folder = folder(pictures, prompts);
    let own = text(&examples_common::miniature().join("clip"));
    let [pictures, reference] = [&folder, reference].map(|folder| text(folder.path()));
    let prompts = text(&folder.path().join("prompts.txt"));
    let args = [
        "--pictures",
        &pictures,
        "--prompts",
        &prompts,
        "--reference",
        &reference,
        "--network",
        &format!("clip={own}"),
        "--sheet",
        "0",
    ];
    measure(&args).unwrap()
}

#[test]
fn worse_pictures_have_worse_values() {
    const COUNT: usize = 256;
    let (real, captions) = truth(1, COUNT);
    let reference = folder(&real, &captions);
    let (others, captions) = truth(2, COUNT);
    let of_others = beside(&others, &captions, &reference);

    let noisy = |level: i16| -> Vec<RgbImage> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut pictures = others.clone();
        for byte in pictures.iter_mut().flat_map(|picture| picture.iter_mut()) {
            let noisy = i16::from(*byte) + rng.random_range(-level..=level);
            *byte = noisy.clamp(0, 255) as u8;
        }
        pictures
    };
    let blurred = |sigma: f32| -> Vec<RgbImage> {
        others
            .iter()
            .map(|picture| image::imageops::blur(picture, sigma))
            .collect()
    };
    for (what, a_little, a_lot) in [
        ("noise", noisy(50), noisy(120)),
        ("blur", blurred(2.0), blurred(4.0)),
    ] {
        let [little, lot] =
            [a_little, a_lot].map(|pictures| beside(&pictures, &captions, &reference));
        for name in ["Fréchet distance", "kernel distance"] {
            let values = [&of_others, &little, &lot].map(|of| value(of, name));
            assert!(
                values.is_sorted() && values[0] < values[2],
                "{name} with {what}: {values:?}"
            );
        }
        for name in ["coverage", "CLIP score"] {
            let values = [&of_others, &lot].map(|of| value(of, name));
            assert!(values[0] > values[1], "{name} with {what}: {values:?}");
        }
    }

    // Circles alone are as precise, but cover little.
    let (all, captions) = truth(4, 24 * COUNT);
    let circles = all.into_iter().zip(captions).filter(|(_, caption)| {
        caption.contains(" circle on a") && !caption.contains("above") && !caption.contains("left")
    });
    let (circles, captions): (Vec<_>, Vec<_>) = circles.take(COUNT).unzip();
    assert_eq!(circles.len(), COUNT);
    let of_circles = beside(&circles, &captions, &reference);
    assert!(
        value(&of_circles, "precision") > 0.9,
        "{:?}",
        of_circles.values
    );
    assert!(
        value(&of_circles, "recall") < 0.5,
        "{:?}",
        of_circles.values
    );
    let coverages = [&of_circles, &of_others].map(|of| value(of, "coverage"));
    assert!(coverages[0] < 0.8 * coverages[1], "{coverages:?}");
    assert!(value(&of_circles, "Fréchet distance") > 10.0 * value(&of_others, "Fréchet distance"));

    // Prompts of other pictures.
    let mut wrong = captions.clone();
    wrong.rotate_left(1);
    let of_wrong = beside(&circles, &wrong, &reference);
    assert!(value(&of_wrong, "CLIP score") < value(&of_circles, "CLIP score") - 0.05);
}

#[test]
fn a_set_has_no_distance_from_itself() {
    let (real, captions) = truth(5, 48);
    let reference = folder(&real, &captions);
    let evaluation = beside(&real, &captions, &reference);
    assert!(value(&evaluation, "Fréchet distance").abs() < 1e-6);
    for name in ["precision", "recall", "coverage"] {
        assert_eq!(value(&evaluation, name), 1.0);
    }
    assert_eq!(
        evaluation.hashes["pictures"],
        evaluation.hashes["reference"]
    );
}

#[test]
fn an_interrupted_run_ends_with_the_same_values() -> Result<()> {
    let (real, captions) = truth(6, 40);
    let reference = folder(&real, &captions);
    let path = text(reference.path());
    let prompts = text(&reference.path().join("prompts.txt"));
    let args = [
        "--prompts",
        &prompts,
        "--count",
        "20",
        "--per-prompt",
        "2",
        "--batch",
        "8",
        "--reference",
        &path,
        "--sheet",
        "6",
        "--keep",
        "--seed",
        "3",
    ];
    let whole = tempfile::tempdir()?;
    let expected = measured(&args, whole.path(), &AtomicBool::new(false))?;
    assert_eq!(
        (expected.pictures, expected.reference_pictures),
        (40, Some(40))
    );

    let output = tempfile::tempdir()?;
    let mut stops = 0;
    loop {
        // Stops after another batch.
        let parts = |name: &str| {
            let folder = std::fs::read_dir(output.path().join(name));
            folder.map_or(0, |files| files.count())
        };
        let all = || parts("reference.parts") + parts("generated.parts");
        let (stop, before) = (AtomicBool::new(false), all());
        let done = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if all() > before + 1 {
                        stop.store(true, Ordering::Relaxed);
                    }
                    std::thread::yield_now();
                }
            });
            let result = measured(&args, output.path(), &stop);
            done.store(true, Ordering::Relaxed);
            result
        });
        match result {
            Ok(found) => {
                assert_eq!(found, expected);
                break;
            }
            Err(error) => {
                assert!(format!("{error:#}").contains("stopped after"), "{error:#}");
                stops += 1;
            }
        }
    }
    assert!(stops > 0, "it was never stopped");
    for file in ["result.json", "sheet.png", "sheet.txt"] {
        let read = |folder: &TempDir| std::fs::read(folder.path().join(file));
        assert!(read(&whole)? == read(&output)?, "{file}");
    }
    assert_eq!(
        std::fs::read_dir(output.path().join("pictures"))?.count(),
        40
    );
    assert!(!output.path().join("generated.parts").exists());

    // Kept pictures have the same values, and the features of the reference can be used again.
    let (kept, seen) = (
        text(&output.path().join("pictures")),
        text(&output.path().join("reference.safetensors")),
    );
    let twice = tempfile::tempdir()?;
    let doubled: Vec<_> = captions[..20]
        .iter()
        .flat_map(|caption| [caption.as_str(); 2])
        .collect();
    let prompts = twice.path().join("prompts.txt");
    std::fs::write(&prompts, doubled.join("\n"))?;
    let again = measure(&[
        "--pictures",
        &kept,
        "--prompts",
        &text(&prompts),
        "--reference",
        &seen,
        "--network",
        &format!("clip={}", text(&examples_common::miniature().join("clip"))),
    ])?;
    for (found, expected) in again.values.iter().zip(&expected.values) {
        assert!(
            (found.value - expected.value).abs() < 1e-5,
            "{found:?} {expected:?}"
        );
    }

    // Another seed is another run.
    let args = [&args[..args.len() - 1], &["4"]].concat();
    let error =
        measured(&args, output.path(), &AtomicBool::new(false)).expect_err("it is another run");
    assert!(
        error.to_string().contains("painted.seed is 3 and 4"),
        "{error}"
    );
    Ok(())
}

#[test]
fn results_of_different_protocols_are_not_comparable() -> Result<()> {
    let (real, captions) = truth(7, 24);
    let reference = folder(&real, &captions);
    let folder = tempfile::tempdir()?;
    let write = |name: &str, evaluation: &Evaluation| -> Result<PathBuf> {
        let path = folder.path().join(name);
        write_json(&path, evaluation)?;
        Ok(path)
    };
    let mut evaluation = beside(&real, &captions, &reference);
    evaluation.subject = "first".to_owned();
    evaluation.values[0].value = 0.0;
    let first = write("first.json", &evaluation)?;
    evaluation.values[0].value = 2.0;
    let seed = write("seed.json", &evaluation)?;
    let table = compare(&[first.clone(), seed])?;
    assert!(table.contains("| first | 1.000 [0, 2.000] |"), "{table}");

    evaluation.subject = "second".to_owned();
    if let Measure::PrecisionRecall { k, .. } = &mut evaluation.protocol.measures[2] {
        *k = 5;
    }
    evaluation
        .hashes
        .insert("prompts".to_owned(), "other".to_owned());
    evaluation.pictures = 12;
    let second = write("second.json", &evaluation)?;
    let error = format!(
        "{:#}",
        compare(&[first.clone(), second]).expect_err("they are not comparable")
    );
    for part in [
        "first and second",
        "protocol.measures.2.k is 3 and 5",
        "hashes.prompts",
        "pictures is 24 and 12",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    let damaged = folder.path().join("damaged.json");
    std::fs::write(&damaged, "{}")?;
    let error = format!(
        "{:#}",
        compare(&[first, damaged.clone()]).expect_err("it is damaged")
    );
    assert!(error.contains(&text(&damaged)), "{error}");
    Ok(())
}

#[test]
fn bad_inputs_are_named() -> Result<()> {
    let (real, captions) = truth(8, 12);
    let good = folder(&real, &captions);
    let path = text(good.path());
    let prompts = text(&good.path().join("prompts.txt"));
    let clip = format!("clip={}", text(&examples_common::miniature().join("clip")));
    let usual = ["--prompts", &prompts, "--network", &clip];
    let reject = |args: &[&str], reasons: &[&str]| rejected(&[&usual[..], args].concat(), reasons);

    let empty = tempfile::tempdir()?;
    let none = text(empty.path());
    reject(
        &["--pictures", &none, "--reference", &path],
        &["has no pictures", &none],
    );
    reject(
        &["--pictures", &path, "--reference", &none],
        &["has no pictures", &none],
    );
    reject(
        &["--reference", &path, "--count", "13"],
        &["--count 13: expected 1 to 12"],
    );
    reject(&["--pictures", &path], &["give --reference"]);
    reject(
        &["--protocol", "fid", "--reference", &path],
        &["fid is not a valid protocol", "clean-fid"],
    );
    reject(
        &["--protocol", "clean-fid", "--reference", &path],
        &["inception/clean-fid", "--network inception=PATH"],
    );
    reject(
        &["--network", "vgg=x", "--reference", &path],
        &["--network vgg"],
    );
    reject(
        &["--network", "clip=/nowhere", "--reference", &path],
        &["/nowhere"],
    );
    rejected(
        &[
            "--pictures",
            &path,
            "--reference",
            &path,
            "--network",
            &clip,
        ],
        &["give --prompts"],
    );

    // Fewer pictures than prompts.
    let few = folder(&real[..5], &captions);
    reject(
        &["--pictures", &text(few.path()), "--reference", &path],
        &["5 pictures, for 12 prompts"],
    );
    // Pictures that cannot be measured are named.
    let bad = folder(&real, &captions);
    for (name, bytes) in [
        (
            "0007.png",
            include_bytes!("../../crates/images/tests/golden/animated.png").to_vec(),
        ),
        (
            "0007.png",
            include_bytes!("../../crates/images/tests/golden/cmyk.jpg").to_vec(),
        ),
        ("0007.png", b"no picture".to_vec()),
    ] {
        let file = bad.path().join(name);
        std::fs::write(&file, bytes)?;
        reject(
            &["--pictures", &text(bad.path()), "--reference", &path],
            &[&text(&file)],
        );
    }
    RgbImage::new(1, 1).save(bad.path().join("0007.png"))?;
    reject(
        &["--pictures", &text(bad.path()), "--reference", &path],
        &["0007.png is 1x1"],
    );
    // Grey pictures are measured.
    image::GrayImage::new(32, 32).save(bad.path().join("0007.png"))?;
    measure(
        &[
            &usual[..],
            &["--pictures", &text(bad.path()), "--reference", &path],
        ]
        .concat(),
    )?;

    // Statistics of another width.
    let npz = empty.path().join("other.npz");
    let rows = vec![0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 0.2, 0.1, 0.9, 0.4, 0.4, 0.1];
    let moments = Moments::of(&Features::new(3, rows)?);
    let mut statistics = Statistics {
        gaussian: moments.gaussian()?,
        network: None,
    };
    statistics.save(&npz)?;
    reject(
        &["--pictures", &path, "--reference", &text(&npz)],
        &["expected features of width"],
    );
    statistics.network = Some("inception/clean-fid".to_owned());
    statistics.save(&npz)?;
    reject(
        &["--pictures", &path, "--reference", &text(&npz)],
        &["has statistics of inception/clean-fid", "needs clip/crop"],
    );
    std::fs::write(&npz, "no archive")?;
    reject(
        &["--pictures", &path, "--reference", &text(&npz)],
        &[&text(&npz)],
    );

    // Damaged features of an earlier run.
    let output = tempfile::tempdir()?;
    let args = [&usual[..], &["--pictures", &path, "--reference", &path]].concat();
    measured(&args, output.path(), &AtomicBool::new(false))?;
    let seen = output.path().join("reference.safetensors");
    let bytes = std::fs::read(&seen)?;
    let mut wrong = bytes.clone();
    let last = wrong.len() - 4;
    wrong[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&seen, &wrong)?;
    reject(
        &["--pictures", &path, "--reference", &text(&seen)],
        &[&text(&seen), "NaN"],
    );
    std::fs::write(&seen, &bytes[..bytes.len() - 9])?;
    reject(
        &["--pictures", &path, "--reference", &text(&seen)],
        &[&text(&seen)],
    );

    // An output that cannot be created.
    let file = text(&empty.path().join("other.npz"));
    let error = measured(
        &args,
        &Path::new(&file).join("output"),
        &AtomicBool::new(false),
    );
    assert!(format!("{:#}", error.expect_err("there is a file")).contains(&file));
    Ok(())
}

fn notes(evaluation: &Evaluation, expected: &str) -> bool {
    evaluation.notes.iter().any(|note| note.contains(expected))
}

fn clip() -> String {
    format!("clip={}", text(&examples_common::miniature().join("clip")))
}

/// A protocol of the Fréchet distance alone, which needs no prompts.
fn distance_alone(folder: &Path) -> String {
    let path = folder.join("distance.json");
    let protocol = r#"{
        "name": "distance", "version": 1, "pictures": "as-they-are",
        "measures": [{ "measure": "frechet-distance", "network": "clip/crop" }]
    }"#;
    std::fs::write(&path, protocol).unwrap();
    text(&path)
}

#[test]
fn prompts_are_paired_in_natural_order_of_names() -> Result<()> {
    let (real, captions) = truth(9, 24);
    let reference = folder(&real, &captions);
    let expected = value(&beside(&real, &captions, &reference), "CLIP score");

    // Other programs do not pad numbers: 0.png … 23.png.
    let plain = tempfile::tempdir()?;
    for (index, picture) in real.iter().enumerate() {
        picture.save(plain.path().join(format!("{index}.png")))?;
    }
    let prompts = text(&reference.path().join("prompts.txt"));
    let own = clip();
    let args = |folder: &Path| {
        let reference = text(reference.path());
        let pairs = [
            ("--pictures", text(folder)),
            ("--prompts", prompts.clone()),
            ("--reference", reference),
            ("--network", own.clone()),
            ("--sheet", "0".to_owned()),
        ];
        pairs
            .map(|(option, value)| [option.to_owned(), value])
            .concat()
    };
    let evaluate = |folder: &Path| {
        let args = args(folder);
        measure(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let found = evaluate(plain.path())?;
    assert!((value(&found, "CLIP score") - expected).abs() < 1e-6);

    std::fs::rename(plain.path().join("7.png"), plain.path().join("08.png"))?;
    let error = format!("{:#}", evaluate(plain.path()).expect_err("two pictures 8"));
    assert!(
        error.contains("the order of 08.png and 8.png is ambiguous"),
        "{error}"
    );
    Ok(())
}

#[test]
fn every_picture_is_counted_and_everything_else_reported() -> Result<()> {
    let (real, captions) = truth(10, 12);
    let reference = folder(&real, &captions);
    let mixed = tempfile::tempdir()?;
    std::fs::create_dir(mixed.path().join("below"))?;
    let suffixes = ["png", "bmp", "TIFF", "webp", "ppm", "tif"];
    for (index, picture) in real.iter().enumerate() {
        let folder = if index < 8 { "" } else { "below/" };
        let suffix = suffixes[index % suffixes.len()];
        picture.save(mixed.path().join(format!("{folder}{index:02}.{suffix}")))?;
    }
    for name in ["Thumbs.db", ".DS_Store", "._00.png"] {
        std::fs::write(mixed.path().join(name), "x")?;
    }
    let settings = tempfile::tempdir()?;
    let protocol = distance_alone(settings.path());
    let [pictures, path, own] = [text(mixed.path()), text(reference.path()), clip()];
    let args = [
        "--pictures",
        &pictures,
        "--reference",
        &path,
        "--protocol",
        &protocol,
        "--network",
        &own,
        "--sheet",
        "0",
    ];
    let found = measure(&args)?;
    assert_eq!(found.pictures, 12);
    assert!(
        value(&found, "Fréchet distance") < 1e-6,
        "{:?}",
        found.values
    );
    assert!(
        notes(
            &found,
            "that are no pictures: .DS_Store, ._00.png, Thumbs.db"
        ),
        "{:?}",
        found.notes
    );

    // Transparency is dropped in every colour type, and orientations are followed.
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/images/tests/golden/pictures/"
    );
    for (index, name) in ["rgba.png", "la.png", "palette-clear.png", "exif6.jpg"]
        .iter()
        .enumerate()
    {
        std::fs::copy(
            format!("{golden}{name}"),
            mixed.path().join(format!("1{index}0-{name}")),
        )?;
    }
    let found = measure(&args)?;
    assert_eq!(found.pictures, 16);
    for note in [
        "3 of 16 pictures are transparent",
        "1 of 16 pictures have an Exif orientation and were turned upright",
    ] {
        assert!(notes(&found, note), "{:?}", found.notes);
    }
    Ok(())
}

#[test]
fn stored_features_follow_the_content_of_files() -> Result<()> {
    let (real, captions) = truth(11, 8);
    let (first, moved) = (folder(&real, &captions), folder(&real, &captions));
    let settings = tempfile::tempdir()?;
    let protocol = distance_alone(settings.path());
    let output = tempfile::tempdir()?;
    let pictures = folder(&real, &captions);
    let run = |reference: &TempDir| {
        let [pictures, path, own] = [text(pictures.path()), text(reference.path()), clip()];
        let args = [
            "--pictures",
            &pictures,
            "--reference",
            &path,
            "--protocol",
            &protocol,
            "--network",
            &own,
            "--sheet",
            "0",
        ];
        measured(&args, output.path(), &AtomicBool::new(false))
    };
    let expected = run(&first)?;
    // The same files elsewhere.
    assert_eq!(run(&moved)?.values, expected.values);
    // Other files at the same place, of the same size.
    let path = first.path().join("0003.png");
    let length = std::fs::metadata(&path)?.len();
    let mut bytes = std::fs::read(first.path().join("0004.png"))?;
    bytes.resize(length as usize, 0);
    std::fs::write(&path, bytes)?;
    let error = format!("{:#}", run(&first).expect_err("a file changed"));
    assert!(
        error.contains("other pictures, beginning with 0003.png"),
        "{error}"
    );
    Ok(())
}

#[test]
fn statistics_without_a_network_are_noted() -> Result<()> {
    let (real, captions) = truth(12, 8);
    let pictures = folder(&real, &captions);
    let settings = tempfile::tempdir()?;
    let npz = settings.path().join("theirs.npz");
    let values = (0..8 * 64).map(|index| (index * index % 31) as f32 / 31.0);
    let features = Features::new(64, values.collect())?;
    let mut statistics = Statistics {
        gaussian: Moments::of(&features).gaussian()?,
        network: None,
    };
    statistics.save(&npz)?;
    let protocol = distance_alone(settings.path());
    let [path, npz_text, own] = [text(pictures.path()), text(&npz), clip()];
    let args = [
        "--pictures",
        &path,
        "--reference",
        &npz_text,
        "--protocol",
        &protocol,
        "--network",
        &own,
        "--sheet",
        "0",
    ];
    let found = measure(&args)?;
    assert!(
        notes(
            &found,
            "does not name the network of its statistics; taken for clip/crop"
        ),
        "{:?}",
        found.notes
    );
    statistics.network = Some("clip/crop".to_owned());
    statistics.save(&npz)?;
    assert!(!notes(&measure(&args)?, "does not name"));
    Ok(())
}
