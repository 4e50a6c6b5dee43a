//! The program, with folders, JSON Lines and tar files.

use std::path::Path;

use burn::tensor::DType;
use clap::CommandFactory;
use image::{Rgb, RgbImage};
use swiftbrush_trainer::LatentSet;

use super::*;

fn arguments(images: &Path, output: &Path) -> Args {
    let paths = [images, output].map(|path| path.to_str().unwrap().to_owned());
    Args::parse_from([
        "encode_images",
        "--images",
        &paths[0],
        "--output",
        &paths[1],
    ])
}

/// Two images that are wider than high.
fn images(folder: &Path) {
    for (name, colour) in [("a", [255, 0, 0]), ("b", [0, 200, 50])] {
        RgbImage::from_pixel(50, 40, Rgb(colour))
            .save(folder.join(name).with_extension("png"))
            .unwrap();
    }
}

#[test]
fn the_arguments_are_consistent() {
    Args::command().debug_assert();
}

#[test]
fn latents_are_those_of_the_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    for name in ["a", "b"] {
        std::fs::write(
            folder.path().join(name).with_extension("txt"),
            format!("picture {name}\n"),
        )
        .unwrap();
    }
    let lines = "{\"file_name\": \"b.png\", \"text\": \"picture b\"}\n{\"image\": \"a.png\", \"caption\": \"picture a\"}\n";
    std::fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
    let sets = ["", "metadata.jsonl"].map(|name| {
        let output = folder.path().join(format!("latents-{name}"));
        let args = arguments(&folder.path().join(name), &output);
        encode(&args).unwrap();
        LatentSet::open(output).unwrap()
    });
    let args = arguments(folder.path(), folder.path());
    let device = args.model.device().unwrap();
    let loader = ModelArgs::loader(&args.model.source().unwrap(), &device).unwrap();
    let (decoder, side) = (loader.decoder().unwrap(), loader.side().unwrap());
    let path = Image::File(folder.path().join("b.png"));
    let expected = encoded(&path, &decoder, side, &device).unwrap();
    let expected = expected.cast(DType::F16).cast(DType::F32).into_data();
    for (set, entry) in sets.iter().zip([1, 0]) {
        assert_eq!((set.len(), set.kind()), (2, LatentKind::Images));
        let found = set.get(&[entry], &device).unwrap();
        assert_eq!(found.prompts, ["picture b"]);
        assert!(found.noise.is_none());
        assert_eq!(found.latents.into_data(), expected);
    }
}

#[test]
fn images_without_captions_are_rejected_by_name() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let fails = |images: &Path| {
        let error = encode(&arguments(images, &folder.path().join("latents")));
        format!("{:#}", error.unwrap_err())
    };
    assert!(fails(folder.path()).contains("a.png: expected its caption in"));
    let lines = folder.path().join("metadata.jsonl");
    for (text, expected) in [
        (
            "{\"image\": \"a.png\"}",
            "line 1: expected one of the keys caption, prompt, text, found 0",
        ),
        (
            "{\"text\": \"a\", \"image\": \"a.png\", \"file_name\": \"b.png\"}",
            "file_name, image, found 2",
        ),
        (
            "{\"text\": 3, \"image\": \"a.png\"}",
            "expected a text under caption or prompt or text, found 3",
        ),
        ("{\"text\": \"a\", \"image\": \"c.png\"}", "c.png"),
        ("\n", "there are no images"),
    ] {
        std::fs::write(&lines, text).unwrap();
        let error = fails(&lines);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// Writes a tar file of some members.
fn tar(path: &Path, members: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn latents_of_tar_files_are_those_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("images")).unwrap();
    images(&path("images"));
    for name in ["a", "b"] {
        let caption = path("images").join(name).with_extension("txt");
        std::fs::write(caption, format!("picture {name}\n")).unwrap();
    }
    let bytes = |name: &str| std::fs::read(path("images").join(name)).unwrap();
    let (a, b) = (bytes("a.png"), bytes("b.png"));
    std::fs::create_dir(path("shards")).unwrap();
    // Natural order: 9 before 10. A name beyond the 100 bytes of a plain header, and a dot in a folder.
    let long = format!("v1.0/{}/b", "deep/".repeat(30));
    tar(
        &path("shards").join("10.tar"),
        &[
            (
                &format!("{long}.json"),
                br#"{"caption": "picture b", "width": 50}"#,
            ),
            (&format!("{long}.PNG"), &b),
            (&format!("{long}.feature.npy"), b"ignored"),
        ],
    );
    tar(
        &path("shards").join("9.tar"),
        &[
            ("__index__", b"no extension"),
            ("a.txt", b"picture a\n"),
            ("a.json", br#"{"caption": "another"}"#),
            ("a.png", &a),
        ],
    );
    let sets = ["images", "shards"].map(|name| {
        let output = path(&format!("latents-{name}"));
        // The second time, nothing is left to do.
        for _ in 0..2 {
            encode(&arguments(&path(name), &output)).unwrap();
        }
        LatentSet::open(output).unwrap()
    });
    let device = burn::tensor::Device::default();
    let [expected, found] = sets.map(|set| set.get(&[0, 1], &device).unwrap());
    assert_eq!(found.prompts, ["picture a", "picture b"]);
    assert_eq!(found.prompts, expected.prompts);
    assert_eq!(found.latents.into_data(), expected.latents.into_data());

    let one = path("latents-one");
    encode(&arguments(&path("shards").join("10.tar"), &one)).unwrap();
    assert_eq!(LatentSet::open(one).unwrap().len(), 1);
}

#[test]
fn samples_that_are_not_whole_are_rejected_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let fails = || {
        let error = encode(&arguments(&path, &folder.path().join("latents")));
        format!("{:#}", error.unwrap_err())
    };
    let image: (&str, &[u8]) = ("a/1.jpg", b"not decoded");
    for (members, expected) in [
        (&[][..], "a.tar: there are no images"),
        (
            &[image],
            "a.tar: a/1.jpg: expected its caption in a/1.txt or a/1.json",
        ),
        (
            &[("a/1.txt", b"a cat"), ("a/2.jpg", b"")],
            "a.tar: a/1: the sample has no image",
        ),
        (
            &[image, ("a/1.png", b"")],
            "a/1.jpg and a/1.png: expected one image",
        ),
        (
            &[image, ("a/1.txt", b" \n")],
            "a/1.txt: the caption is empty",
        ),
        (&[image, ("a/1.txt", b"\xff")], "a/1.txt: "),
        (
            &[image, ("a/1.json", b"{\"title\": \"a cat\"}")],
            "a/1.json: expected one of the keys caption, prompt, text, found 0",
        ),
        (&[image, ("a/1.txt", b"a cat")], "a.tar/a/1.jpg"),
    ] {
        tar(&path, members);
        let error = fails();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // A header of 512 bytes, and half of the image.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..512 + image.1.len() / 2]).unwrap();
    assert!(
        fails().contains("a.tar: a/1.jpg is truncated"),
        "{}",
        fails()
    );
    // Links, which a tar file may have, name other files.
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "a/1.jpg", "b.jpg")
        .unwrap();
    builder.finish().unwrap();
    drop(builder);
    assert!(
        fails().contains("a/1.jpg: unsupported entry Symlink"),
        "{}",
        fails()
    );
}
