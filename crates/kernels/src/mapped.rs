//! Weight files, memory-mapped or copied.
#![allow(
    unsafe_code,
    reason = "mapping a file is sound only if nothing changes it in place"
)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::Mmap;

/// Mappings that may be alive.
static MAPPINGS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// Advises the operating system that no mapped weight file of this process will be needed soon, so that their pages no longer
/// count towards its memory.
///
/// Networks that use their weights in place (in f32, f16 or int8, with [`Access::Mapped`]) keep the pages of their files
/// resident once they have run. A program that generates one batch can call this before the denoiser and before the decoder: the
/// networks of the previous stage are not needed any more. Weights that are needed again are read again, from the page cache or,
/// if that has dropped them, from disk. Does nothing outside Unix.
pub fn release_mapped_weights() {
    let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    mappings.retain(|mapping| match mapping.upgrade() {
        Some(map) => {
            let len = map.len();
            MappedFile(map).release(0..len);
            true
        }
        None => false,
    });
}

/// A memory-mapped file, whose pages are read on first access and shared with the operating system's page cache.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Safety
    ///
    /// As long as the mapping or a slice of it is alive, nothing may write to the file in place or truncate it.
    /// Renaming another file over it is fine: the mapping keeps the old contents.
    ///
    /// # Errors
    ///
    /// If the file cannot be mapped; an empty file never can.
    pub unsafe fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the caller guarantees that the file does not change.
        let map = Arc::new(unsafe { Mmap::map(file)? });
        let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|mapping| mapping.strong_count() > 0);
        mappings.push(Arc::downgrade(&map));
        Ok(Self(map))
    }

    /// Returns a range of the contents, which keeps the mapping alive.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    #[track_caller]
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(self.clone()).slice(range)
    }

    /// Advises the operating system that a range will not be needed soon, so that its pages no longer count towards this
    /// process's memory. They are read again on the next access.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    #[track_caller]
    pub fn release(&self, range: Range<usize>) {
        assert!(range.end <= self.0.len(), "{range:?} is outside the file");
        #[cfg(unix)]
        {
            // SAFETY: the mapping is read-only and backed by the file, from which dropped pages are read again. A
            // page shared with a neighbouring range is read again as well.
            let advised = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            // Only advice: correctness does not depend on it.
            drop(advised);
        }
    }
}

/// The access mode of a [`WeightFile`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The file is memory-mapped: opening costs nothing, and weights used in their storage type are never copied.
    ///
    /// The file must not be written to in place or truncated while its tensors are in use. Truncation kills the process
    /// (`SIGBUS`), and writes change weights that have already been validated. Replacing files by renaming, as this
    /// workspace, `huggingface_hub` and most downloaders do, is safe.
    #[default]
    Mapped,
    /// Every range is copied when it is read, so later changes to the file have no effect.
    Owned,
}

/// A weight file, whose ranges are read on demand.
///
/// # Contract
///
/// With [`Access::Mapped`] the caller guarantees that the file is not changed in place while any of its bytes are in use.
/// [`Access::Owned`] has no such requirement.
#[derive(Debug)]
pub struct WeightFile {
    contents: Contents,
    len: u64,
}

#[derive(Debug)]
enum Contents {
    Mapped(MappedFile),
    Owned(Mutex<File>),
}

