//! Interrupted and repeated runs, and comparisons of their results.

use super::*;

#[test]
fn an_interrupted_run_ends_with_the_same_values() -> Result<()> {
    let (real, captions) = truth(6, 40);
    let reference = folder(&real, &captions);
    let path = text(reference.path());
    let prompts = prompts_of(&reference);
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
    let expected = measure_into(&args, whole.path())?;
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
        &clip(),
    ])?;
    for (found, expected) in again.values.iter().zip(&expected.values) {
        assert!(
            (found.value - expected.value).abs() < 1e-5,
            "{found:?} {expected:?}"
        );
    }

    // Pictures that were not kept cannot be written later.
    std::fs::remove_dir_all(output.path().join("pictures"))?;
    let error = measure_into(&args, output.path()).expect_err("its pictures are gone");
    assert!(error.to_string().contains("without --keep"), "{error}");

    // Another seed is another run.
    let args = [&args[..args.len() - 1], &["4"]].concat();
    let error = measure_into(&args, output.path()).expect_err("it is another run");
    assert!(
        error.to_string().contains("painted.seed is 3 and 4"),
        "{error}"
    );
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
        let more = ["--protocol", &protocol];
        measure_into(
            &against(pictures.path(), reference.path(), &more),
            output.path(),
        )
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
