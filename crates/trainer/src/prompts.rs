use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Error;

/// A text file with a prompt on each line, of any size: only where lines begin is kept in memory.
///
/// Each epoch goes through all prompts once, in an order that follows from the seed.
#[derive(Debug)]
pub struct Prompts {
    path: PathBuf,
    /// Where each prompt begins and how many bytes it has.
    places: Vec<(u64, u32)>,
    seed: u64,
}

impl Prompts {
    /// Finds the prompts of a file; blank lines are none.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or holds no prompt.
    pub fn open(path: impl Into<PathBuf>, seed: u64) -> Result<Self, Error> {
        let path = path.into();
        let bad = |reason: String| Error::Prompts {
            path: path.clone(),
            reason,
        };
        let file = File::open(&path).map_err(|error| bad(error.to_string()))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let (mut places, mut start, mut line) = (Vec::new(), 0, Vec::new());
        loop {
            line.clear();
            let read = reader
                .read_until(b'\n', &mut line)
                .map_err(|error| bad(error.to_string()))?;
            if read == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                let len = u32::try_from(line.len())
                    .map_err(|_| bad("a line has over 4 GB".to_owned()))?;
                places.push((start, len));
            }
            start += read as u64;
        }
        if places.is_empty() {
            return Err(bad("it holds no prompt; write one on each line".to_owned()));
        }
        Ok(Self { path, places, seed })
    }

    /// The number of prompts.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none, which [`open`](Self::open) does not let happen.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Prompts number `first` to `first + count`, counted through all epochs.
    ///
    /// # Errors
    ///
    /// If the file can no longer be read, or is not UTF-8 at one of them.
    pub fn get(&self, first: u64, count: usize) -> Result<Vec<String>, Error> {
        let mut file = File::open(&self.path).map_err(|error| self.bad(error.to_string()))?;
        let n = self.places.len() as u64;
        let (mut epoch, mut order) = (u64::MAX, Vec::new());
        (first..first + count as u64)
            .map(|index| {
                if index / n != epoch {
                    epoch = index / n;
                    order = self.order(epoch);
                }
                self.read(&mut file, order[(index % n) as usize])
            })
            .collect()
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        let mut order: Vec<u32> = (0..self.places.len() as u32).collect();
        order.shuffle(&mut rng);
        order
    }

    fn read(&self, file: &mut File, index: u32) -> Result<String, Error> {
        let (start, len) = self.places[index as usize];
        let mut bytes = vec![0; len as usize];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| self.bad(error.to_string()))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| self.bad(format!("prompt {} is not UTF-8", index + 1)))?;
        Ok(text.trim().to_owned())
    }

    fn bad(&self, reason: String) -> Error {
        Error::Prompts {
            path: self.path.clone(),
            reason,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_prompt_once_in_an_order_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let lines: Vec<_> = (0..20).map(|i| format!("prompt {i}")).collect();
        std::fs::write(&path, lines.join("\n\n") + "\r\n  \n").unwrap();
        let prompts = Prompts::open(&path, 3).unwrap();
        assert_eq!(prompts.len(), 20);
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
    }

    #[test]
    fn a_file_without_prompts_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.txt");
        std::fs::write(&path, "\n \n").unwrap();
        assert!(
            Prompts::open(&path, 0)
                .unwrap_err()
                .to_string()
                .contains("empty.txt")
        );
        assert!(Prompts::open(folder.path().join("none.txt"), 0).is_err());
    }
}
