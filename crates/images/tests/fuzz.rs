//! Nearly valid images: decoding fails or succeeds, but never panics.

mod common;

use std::path::Path;

use swiftbrush_images::{Orient, decode};
use swiftbrush_testing::fuzz;

use common::{checksum, golden};

fn seeds(suffixes: &[&str]) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = [golden(), golden().join("pictures")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|suffix| suffixes.iter().any(|known| suffix == *known))
        })
        .collect();
    paths.sort();
    let seeds: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds
}

fn decodes(bytes: &[u8]) {
    for orient in [Orient::Upright, Orient::AsStored] {
        if let Ok(decoded) = decode(bytes, Path::new("fuzzed"), orient) {
            let (width, height) = decoded.image.dimensions();
            assert!(width > 1 && height > 1);
        }
    }
}

/// Recomputes checksums, so that mutations get past them.
fn with_checksums(mut png: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(header) = png.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = at + 8 + u32::from_be_bytes(*header) as usize;
        if end + 4 > png.len() {
            break;
        }
        let sum = checksum(&png[at + 4..end]).to_be_bytes();
        png[end..end + 4].copy_from_slice(&sum);
        at = end + 4;
    }
    png
}

#[test]
fn png() {
    let words = [
        "IHDR", "PLTE", "tRNS", "IDAT", "eXIf", "iCCP", "iTXt", "zTXt", "acTL", "IEND",
    ];
    fuzz(
        &golden().join("corpus/png"),
        &seeds(&["png"]),
        &words,
        |bytes| {
            decodes(&with_checksums(bytes.to_vec()));
        },
    );
}

#[test]
fn jpeg() {
    let words = [
        "\u{ff}\u{d8}",
        "Exif\0\0",
        "II*\0",
        "MM\0*",
        "JFIF\0",
        "Adobe",
    ];
    fuzz(
        &golden().join("corpus/jpeg"),
        &seeds(&["jpg"]),
        &words,
        decodes,
    );
}

#[test]
fn other_formats() {
    let words = [
        "RIFF",
        "WEBP",
        "VP8X",
        "EXIF",
        "BM",
        "II*\0",
        "P6\n",
        "\u{93}NUMPY",
    ];
    let seeds = seeds(&["webp", "bmp", "tiff", "tif", "ppm", "pgm", "npy"]);
    fuzz(&golden().join("corpus/other"), &seeds, &words, decodes);
}
