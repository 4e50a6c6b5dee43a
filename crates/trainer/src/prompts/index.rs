use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use swiftbrush_checkpoint::{Lines, TextError, write_atomically};

use super::caption::Format;
use crate::Error;
use crate::fingerprint::hex;

/// The first half of a prompt's SHA-256.
pub(crate) type Digest = [u8; 16];

/// Digests by value; they are random already.
pub(crate) type Digests = HashSet<Digest, BuildHasherDefault<FirstBytes>>;

/// A hash function that returns the first eight bytes of a digest.
#[derive(Debug, Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// Ignores the length, which all digests share.
    fn write_usize(&mut self, _: usize) {}
}

pub(crate) fn digest(prompt: &str) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&Sha256::digest(prompt)[..16]);
    digest
}

/// The place of a prompt's line in its file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) len: u32,
    pub(crate) digest: Digest,
}

/// The distinct prompts of a file, in its order.
#[derive(Debug, PartialEq)]
pub(crate) struct Index {
    pub(crate) entries: Vec<Entry>,
    pub(crate) n_blank: usize,
    /// Number of prompts that are equal to an earlier one.
    pub(crate) n_repeated: usize,
}

/// Size from which a file's index is stored next to it; smaller files are read quickly.
const KEPT_FROM: u64 = 8 << 20;
/// Bytes of an entry in an index file.
const ENTRY: usize = 28;

/// The first line of an index file, which shows whether the index is up to date.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    format: String,
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
    key: Option<String>,
    n_blank: usize,
    n_repeated: usize,
    /// SHA-256 of the entries.
    entries: String,
}

const FORMAT: &str = "swiftbrush prompt index 1";

impl Index {
    /// Reads the index next to a prompt file, or the whole file if there is no index or the file has changed.
    pub(crate) fn open(path: &Path, format: &Format) -> Result<Self, Error> {
        Self::open_with(path, format, KEPT_FROM)
    }

    fn open_with(path: &Path, format: &Format, kept_from: u64) -> Result<Self, Error> {
        let [size, modified] = stamp(path)?;
        let kept = beside(path);
        if size < u128::from(kept_from) {
            return Self::read(path, format);
        }
        let is_current = |header: &Header| {
            let found = (
                header.format.as_str(),
                u128::from(header.size),
                header.modified,
            );
            found == (FORMAT, size, modified) && header.key.as_deref() == key(format)
        };
        if let Some(index) = Self::load(&kept, is_current) {
            return Ok(index);
        }
        let index = Self::read(path, format)?;
        if let Err(error) = index.save(&kept, [size, modified], format) {
            tracing::warn!("{error}: the prompts will be read again at the next start");
        }
        Ok(index)
    }

    /// Reads and checks every line.
    fn read(path: &Path, format: &Format) -> Result<Self, Error> {
        let mut lines = Lines::open(path)?;
        let (mut entries, mut seen) = (Vec::new(), Digests::default());
        let (mut n_repeated, mut n_empty) = (0, 0);
        for line in lines.by_ref() {
            let line = line?;
            let caption = format
                .caption(&line.text)
                .map_err(|reason| Error::Prompts {
                    path: path.to_owned(),
                    reason: format!("line {}: {reason}", line.number),
                })?;
            let digest = digest(&caption);
            if caption.is_empty() {
                n_empty += 1;
            } else if seen.insert(digest) {
                let (start, len) = (line.offset, line.text.len() as u32);
                entries.push(Entry { start, len, digest });
            } else {
                n_repeated += 1;
            }
        }
        Ok(Self {
            entries,
            n_blank: lines.n_blank() + n_empty,
            n_repeated,
        })
    }

