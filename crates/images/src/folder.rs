use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// Extensions of image files, in any case: those that pytorch-fid and clean-fid count.
pub const EXTENSIONS: [&str; 10] = [
    "bmp", "jpeg", "jpg", "npy", "pgm", "png", "ppm", "tif", "tiff", "webp",
];

/// The images in a folder and its sub-folders, and everything else found there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Folder {
    /// Files with one of [`EXTENSIONS`], in [`natural_order`] of their paths.
    pub pictures: Vec<PathBuf>,
    /// All other files, hidden files and folders, and links to folders, in the same order.
    pub skipped: Vec<PathBuf>,
}

impl Folder {
    /// Lists a folder.
    ///
    /// # Errors
    ///
    /// If a folder cannot be read, or there are no images.
    pub fn list(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let mut found = Self {
            pictures: Vec::new(),
            skipped: Vec::new(),
        };
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let failed = |cause| Error::Io {
                path: folder.clone(),
                cause,
            };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                // macOS leaves a hidden "._name" next to each file that it copies.
                let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                if is_hidden {
                    found.skipped.push(path);
                } else if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(path);
                } else if is_picture(&path) && !path.is_dir() {
                    found.pictures.push(path);
                } else {
                    found.skipped.push(path);
                }
            }
        }
        found.pictures.sort_by(|a, b| natural_order(a, b));
        found.skipped.sort_by(|a, b| natural_order(a, b));
        match found.pictures.is_empty() {
            true => Err(Error::Empty {
                path: folder.to_owned(),
            }),
            false => Ok(found),
        }
    }

    /// Two images whose names differ only in extensions and leading zeros, if any: the order of `1.png` and `01.jpg` is
    /// arbitrary.
    pub fn tie(&self) -> Option<[&Path; 2]> {
        let mut neighbours = self.pictures.windows(2);
        let pair = neighbours.find(|pair| by_number(&pair[0], &pair[1]) == Ordering::Equal)?;
        Some([&pair[0], &pair[1]])
    }
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

/// Compares paths in natural order: digits compare as numbers, so that `2.png` comes before `10.png`.
///
/// Names that differ only in leading zeros or extensions are ordered by their bytes; see [`Folder::tie`].
///
/// # Examples
///
/// ```
/// use std::path::Path;
/// use swiftbrush_images::natural_order;
///
/// let mut names = ["10.png", "b.png", "9.png", "a/1.png"].map(Path::new);
/// names.sort_by(|a, b| natural_order(a, b));
/// assert_eq!(names, ["9.png", "10.png", "a/1.png", "b.png"].map(Path::new));
/// ```
pub fn natural_order(first: &Path, second: &Path) -> Ordering {
    by_number(first, second).then_with(|| first.cmp(second))
}

fn by_number(first: &Path, second: &Path) -> Ordering {
    let [first, second] = [first, second].map(|path| path.with_extension(""));
    let mut first = first.as_os_str().as_encoded_bytes();
    let mut second = second.as_os_str().as_encoded_bytes();
    loop {
        let (a, rest_a) = first_part(first);
        let (b, rest_b) = first_part(second);
        let order = match (a, b) {
            (Part::Number(a), Part::Number(b)) => a.len().cmp(&b.len()).then(a.cmp(b)),
            (a, b) => a.cmp(&b),
        };
        if order != Ordering::Equal || (first.is_empty() && second.is_empty()) {
            return order;
        }
        (first, second) = (rest_a, rest_b);
    }
}

/// A part of a name. Numbers sort before other bytes, as digits sort before letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    End,
    /// Digits without leading zeros.
    Number(&'a [u8]),
    Byte(u8),
}

fn first_part(text: &[u8]) -> (Part<'_>, &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        let (number, rest) = text.split_at(digits);
        let zeros = number.iter().take_while(|digit| **digit == b'0').count();
        return (Part::Number(&number[zeros..]), rest);
    }
    match text.split_first() {
        Some((byte, rest)) => (Part::Byte(*byte), rest),
        None => (Part::End, text),
    }
}
