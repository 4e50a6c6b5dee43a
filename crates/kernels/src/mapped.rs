//! Files as memory: weights that are computed with where the operating system keeps them.
#![allow(
    unsafe_code,
    reason = "mapping a file is a promise that nobody changes it"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

/// The contents of a file, read from disk when they are looked at, and not copied: what the operating system has in
/// its cache is what is seen.
///
/// The file must not be written to or made shorter while the contents are in use; a file that is replaced by
/// renaming another stays what it was. Whoever shortens it all the same ends this process.
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
    /// # Errors
    ///
    /// If it cannot be mapped, as an empty one cannot.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes are only read. That they do not change is the caller's to keep, as it is for every program
        // that maps weights; all writers of this workspace replace files by renaming.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(Arc::new(map)))
    }

    /// A part of the contents, which keeps all of them mapped as long as it lives.
    ///
    /// # Panics
    ///
    /// If the range lies outside the file.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(self.clone()).slice(range)
    }

    /// Says that a part will not be looked at again soon, so that it need not count among this process's memory; if it is,
    /// it is read again.
    ///
    /// # Panics
    ///
    /// If the range lies outside the file.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.end <= self.0.len(), "{range:?} lies outside the file");
        #[cfg(unix)]
        {
            // SAFETY: the mapping is of a file and nobody has written to it, so what is dropped is still in the file. A
            // page that is shared with a neighbouring part is read again too.
            let dropped = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            // It is advice: nothing depends on it.
            drop(dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_replaced_file_stays_what_it_was_and_what_is_released_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        File::create(&path).unwrap().write_all(b"before").unwrap();
        let mapped = MappedFile::new(&File::open(&path).unwrap()).unwrap();
        let bytes = mapped.slice(0..6);
        let other = folder.path().join("other");
        File::create(&other).unwrap().write_all(b"after").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(&bytes[..], b"before");
        mapped.release(0..6);
        assert_eq!(&bytes[..], b"before", "what was released is read again");
        assert!(MappedFile::new(&File::create(&other).unwrap()).is_err());
    }
}
