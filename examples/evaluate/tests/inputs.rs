//! Inputs that are rejected or noted.

use super::*;

#[test]
fn bad_inputs_are_named() -> Result<()> {
    let (real, captions) = truth(8, 12);
    let good = folder(&real, &captions);
    let path = text(good.path());
    let (prompts, clip) = (prompts_of(&good), clip());
    let usual = ["--prompts", &prompts, "--network", &clip];
    let reject = |args: &[&str], reasons: &[&str]| rejected(&[&usual[..], args].concat(), reasons);

    let empty = tempfile::tempdir()?;
    let none = text(empty.path());
    reject(
        &["--pictures", &none, "--reference", &path],
        &["has no images", &none],
    );
    reject(
        &["--pictures", &path, "--reference", &none],
        &["has no images", &none],
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
    rejected(&against(good.path(), good.path(), &[]), &["give --prompts"]);

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
            include_bytes!("../../../crates/images/tests/golden/animated.png").to_vec(),
        ),
        (
            "0007.png",
            include_bytes!("../../../crates/images/tests/golden/cmyk.jpg").to_vec(),
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
    measure_into(&args, output.path())?;
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
    let error = measure_into(&args, &Path::new(&file).join("output"));
    assert!(format!("{:#}", error.expect_err("there is a file")).contains(&file));
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
    let args = against(pictures.path(), &npz, &["--protocol", &protocol]);
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
