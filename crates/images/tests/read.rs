//! What is read and what is refused, by name.

use std::path::Path;

use image::{DynamicImage, GrayImage, ImageFormat, Rgb, RgbImage, RgbaImage};
use swiftbrush_images::{list, read};

fn refused(path: &Path, reason: &str) {
    let error = read(path).expect_err("it is refused");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    assert!(
        text.contains(&path.display().to_string()) && text.contains(reason),
        "{text}"
    );
}

#[test]
fn rgb_and_grey_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_fn(5, 4, |x, y| Rgb([x as u8 * 50, y as u8 * 60, 7]));
    for name in ["a.png", "a.webp"] {
        let path = folder.path().join(name);
        picture.save(&path).unwrap();
        assert_eq!(read(&path).unwrap(), picture, "{name}");
    }
    for name in ["grey.png", "grey.jpg"] {
        let path = folder.path().join(name);
        GrayImage::from_pixel(8, 8, image::Luma([130]))
            .save(&path)
            .unwrap();
        assert!(
            read(&path)
                .unwrap()
                .pixels()
                .all(|pixel| pixel.0 == [130; 3])
        );
    }
    let path = folder.path().join("opaque.png");
    DynamicImage::ImageRgb8(picture.clone())
        .into_rgba8()
        .save(&path)
        .unwrap();
    assert_eq!(read(&path).unwrap(), picture);
}

#[test]
fn what_would_have_to_be_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);

    RgbaImage::from_pixel(4, 4, image::Rgba([1, 2, 3, 100]))
        .save(path("clear.png"))
        .unwrap();
    refused(&path("clear.png"), "transparent");

    let deep = image::ImageBuffer::<Rgb<u16>, _>::from_pixel(4, 4, Rgb([1000u16, 2, 3]));
    deep.save(path("deep.png")).unwrap();
    refused(&path("deep.png"), "eight bits");

    RgbImage::new(1, 1).save(path("one.png")).unwrap();
    refused(&path("one.png"), "1x1");

    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    refused(&golden.join("cmyk.jpg"), "CMYK");
    refused(&golden.join("animated.webp"), "animated");
    refused(&golden.join("animated.png"), "animated");

    std::fs::write(path("gif.png"), b"GIF89a\x01\x00\x01\x00").unwrap();
    refused(&path("gif.png"), "");
}

#[test]
fn damaged_files_are_refused_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let path = folder.path().join("damaged.png");
        RgbImage::from_pixel(6, 5, Rgb([9, 8, 7]))
            .save_with_format(&path, format)
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The last bytes of a PNG say only that it ends.
        for len in 0..bytes.len() - 12 {
            std::fs::write(&path, &bytes[..len]).unwrap();
            refused(&path, "");
        }
    }
    let path = folder.path().join("text.png");
    std::fs::write(&path, "no picture").unwrap();
    refused(&path, "");
    refused(&folder.path().join("none.png"), "cannot read");
}

#[test]
fn folders_are_listed_in_order_and_empty_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = list(folder.path()).expect_err("it is empty").to_string();
    assert!(
        error.contains(&folder.path().display().to_string()),
        "{error}"
    );
    std::fs::create_dir(folder.path().join("b")).unwrap();
    for name in ["c.PNG", "b/z.png", "a.jpg", "notes.txt"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let names: Vec<_> = list(folder.path()).unwrap();
    let expected = ["a.jpg", "b/z.png", "c.PNG"].map(|name| folder.path().join(name));
    assert_eq!(names, expected);
}