    /// Reads an index file; `None` if there is none, or it is damaged or out of date.
    fn load(path: &Path, is_current: impl Fn(&Header) -> bool) -> Option<Self> {
        let mut file = BufReader::new(File::open(path).ok()?);
        let mut header = String::new();
        file.read_line(&mut header).ok()?;
        let header: Header = serde_json::from_str(&header).ok()?;
        if !is_current(&header) {
            return None;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        if !rest.is_empty() || hex(&Sha256::digest(&bytes)) != header.entries {
            tracing::warn!("{}: damaged; it is written again", path.display());
            return None;
        }
        Some(Self {
            entries: entries.iter().map(Entry::from_bytes).collect(),
            n_blank: header.n_blank,
            n_repeated: header.n_repeated,
        })
    }

    fn save(
        &self,
        path: &Path,
        [size, modified]: [u128; 2],
        format: &Format,
    ) -> Result<(), swiftbrush_checkpoint::Error> {
        let bytes: Vec<u8> = self
            .entries
            .iter()
            .copied()
            .flat_map(Entry::to_bytes)
            .collect();
        let header = Header {
            format: FORMAT.to_owned(),
            size: size as u64,
            modified,
            key: key(format).map(str::to_owned),
            n_blank: self.n_blank,
            n_repeated: self.n_repeated,
            entries: hex(&Sha256::digest(&bytes)),
        };
        let header = serde_json::to_string(&header).expect("a header is plain data");
        write_atomically(path, |file| {
            writeln!(file, "{header}")?;
            file.write_all(&bytes)
        })
    }
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..].copy_from_slice(&self.digest);
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY]) -> Self {
        let (mut start, mut len, mut digest) = ([0; 8], [0; 4], [0; 16]);
        start.copy_from_slice(&bytes[..8]);
        len.copy_from_slice(&bytes[8..12]);
        digest.copy_from_slice(&bytes[12..]);
        Self {
            start: u64::from_le_bytes(start),
            len: u32::from_le_bytes(len),
            digest,
        }
    }
}

fn key(format: &Format) -> Option<&str> {
    match format {
        Format::Text => None,
        Format::JsonLines(key) => key.as_deref(),
    }
}

/// Size and modification time, in bytes and nanoseconds since 1970.
fn stamp(path: &Path) -> Result<[u128; 2], TextError> {
    let io = |cause| TextError::Io {
        path: path.to_owned(),
        cause,
    };
    let metadata = std::fs::metadata(path).map_err(io)?;
    let modified = metadata.modified().map_err(io)?.duration_since(UNIX_EPOCH);
    Ok([
        metadata.len().into(),
        modified.map_or(0, |time| time.as_nanos()),
    ])
}

/// The path of the index of a prompt file: `prompts.txt.index`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".index");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt file, and the index of it that was loaded or written.
    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new(text: &str) -> Self {
            let bench = Self(tempfile::tempdir().unwrap());
            std::fs::write(bench.path(), text).unwrap();
            bench
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("prompts.jsonl")
        }

        fn open(&self, key: Option<&str>) -> Result<Index, Error> {
            let format = Format::JsonLines(key.map(str::to_owned));
            Index::open_with(&self.path(), &format, 0)
        }
    }

    const LINES: &str =
        "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": \" \"}\n{\"text\":\"a \"}\n";

    #[test]
    fn a_kept_index_equals_one_that_was_read() {
        let bench = Bench::new(LINES);
        let index = bench.open(None).unwrap();
        let places: Vec<_> = index
            .entries
            .iter()
            .map(|entry| (entry.start, entry.len))
            .collect();
        assert_eq!(places, [(0, 13), (15, 13)]);
        assert_eq!((index.n_blank, index.n_repeated), (2, 1));
        let kept = std::fs::read(beside(&bench.path())).unwrap();
        assert_eq!(bench.open(None).unwrap(), index);
        // It is loaded, not written again.
        assert_eq!(std::fs::read(beside(&bench.path())).unwrap(), kept);
        assert_eq!(
            Index::load(&beside(&bench.path()), |_| true).unwrap(),
            index
        );
    }

    #[test]
    fn a_file_that_changed_is_read_again() {
        let bench = Bench::new(LINES);
        bench.open(None).unwrap();
        std::fs::write(bench.path(), LINES.replace('b', "bb")).unwrap();
        assert_eq!(bench.open(None).unwrap().entries[1].len, 14);
        // The same size, at another time.
        std::fs::write(bench.path(), LINES.replace('b', "cc")).unwrap();
        let file = File::options().write(true).open(bench.path()).unwrap();
        file.set_modified(UNIX_EPOCH).unwrap();
        let index = bench.open(None).unwrap();
        assert_eq!(index.entries[1].digest, digest("cc"));
        // Another key.
        let error = bench.open(Some("caption")).unwrap_err().to_string();
        assert!(error.contains("prompts.jsonl: line 1: "), "{error}");
    }

    #[test]
    fn a_damaged_index_is_written_again() {
        let bench = Bench::new(LINES);
        let (index, path) = (bench.open(None).unwrap(), beside(&bench.path()));
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [&whole[..whole.len() - 5], &flipped, b"", b"{}\n"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(bench.open(None).unwrap(), index);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn small_files_have_no_index_beside_them() {
        let bench = Bench::new(LINES);
        Index::open(&bench.path(), &Format::JsonLines(None)).unwrap();
        assert!(!beside(&bench.path()).exists());
    }
}
