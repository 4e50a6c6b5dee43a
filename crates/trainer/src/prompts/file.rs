use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use swiftbrush_checkpoint::TextError;

use super::caption::Format;
use super::index::{Digests, Index, digest};
use super::{Permutation, PromptCounts, PromptFile, random};
use crate::Error;

/// A prompt file and the endless order of its prompts: one permutation after another.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) counts: PromptCounts,
    format: Format,
    file: File,
    places: Vec<Place>,
    weight: f64,
    seed: u64,
    /// Number of the file, which tells its order from that of others.
    number: u64,
    /// A pass over the file and its order.
    order: (u64, Permutation),
}

/// Offset and length of a line, with the first bytes of its prompt's digest.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    len: u32,
    check: [u8; 4],
}

impl Index {
    /// Drops prompts that other files have, and adds the others to `seen`.
    pub(crate) fn keep_new(&mut self, seen: &mut Digests) {
        let before = self.entries.len();
        self.entries.retain(|entry| seen.insert(entry.digest));
        self.n_repeated += before - self.entries.len();
    }
}

impl OpenFile {
    pub(crate) fn new(
        file: &PromptFile,
        index: Index,
        seed: u64,
        number: u64,
    ) -> Result<Self, Error> {
        let path = &file.path;
        let opened = File::open(path).map_err(|cause| TextError::Io {
            path: path.clone(),
            cause,
        })?;
        let places = index.entries.iter().map(|entry| Place {
            start: entry.start,
            len: entry.len,
            check: first_bytes(&entry.digest),
        });
        let places: Vec<_> = places.collect();
        Ok(Self {
            counts: PromptCounts {
                path: path.clone(),
                n_prompts: places.len(),
                n_blank: index.n_blank,
                n_repeated: index.n_repeated,
            },
            format: file.format()?,
            file: opened,
            order: (0, order(places.len(), seed, number, 0)),
            places,
            weight: file.weight,
            seed,
            number,
        })
    }

    /// Number of prompts in an epoch, at least 1.
    pub(crate) fn n_in_epoch(&self) -> u64 {
        let count = (self.places.len() as f64 * self.weight).round();
        (count as u64).max(1)
    }

    /// The prompt at a position in the endless order.
    pub(crate) fn prompt(&mut self, position: u64) -> Result<String, Error> {
        let len = self.places.len() as u64;
        let pass = position / len;
        if self.order.0 != pass {
            self.order = (pass, order(self.places.len(), self.seed, self.number, pass));
        }
        let place = self.places[self.order.1.at(position % len) as usize];
        self.read(place).map_err(|reason| Error::Prompts {
            path: self.path().to_owned(),
            reason: format!("the file changed since it was opened: {reason}"),
        })
    }

    fn path(&self) -> &Path {
        &self.counts.path
    }

    fn read(&mut self, Place { start, len, check }: Place) -> Result<String, String> {
        let mut bytes = vec![0; len as usize];
        let read = self
            .file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| error.to_string())?;
        let line = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
        let prompt = self.format.caption(line)?;
        match first_bytes(&digest(&prompt)) == check {
            true => Ok(prompt),
            false => Err(format!("another prompt is at byte {start}")),
        }
    }
}

fn order(len: usize, seed: u64, number: u64, pass: u64) -> Permutation {
    Permutation::new(len as u64, random(seed, pass, number + 1))
}

fn first_bytes(digest: &[u8; 16]) -> [u8; 4] {
    let [a, b, c, d, ..] = *digest;
    [a, b, c, d]
}
