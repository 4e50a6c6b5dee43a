//! Files by path, of the operating system or of any other source.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use swiftbrush_kernels::{Access, WeightFile};

use crate::Error;

/// Read-only files that are not on the operating system's file system, such as those of a browser, an archive or the program
/// itself. [`Model::from_source`](crate::Model::from_source) reads a model from them.
///
/// Only the requested ranges are read: headers when a file is opened, and one tensor at a time when weights are loaded. A
/// file of several gigabytes therefore never passes through memory whole. The contents of a file must not change while a
/// model uses it.
///
/// Paths are relative to the source, with the components of a model as folders: `unet/config.json`.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use swiftbrush_checkpoint::{MemoryFiles, Model};
///
/// let files = MemoryFiles::from_iter([("tiny/unet/config.json", r#"{"sample_size": 8}"#)]);
/// let model = Model::from_source("tiny", Arc::new(files))?;
/// assert!(model.is_file("tiny/unet/config.json"));
/// assert!(!model.has("unet"), "there are no weights");
/// # Ok::<(), swiftbrush_checkpoint::Error>(())
/// ```
pub trait FileSource: Send + Sync {
    /// The length of a file in bytes; `None` if there is no file at this path.
    ///
    /// # Errors
    ///
    /// If the source cannot tell.
    fn len(&self, path: &Path) -> io::Result<Option<u64>>;

    /// The bytes of a range, which lies within the file's length.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Bytes>;

    /// The names of the files in a folder and in all folders below it, relative to it, in any order; empty if there are
    /// none.
    fn names(&self, folder: &Path) -> Vec<PathBuf>;
}

/// Files in memory, such as those that a program embeds with `include_bytes!`.
#[derive(Clone, Default)]
pub struct MemoryFiles(BTreeMap<PathBuf, Bytes>);

impl fmt::Debug for MemoryFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.0.iter().map(|(path, bytes)| (path, bytes.len()));
        f.debug_map().entries(files).finish()
    }
}

impl<P: Into<PathBuf>, B: Into<Bytes>> FromIterator<(P, B)> for MemoryFiles {
    fn from_iter<I: IntoIterator<Item = (P, B)>>(files: I) -> Self {
        let files = files.into_iter();
        Self(
            files
                .map(|(path, bytes)| (path.into(), bytes.into()))
                .collect(),
        )
    }
}

impl FileSource for MemoryFiles {
    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        Ok(self.0.get(path).map(|bytes| bytes.len() as u64))
    }

    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Bytes> {
        let bytes = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if start <= end && end <= bytes.len() => {
                Ok(bytes.slice(start..end))
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn names(&self, folder: &Path) -> Vec<PathBuf> {
        let below = self
            .0
            .keys()
            .filter_map(|path| path.strip_prefix(folder).ok());
        below.map(Path::to_owned).collect()
    }
}

/// The files that a model's paths refer to.
#[derive(Clone, Default)]
pub(crate) enum Files {
    #[default]
    System,
    Source(Arc<dyn FileSource>),
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Source(_) => "Source",
        })
    }
}

impl Files {
    pub(crate) fn is_file(&self, path: &Path) -> bool {
        match self {
            Self::System => path.is_file(),
            Self::Source(source) => matches!(source.len(path), Ok(Some(_))),
        }
    }

    /// Returns whether there is a file or folder at a path.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        match self {
            Self::System => path.exists(),
            Self::Source(source) => self.is_file(path) || !source.names(path).is_empty(),
        }
    }

    /// The names of the files in a folder, sorted; empty if it cannot be read.
    pub(crate) fn names(&self, folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = match self {
            Self::System => {
                let entries = fs::read_dir(folder).into_iter().flatten().flatten();
                let files = entries.filter(|entry| entry.path().is_file());
                files
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect()
            }
            Self::Source(source) => {
                let names = source.names(folder).into_iter();
                let own = names.filter(|name| name.components().count() == 1);
                own.map(|name| name.to_string_lossy().into_owned())
                    .collect()
            }
        };
        names.sort();
        names
    }

    /// The sub-folders of a folder, in any order; empty if it cannot be read.
    pub(crate) fn folders(&self, folder: &Path) -> Vec<PathBuf> {
        match self {
            Self::System => {
                let entries = fs::read_dir(folder).into_iter().flatten().flatten();
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir())
                    .collect()
            }
            Self::Source(source) => {
                let names = source.names(folder).into_iter();
                let parents = names.filter_map(|name| Some(name.parent()?.to_owned()));
                let mut folders: Vec<_> = parents
                    .filter_map(|it| it.iter().next().map(|first| folder.join(first)))
                    .collect();
                folders.sort();
                folders.dedup();
                folders
            }
        }
    }

    pub(crate) fn read_to_string(&self, path: &Path) -> Result<String, Error> {
        match self {
            Self::System => fs::read_to_string(path).map_err(|error| Error::read(path, error)),
            Self::Source(_) => {
                let file = self.open(path, Access::Mapped)?;
                let bytes = file.read(0..file.len());
                let bytes = bytes.map_err(|error| Error::read(path, error))?;
                String::from_utf8(bytes.into()).map_err(|_| {
                    let cause = "stream did not contain valid UTF-8";
                    Error::read(path, io::Error::new(io::ErrorKind::InvalidData, cause))
                })
            }
        }
    }

    /// Opens a file for reading in ranges; folders and empty files are errors.
    pub(crate) fn open(&self, path: &Path, access: Access) -> Result<RangeFile, Error> {
        let failed = |error| Error::read(path, error);
        let source = match self {
            Self::System => return open_file(path, access).map(RangeFile::System),
            Self::Source(source) => source,
        };
        let len = source.len(path).map_err(failed)?;
        match len {
            None => Err(failed(io::ErrorKind::NotFound.into())),
            Some(0) => Err(Error::damaged(path, "it is empty")),
            Some(len) => Ok(RangeFile::Source {
                source: source.clone(),
                path: path.to_owned(),
                len,
            }),
        }
    }
}

