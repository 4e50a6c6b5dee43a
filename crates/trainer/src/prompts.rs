use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use swiftbrush_checkpoint::{Lines, TextError};

use crate::Error;
use crate::fingerprint::hex;

/// A source of training prompts with a fixed order.
pub trait PromptSource: std::fmt::Debug + Send {
    /// Returns `count` prompts from number `first` on, numbered across epochs. The same numbers give the
    /// same prompts in every process.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    fn get(&mut self, first: u64, count: usize) -> Result<Vec<String>, Error>;

    /// Number of prompts in an epoch, at least 1.
    fn len(&self) -> usize;

    /// Returns whether there are no prompts.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A hash of the prompts, saved with each snapshot.
    fn hash(&self) -> String;
}

/// A text file with one prompt per line. Only the offsets of the lines are kept in memory.
///
/// Each epoch visits every prompt once, in an order that depends on the seed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// use swiftbrush_trainer::{PromptSource, Prompts};
///
/// let path = folder.path().join("prompts.txt");
/// std::fs::write(&path, "a red circle\n\na green star\n")?;
/// let mut prompts = Prompts::open(&path, 0)?;
/// assert_eq!(prompts.len(), 2);
/// let mut epoch = prompts.get(0, 2)?;
/// epoch.sort();
/// assert_eq!(epoch, ["a green star", "a red circle"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prompts {
    path: PathBuf,
    file: File,
    places: Vec<Place>,
    n_blank: usize,
    hash: String,
    seed: u64,
    epoch: u64,
    order: Vec<u32>,
}

/// Offset and length of a prompt in bytes.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    len: u32,
}

impl Prompts {
    /// Opens a file and checks all of it. Like [`Lines`], this skips and counts blank lines.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not UTF-8 (the error names the line), or contains no prompts.
    pub fn open(path: impl Into<PathBuf>, seed: u64) -> Result<Self, Error> {
        let path = path.into();
        let (mut places, mut hasher) = (Vec::new(), Sha256::new());
        let mut lines = Lines::open(&path)?;
        for line in lines.by_ref() {
            let line = line?;
            hasher.update(&line.text);
            hasher.update(b"\n");
            places.push(Place {
                start: line.offset,
                len: line.text.len() as u32,
            });
        }
        if places.is_empty() {
            return Err(TextError::Empty { path }.into());
        }
        let mut prompts = Self {
            file: File::open(&path).map_err(|source| TextError::Io {
                path: path.clone(),
                source,
            })?,
            path,
            places,
            n_blank: lines.n_blank(),
            hash: hex(&hasher.finalize()),
            seed,
            epoch: 0,
            order: Vec::new(),
        };
        prompts.order = prompts.order(0);
        Ok(prompts)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of skipped blank lines.
    pub fn n_blank(&self) -> usize {
        self.n_blank
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        let mut order: Vec<u32> = (0..self.places.len() as u32).collect();
        order.shuffle(&mut rng);
        order
    }

    fn prompt(&mut self, index: u64) -> Result<String, Error> {
        let n = self.places.len() as u64;
        if self.epoch != index / n {
            self.epoch = index / n;
            self.order = self.order(self.epoch);
        }
        let line = self.order[(index % n) as usize] as usize;
        let Place { start, len } = self.places[line];
        let mut bytes = vec![0; len as usize];
        let read = self
            .file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.read_exact(&mut bytes));
        let changed = |reason: String| Error::Prompts {
            path: self.path.clone(),
            reason: format!("the file changed since it was opened: {reason}"),
        };
        read.map_err(|error| changed(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| changed(error.to_string()))
    }
}

impl PromptSource for Prompts {
    fn get(&mut self, first: u64, count: usize) -> Result<Vec<String>, Error> {
        (first..first + count as u64)
            .map(|index| self.prompt(index))
            .collect()
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    fn hash(&self) -> String {
        self.hash.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Result<Prompts, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, bytes).unwrap();
        // The open handle outlives the folder.
        Prompts::open(&path, 3)
    }

    #[test]
    fn every_epoch_has_every_prompt_once_in_its_own_order() {
        let lines: Vec<_> = (0..20).map(|i| format!("prompt {i}")).collect();
        let text = lines.join("\n\n") + "\r\n  \n";
        let mut prompts = open(text.as_bytes()).unwrap();
        assert_eq!((prompts.len(), prompts.n_blank()), (20, 20));
        let epochs = [0, 1].map(|epoch| prompts.get(epoch * 20, 20).unwrap());
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs.clone() {
            epoch.sort();
            let mut expected = lines.clone();
            expected.sort();
            assert_eq!(epoch, expected);
        }
        assert_eq!(
            prompts.get(15, 10).unwrap(),
            [&epochs[0][15..], &epochs[1][..5]].concat()
        );
        assert_eq!(prompts.get(0, 20).unwrap(), epochs[0]);
    }

    #[test]
    fn marks_line_ends_and_spaces_are_not_part_of_a_prompt() {
        let plain = open(b"a red circle\na green star\n").unwrap();
        let mut windows = open(b"\xef\xbb\xbfa red circle \r\n\r\n  a green star").unwrap();
        assert_eq!(plain.hash(), windows.hash());
        let mut prompts = windows.get(0, 2).unwrap();
        prompts.sort();
        assert_eq!(prompts, ["a green star", "a red circle"]);
        assert_ne!(plain.hash(), open(b"a red circle\n").unwrap().hash());
    }

    #[test]
    fn a_file_that_is_not_text_is_rejected_when_it_is_opened() {
        for (bytes, expected) in [
            (&b"a\nb\nc\xe9d\n"[..], "line 3"),
            (b"\xff\xfea\0\n\0", "UTF-16"),
            (b"\n \n", "no text"),
            (b"\xef\xbb\xbf\r\n", "no text"),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(
                error.contains("prompts.txt") && error.contains(expected),
                "{error}"
            );
        }
        assert!(Prompts::open("no/such/file.txt", 0).is_err());
    }
}
