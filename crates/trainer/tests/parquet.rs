//! Prompts from Parquet files that pyarrow wrote (`golden/make_parquet.py`).
#![cfg(feature = "parquet")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use swiftbrush_trainer::{PromptFile, PromptSource, Prompts};

/// A copy of a golden file in a folder.
fn copied(name: &str, folder: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(name);
    std::fs::copy(golden.join(name), &path).unwrap();
    path
}

fn sorted(mut prompts: Prompts) -> Vec<String> {
    let count = prompts.len();
    let mut found = prompts.get(0, count).unwrap();
    found.sort();
    found
}

#[test]
fn captions_of_all_row_groups_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("captions.parquet", folder.path());
    let prompts = Prompts::open(&path, 0).unwrap();
    let counts = &prompts.counts()[0];
    assert_eq!((counts.n_blank, counts.n_repeated), (2, 1));
    let expected = [
        "a \"blue\" ring\nabove a line",
        "a green star",
        "a red circle",
        "ein grünes Herz 心",
    ];
    assert_eq!(sorted(prompts), expected);
    let titles = PromptFile::new(&path).with_key("title");
    assert_eq!(sorted(Prompts::open_files(&[titles], 0).unwrap()), ["x"]);
}

#[test]
fn the_copy_is_written_again_when_the_file_has_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("captions.parquet", folder.path());
    let hash = Prompts::open(&path, 0).unwrap().hash();
    let copy = folder.path().join("captions.parquet.caption.jsonl");
    let modified = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(modified(&copy), modified(&path));
    let stamp = |path: &Path, time: SystemTime| {
        let file = std::fs::File::options().write(true).open(path);
        file.unwrap().set_modified(time).unwrap();
    };
    // A copy with the time of its file is used as it is.
    let time = modified(&path);
    std::fs::write(&copy, "{\"caption\": \"another\"}\n").unwrap();
    stamp(&copy, time);
    assert_ne!(Prompts::open(&path, 0).unwrap().hash(), hash);
    stamp(&path, time + Duration::from_secs(1));
    assert_eq!(Prompts::open(&path, 0).unwrap().hash(), hash);
}

#[test]
fn columns_and_compressions_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = copied("captions.parquet", folder.path());
    let zstd = copied("captions_zstd.parquet", folder.path());
    let truncated = folder.path().join("truncated.parquet");
    std::fs::write(&truncated, &std::fs::read(&path).unwrap()[..300]).unwrap();
    for (path, key, expected) in [
        (&path, Some("tags"), "named tags, found caption, title"),
        (&path, Some("id"), "named id, found caption, title"),
        (&zstd, None, "zstd"),
        (&zstd, None, "convert it with: python"),
        (&truncated, None, "truncated.parquet: it cannot be read"),
    ] {
        let file = PromptFile::new(path);
        let file = match key {
            Some(key) => file.with_key(key),
            None => file,
        };
        let error = Prompts::open_files(&[file], 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let copies = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(copies, 3, "a failed copy leaves nothing");
}
