//! Images with captions from a folder, JSON Lines, or WebDataset's tar files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use examples_common::{decode_image, read_image};
use image::RgbImage;
use serde_json::{Map, Value};
use swiftbrush_checkpoint::{Lines, read_text};
use swiftbrush_images::Folder;

use crate::web_dataset;

/// Keys of image files in JSON Lines.
const FILES: [&str; 2] = ["file_name", "image"];
/// Keys of captions in JSON.
pub(crate) const CAPTIONS: [&str; 3] = ["caption", "prompt", "text"];

/// An image and its caption.
#[derive(Debug)]
pub(crate) struct Captioned {
    pub(crate) image: Image,
    pub(crate) caption: String,
}

/// The place of an image.
#[derive(Debug)]
pub(crate) enum Image {
    File(PathBuf),
    /// A part of a tar file.
    Member {
        shard: PathBuf,
        name: String,
        start: u64,
        len: u64,
    },
}

impl Captioned {
    fn file(path: PathBuf, caption: &str) -> Self {
        Self {
            image: Image::File(path),
            caption: caption.to_owned(),
        }
    }
}

impl Image {
    /// Reads and decodes the image.
    pub(crate) fn read(&self) -> Result<RgbImage> {
        match self {
            Self::File(path) => read_image(path),
            Self::Member {
                shard,
                name,
                start,
                len,
            } => {
                let read = || -> std::io::Result<Vec<u8>> {
                    let mut file = File::open(shard)?;
                    file.seek(SeekFrom::Start(*start))?;
                    let mut bytes = vec![0; *len as usize];
                    file.read_exact(&mut bytes)?;
                    Ok(bytes)
                };
                let path = shard.join(name);
                let bytes = read().with_context(|| format!("cannot read {}", path.display()))?;
                decode_image(&bytes, &path)
            }
        }
    }

    /// The name of the file, by which a stopped run recognises it; in a tar file, that of the tar file and of the member.
    pub(crate) fn name(&self) -> Vec<u8> {
        let of = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.as_encoded_bytes().to_vec()
        };
        match self {
            Self::File(path) => of(path),
            Self::Member { shard, name, .. } => [&of(shard), &b"/"[..], name.as_bytes()].concat(),
        }
    }
}

/// Lists the images of a folder, JSON Lines, or tar files.
pub(crate) fn open(path: &Path) -> Result<Vec<Captioned>> {
    let shards = web_dataset::shards(path)?;
    match (shards.is_empty(), path.is_dir()) {
        (false, _) => web_dataset::of_shards(&shards),
        (true, true) => of_folder(path),
        (true, false) => of_lines(path),
    }
}

/// The images of a folder, each with a text file of the same name.
fn of_folder(folder: &Path) -> Result<Vec<Captioned>> {
    let images = Folder::list(folder)?.pictures.into_iter().map(|path| {
        let text = path.with_extension("txt");
        let caption = read_text(&text).with_context(|| {
            format!(
                "{}: expected its caption in {}",
                path.display(),
                text.display()
            )
        })?;
        ensure!(
            !caption.trim().is_empty(),
            "{}: the caption is empty",
            text.display()
        );
        Ok(Captioned::file(path, caption.trim()))
    });
    images.collect()
}

/// The images of JSON Lines.
fn of_lines(path: &Path) -> Result<Vec<Captioned>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let images = Lines::open(path)?.map(|line| {
        let line = line?;
        let at = || format!("{}: line {}", path.display(), line.number);
        let object: Map<String, Value> = serde_json::from_str(&line.text).with_context(at)?;
        let [file, caption] = [&FILES[..], &CAPTIONS].map(|keys| text(&object, keys));
        let file = folder.join(file.with_context(at)?);
        Ok(Captioned::file(file, caption.with_context(at)?.trim()))
    });
    let images = images.collect::<Result<Vec<_>>>()?;
    ensure!(
        !images.is_empty(),
        "{}: there are no images",
        path.display()
    );
    Ok(images)
}

/// The only text under one of some keys.
pub(crate) fn text<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Result<&'a str> {
    let found: Vec<_> = keys.iter().filter_map(|&key| object.get(key)).collect();
    match found[..] {
        [Value::String(text)] if !text.trim().is_empty() => Ok(text),
        [other] => bail!("expected a text under {}, found {other}", keys.join(" or ")),
        _ => bail!(
            "expected one of the keys {}, found {}",
            keys.join(", "),
            found.len()
        ),
    }
}