impl WeightFile {
    /// Wraps an open file.
    ///
    /// # Errors
    ///
    /// If the file is empty, or cannot be mapped.
    pub fn new(file: File, access: Access) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is empty",
            ));
        }
        let contents = match access {
            // SAFETY: callers that pass `Access::Mapped` guarantee not to change the file; the contract is documented
            // on `Access`, `WeightFile` and every public type that opens one.
            Access::Mapped => Contents::Mapped(unsafe { MappedFile::map(&file)? }),
            Access::Owned => Contents::Owned(Mutex::new(file)),
        };
        let len = match &contents {
            Contents::Mapped(mapped) => mapped.0.len() as u64,
            Contents::Owned(_) => len,
        };
        Ok(Self { contents, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The access that the file was opened with.
    pub fn access(&self) -> Access {
        match self.contents {
            Contents::Mapped(_) => Access::Mapped,
            Contents::Owned(_) => Access::Owned,
        }
    }

    /// Returns whether the file is empty, which is never true, because empty files cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of a range: a view of the mapping, or a copy.
    ///
    /// # Errors
    ///
    /// If the range is out of bounds, or the file cannot be read.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let outside = || {
            let text = format!("bytes {range:?} lie outside a file of {} bytes", self.len);
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        };
        if range.start > range.end || range.end > self.len {
            return Err(outside());
        }
        match &self.contents {
            Contents::Mapped(mapped) => Ok(mapped.slice(to_usize(&range).ok_or_else(outside)?)),
            Contents::Owned(file) => {
                let count = usize::try_from(range.end - range.start).map_err(|_| outside())?;
                let mut bytes = vec![0; count];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(range.start))?;
                file.read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Advises that a range will not be needed soon; see [`MappedFile::release`]. Does nothing if the range is out of bounds
    /// or the file is not mapped.
    pub fn release(&self, range: Range<u64>) {
        if let (Contents::Mapped(mapped), true) = (&self.contents, range.end <= self.len)
            && let Some(range) = to_usize(&range)
        {
            mapped.release(range);
        }
    }
}

fn to_usize(range: &Range<u64>) -> Option<Range<usize>> {
    Some(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(contents: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        File::create(&path).unwrap().write_all(contents).unwrap();
        (folder, path)
    }

    #[test]
    fn a_mapping_survives_replacement_and_release() {
        let (folder, path) = file(b"before");
        let mapped = WeightFile::new(File::open(&path).unwrap(), Access::Mapped).unwrap();
        let bytes = mapped.read(0..6).unwrap();
        let other = folder.path().join("other");
        File::create(&other).unwrap().write_all(b"after").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(&bytes[..], b"before");
        mapped.release(0..6);
        assert_eq!(&bytes[..], b"before", "released pages are read again");
        let empty = File::create(&other).unwrap();
        assert!(WeightFile::new(empty, Access::Mapped).is_err());
    }

    /// Resident size of the mapping of a file, in KiB.
    #[cfg(target_os = "linux")]
    fn resident(path: &std::path::Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = maps.split(path.to_str().unwrap()).nth(1).unwrap();
        let line = of_file
            .lines()
            .find(|line| line.starts_with("Rss:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_weights_are_not_resident_and_read_again() {
        let (_folder, path) = file(&[7; 1 << 20]);
        let mapped = WeightFile::new(File::open(&path).unwrap(), Access::Mapped).unwrap();
        let bytes = mapped.read(0..1 << 20).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        assert_eq!(resident(&path), 1024);
        release_mapped_weights();
        assert_eq!(resident(&path), 0);
        assert!(bytes.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn owned_bytes_survive_a_file_changed_in_place() {
        let (_folder, path) = file(b"before");
        let owned = WeightFile::new(File::open(&path).unwrap(), Access::Owned).unwrap();
        let bytes = owned.read(2..6).unwrap();
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(&bytes[..], b"fore");
        assert!(owned.read(2..6).is_err(), "the file has become shorter");
    }

    #[test]
    fn ranges_outside_the_file_are_errors() {
        let (_folder, path) = file(b"bytes");
        for access in [Access::Mapped, Access::Owned] {
            let opened = WeightFile::new(File::open(&path).unwrap(), access).unwrap();
            assert_eq!(opened.len(), 5);
            assert!(opened.read(0..6).is_err());
            #[expect(clippy::reversed_empty_ranges, reason = "it must be rejected")]
            let reversed = 4..3;
            assert!(opened.read(reversed).is_err());
            opened.release(0..60);
        }
    }
}