fn open_file(path: &Path, access: Access) -> Result<WeightFile, Error> {
    let file = File::open(path).map_err(|error| Error::read(path, error))?;
    let metadata = file.metadata().map_err(|error| Error::read(path, error))?;
    if metadata.is_dir() {
        return Err(Error::NotWeights {
            path: path.to_owned(),
            found: "a folder; pass the path of a weight file in it".to_owned(),
        });
    }
    if metadata.len() == 0 {
        return Err(Error::damaged(path, "it is empty"));
    }
    WeightFile::new(file, access).map_err(|error| Error::read(path, error))
}

/// An open file, read in ranges.
pub(crate) enum RangeFile {
    System(WeightFile),
    Source {
        source: Arc<dyn FileSource>,
        path: PathBuf,
        len: u64,
    },
}

impl fmt::Debug for RangeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RangeFile({} bytes)", self.len())
    }
}

impl RangeFile {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::System(file) => file.len(),
            Self::Source { len, .. } => *len,
        }
    }

    /// Returns whether tensors may keep the bytes that were read instead of copying them. Windows cannot replace a mapped
    /// file, so nothing stays mapped there.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::System(file) => file.access() == Access::Mapped && cfg!(not(windows)),
            Self::Source { .. } => true,
        }
    }

    /// The bytes of a range.
    ///
    /// # Errors
    ///
    /// If the range is out of bounds, or the file cannot be read.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let (source, path, len) = match self {
            Self::System(file) => return file.read(range),
            Self::Source { source, path, len } => (source, path, *len),
        };
        let unexpected = |text| Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        if range.start > range.end || range.end > len {
            return unexpected(format!("bytes {range:?} lie outside a file of {len} bytes"));
        }
        let bytes = source.read(path, range.clone())?;
        match bytes.len() as u64 == range.end - range.start {
            true => Ok(bytes),
            false => unexpected(format!("{} bytes instead of bytes {range:?}", bytes.len())),
        }
    }

    /// Advises that a range will not be needed soon; see [`WeightFile::release`].
    pub(crate) fn release(&self, range: Range<u64>) {
        if let Self::System(file) = self {
            file.release(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source whose files end early.
    struct Short(MemoryFiles);

    impl FileSource for Short {
        fn len(&self, path: &Path) -> io::Result<Option<u64>> {
            self.0.len(path)
        }

        fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Bytes> {
            self.0.read(path, range.start..range.end.min(3))
        }

        fn names(&self, folder: &Path) -> Vec<PathBuf> {
            self.0.names(folder)
        }
    }

    fn files() -> MemoryFiles {
        let files = [
            ("m/a.txt", "four"),
            ("m/b/c.txt", "c"),
            ("m/b/d/e.txt", "e"),
        ];
        files.into_iter().collect()
    }

    #[test]
    fn a_short_read_is_an_error() {
        let path = Path::new("m/a.txt");
        let open = |files: Files| files.open(path, Access::Mapped).unwrap();
        let short = open(Files::Source(Arc::new(Short(files()))));
        assert_eq!(&short.read(0..3).unwrap()[..], b"fou");
        let error = short.read(0..4).unwrap_err().to_string();
        assert!(error.contains("3 bytes instead"), "{error}");
        let whole = open(Files::Source(Arc::new(files())));
        assert_eq!(&whole.read(1..4).unwrap()[..], b"our");
        assert!(whole.read(1..5).is_err());
    }

    #[test]
    fn a_source_has_files_and_folders() {
        let files = Files::Source(Arc::new(files()));
        let folder = Path::new("m");
        assert_eq!(files.names(folder), ["a.txt"]);
        assert_eq!(files.folders(folder), [Path::new("m/b")]);
        assert!(files.is_file(Path::new("m/b/c.txt")) && !files.is_file(Path::new("m/b")));
        assert!(files.exists(Path::new("m/b/d")) && !files.exists(Path::new("m/x")));
        let missing = files.open(Path::new("m/x"), Access::Mapped).unwrap_err();
        assert!(missing.to_string().contains("m/x"), "{missing}");
        assert_eq!(files.read_to_string(Path::new("m/a.txt")).unwrap(), "four");
    }
}
