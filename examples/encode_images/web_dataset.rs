//! WebDataset's tar files: the files of a sample follow each other and share their name up to its first dot.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use swiftbrush_images::{MAX_FILE, natural_order};
use tar::{Archive, Entry, EntryType};

use crate::captioned::{CAPTIONS, Captioned, Image, text};

/// Extensions of images. In these files `.npy` is a feature, not an image.
const IMAGES: [&str; 9] = [
    "bmp", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp",
];
/// Largest caption or JSON file in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The tar files of a folder in natural order, or the one at the path.
pub(crate) fn shards(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(is_tar(path).then(|| path.to_owned()).into_iter().collect());
    }
    let entries = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read {}", path.display()));
    let mut shards: Vec<PathBuf> = entries?;
    shards.retain(|path| is_tar(path));
    shards.sort_by(|a, b| natural_order(a, b));
    Ok(shards)
}

fn is_tar(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("tar"))
}

/// Lists the images of tar files, without reading them.
pub(crate) fn of_shards(shards: &[PathBuf]) -> Result<Vec<Captioned>> {
    let mut images = Vec::new();
    for shard in shards {
        let found = of_shard(shard);
        images.extend(found.with_context(|| format!("cannot use {}", shard.display()))?);
    }
    ensure!(
        !images.is_empty(),
        "{}: there are no images",
        shards[0].display()
    );
    Ok(images)
}

fn of_shard(path: &Path) -> Result<Vec<Captioned>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut archive = Archive::new(BufReader::new(file));
    let (mut images, mut sample) = (Vec::new(), Sample::default());
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let Some(member) = Member::of(&entry)? else {
            continue;
        };
        ensure!(
            member.start + member.len <= size,
            "{} is truncated",
            member.name
        );
        if member.key() != sample.key {
            let next = Sample::new(member.key());
            images.extend(std::mem::replace(&mut sample, next).finish(path)?);
        }
        sample.add(member, &mut entry)?;
    }
    images.extend(sample.finish(path)?);
    Ok(images)
}

/// A file in a tar file.
struct Member {
    name: String,
    start: u64,
    len: u64,
}

impl Member {
    /// The member, or `None` for a folder and for a file that belongs to no sample.
    fn of<R: Read>(entry: &Entry<'_, R>) -> Result<Option<Self>> {
        let path = entry.path()?;
        let name = path.to_str();
        let name = name.with_context(|| format!("{}: the name is not UTF-8", path.display()))?;
        match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => return Ok(None),
            EntryType::Regular | EntryType::Continuous => {}
            other => bail!("{name}: unsupported entry {other:?}; expected files"),
        }
        let member = Self {
            name: name.to_owned(),
            start: entry.raw_file_position(),
            len: entry.size(),
        };
        // As in WebDataset: no key or no extension.
        let has_both = !member.base().starts_with('.') && member.base().contains('.');
        Ok(has_both.then_some(member))
    }

    fn base(&self) -> &str {
        let end = self.name.rfind('/').map_or(0, |slash| slash + 1);
        &self.name[end..]
    }

    /// The path up to the first dot of the file's name.
    fn key(&self) -> &str {
        let folder = self.name.len() - self.base().len();
        let dot = self.base().find('.').unwrap_or(self.base().len());
        &self.name[..folder + dot]
    }

    fn extension(&self) -> String {
        self.name[self.key().len()..]
            .trim_start_matches('.')
            .to_ascii_lowercase()
    }
}

/// The files of a sample.
#[derive(Debug, Default)]
struct Sample {
    key: String,
    image: Option<(String, u64, u64)>,
    caption: Option<String>,
    json: Option<String>,
}

impl Sample {
    fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..Self::default()
        }
    }

    fn add(&mut self, member: Member, entry: &mut impl Read) -> Result<()> {
        let Member { name, start, len } = &member;
        match member.extension().as_str() {
            "txt" => self.caption = Some(read(entry, &member)?),
            "json" => self.json = Some(read(entry, &member)?),
            extension if IMAGES.contains(&extension) => {
                if let Some((other, ..)) = &self.image {
                    bail!("{other} and {name}: expected one image in a sample");
                }
                ensure!(
                    *len <= MAX_FILE,
                    "{name} has {len} bytes; expected at most {MAX_FILE}"
                );
                self.image = Some((name.clone(), *start, *len));
            }
            // Classes, features, and other annotations.
            _ => {}
        }
        Ok(())
    }

    /// The image with its caption; `None` before the first sample.
    fn finish(self, shard: &Path) -> Result<Option<Captioned>> {
        let Self {
            key,
            image,
            caption,
            json,
        } = self;
        if key.is_empty() {
            return Ok(None);
        }
        let (name, start, len) =
            image.with_context(|| format!("{key}: the sample has no image"))?;
        let caption = match (caption, json) {
            (Some(caption), _) => caption,
            (None, Some(json)) => {
                let at = || format!("{key}.json");
                let object: Map<String, Value> = serde_json::from_str(&json).with_context(at)?;
                text(&object, &CAPTIONS).with_context(at)?.to_owned()
            }
            (None, None) => bail!("{name}: expected its caption in {key}.txt or {key}.json"),
        };
        let caption = caption.trim().to_owned();
        ensure!(!caption.is_empty(), "{key}.txt: the caption is empty");
        let shard = shard.to_owned();
        Ok(Some(Captioned {
            image: Image::Member {
                shard,
                name,
                start,
                len,
            },
            caption,
        }))
    }
}

fn read(entry: &mut impl Read, Member { name, len, .. }: &Member) -> Result<String> {
    ensure!(
        *len <= MAX_TEXT,
        "{name} has {len} bytes; expected at most {MAX_TEXT}"
    );
    let mut text = String::new();
    let read = entry.read_to_string(&mut text);
    read.with_context(|| name.clone())?;
    Ok(text)
}
