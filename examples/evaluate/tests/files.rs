//! The pictures in a folder, and their prompts.

use super::*;

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
    let prompts = prompts_of(&reference);
    let evaluate =
        |folder: &Path| measure(&against(folder, reference.path(), &["--prompts", &prompts]));
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
    let args = against(mixed.path(), reference.path(), &["--protocol", &protocol]);
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
            "that are not pictures: .DS_Store, ._00.png, Thumbs.db"
        ),
        "{:?}",
        found.notes
    );

    // Transparency is dropped in every colour type, and orientations are applied.
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
        "1 of 16 pictures have an Exif orientation and were rotated upright",
    ] {
        assert!(notes(&found, note), "{:?}", found.notes);
    }
    Ok(())
}
