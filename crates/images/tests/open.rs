//! Decoding compared with Pillow and diffusers (`golden/pictures.py`), and everything that is rejected by name.

mod common;

use std::io::Write;
use std::path::Path;

use flate2::write::ZlibEncoder;
use image::{ImageFormat, Rgb, RgbImage};
use swiftbrush_images::{MAX_PIXELS, Orient, decode, open, read_file};

use common::{Golden, chunk, golden};

#[track_caller]
fn rejected(path: &Path, reason: &str) {
    let error = open(path).expect_err("it is rejected");
    let text = error.to_string();
    assert!(
        text.contains(&path.display().to_string()) && text.contains(reason),
        "{text}"
    );
}

#[test]
fn every_format_and_orientation_decodes_as_in_pillow() {
    let expected = Golden::open("pictures");
    let mut compared = 0;
    for entry in std::fs::read_dir(golden().join("pictures")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // JPEG decoders round differently.
        let tolerance = if name.ends_with("jpg") { 2 } else { 0 };
        let bytes = read_file(&path).unwrap();
        for (name, orient) in [
            (name.clone(), Orient::Upright),
            (format!("{name}.stored"), Orient::AsStored),
        ] {
            let found = decode(&bytes, &path, orient).unwrap().image;
            let expected = expected.picture(&name).unwrap();
            assert_eq!(found.dimensions(), expected.dimensions(), "{name}");
            let worst = found.iter().zip(expected.iter());
            let worst = worst.map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(tolerance), "{name} differs by {worst:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 55);
}

#[test]
fn palettes_of_a_wrong_length_are_rejected() {
    let header = [0, 0, 0, 2, 0, 0, 0, 2, 8, 3, 0, 0, 0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("palette.png");
    for (length, is_valid) in [(0, false), (3, true), (4, false), (768, true), (771, false)] {
        let mut pixels = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        pixels.write_all(&[0; 6]).unwrap();
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        png.extend(chunk(b"IHDR", &header));
        png.extend(chunk(b"PLTE", &vec![7; length]));
        png.extend(chunk(b"IDAT", &pixels.finish().unwrap()));
        png.extend(chunk(b"IEND", &[]));
        std::fs::write(&path, png).unwrap();
        match is_valid {
            true => assert_eq!(open(&path).unwrap().image.get_pixel(1, 1), &Rgb([7; 3])),
            false => rejected(&path, &format!("palette of {length} bytes")),
        }
    }
}

#[test]
fn changes_are_reported() {
    let decoded = |name: &str| open(golden().join("pictures").join(name)).unwrap();
    for (name, orientation) in [
        ("exif1.png", 1),
        ("exif6.jpg", 6),
        ("exif6.webp", 6),
        ("exif8.tiff", 1),
        ("late.png", 6),
        ("xmp.png", 6),
        ("xmp.webp", 8),
        ("zero.jpg", 1),
        ("rgb.bmp", 1),
    ] {
        assert_eq!(decoded(name).orientation, orientation, "{name}");
    }
    for name in [
        "rgba.png",
        "rgba.webp",
        "rgba.tiff",
        "la.png",
        "palette-clear.png",
    ]
    .into_iter()
    .chain(["palette-soft.png", "rgb-clear.png", "grey-clear.png"])
    {
        assert!(decoded(name).had_transparency, "{name}");
    }
    for name in ["opaque.png", "palette.png", "grey.jpg", "array.npy"] {
        assert!(!decoded(name).had_transparency, "{name}");
    }
}

#[test]
fn the_format_is_known_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really.png");
    std::fs::copy(golden().join("pictures/rgb.bmp"), &path).unwrap();
    assert_eq!(open(&path).unwrap().image.dimensions(), (16, 24));
}

#[test]
fn ambiguous_conversions_are_rejected() {
    for (name, reason) in [
        ("grey16.png", "more than eight bits"),
        ("cmyk.jpg", "CMYK"),
        ("animated.webp", "animated"),
        ("animated.png", "animated"),
    ] {
        rejected(&golden().join(name), reason);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let deep = image::ImageBuffer::<Rgb<u16>, _>::from_pixel(4, 4, Rgb([1000u16, 2, 3]));
    for name in ["deep.png", "deep.tiff", "deep.ppm"] {
        deep.save(path(name)).unwrap();
        rejected(&path(name), "more than eight bits");
    }
    RgbImage::new(1, 1).save(path("one.png")).unwrap();
    rejected(&path("one.png"), "1x1");
    std::fs::write(path("gif.png"), b"GIF89a\x01\x00\x01\x00").unwrap();
    rejected(&path("gif.png"), "");
    let array = std::fs::read(golden().join("pictures/array.npy")).unwrap();
    let array = String::from_utf8_lossy(&array[..128]).replace("|u1", "<f4");
    std::fs::write(
        path("array.npy"),
        [b"\x93", &array.as_bytes()[3..]].concat(),
    )
    .unwrap();
    rejected(&path("array.npy"), "expected bytes (uint8)");
}

#[test]
fn damaged_files_are_rejected_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let path = folder.path().join("damaged.png");
        RgbImage::from_pixel(6, 5, Rgb([9, 8, 7]))
            .save_with_format(&path, format)
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The last bytes of a PNG only mark the end.
        for len in 0..bytes.len() - 12 {
            std::fs::write(&path, &bytes[..len]).unwrap();
            rejected(&path, "");
        }
    }
    let path = folder.path().join("text.png");
    std::fs::write(&path, "no picture").unwrap();
    rejected(&path, "cannot decode");
    rejected(&folder.path().join("none.png"), "cannot read");
}

/// Inserts a chunk after the header of a PNG.
fn with_chunk(png: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    const BEHIND_HEADER: usize = 33;
    let (start, end) = png.split_at(BEHIND_HEADER);
    [start, &chunk(kind, data), end].concat()
}

/// Peak memory of this process, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix("kB").unwrap();
    1024 * kib.trim().parse::<u64>().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn compressed_metadata_do_not_inflate_without_end() {
    let png = std::fs::read(golden().join("pictures/exif1.png")).unwrap();
    let mut encoder = ZlibEncoder::new(b"icc\0\0".to_vec(), flate2::Compression::best());
    for _ in 0..400 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = with_chunk(&png, b"iCCP", &encoder.finish().unwrap());
    assert!(bomb.len() < 1 << 20);
    let before = peak_memory();
    // The profile is ignored; the pixels are right.
    assert!(decode(&bomb, "bomb.png", Orient::Upright).is_ok());
    let grown = peak_memory() - before;
    assert!(grown < 200 << 20, "{grown} bytes");
}

#[test]
fn sizes_are_checked_before_anything_is_allocated() {
    let header = |width: u32, height: u32| {
        let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
        let header = chunk(b"IHDR", &[&sides[..], &[8, 2, 0, 0, 0]].concat());
        let signature = b"\x89PNG\r\n\x1a\n".to_vec();
        [signature, header, chunk(b"IDAT", b""), chunk(b"IEND", b"")].concat()
    };
    let side = 1 + MAX_PIXELS.isqrt() as u32;
    let array = [
        &b"\x93NUMPY\x01\x00\x76\x00"[..],
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}, 3), }}")
            .as_bytes(),
    ]
    .concat();
    let array = [&array[..], &vec![b' '; 127 - array.len()], b"\n"].concat();
    for bytes in [
        header(side, side),
        format!("P6 {side} {side} 255\n").into_bytes(),
        array,
    ] {
        let error = decode(&bytes, "large", Orient::Upright).unwrap_err();
        let expected = format!("large is {side}x{side}; at most {MAX_PIXELS} pixels");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn devices_and_folders_are_not_images() {
    rejected(Path::new("/dev/zero"), "is not a regular file");
    rejected(&std::env::temp_dir(), "is not a regular file");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.png");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(swiftbrush_images::MAX_FILE + 1).unwrap();
    rejected(&path, "at most");
}
