mod caption;
mod file;
mod index;
#[cfg(feature = "parquet")]
mod parquet;
mod permutation;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use swiftbrush_checkpoint::TextError;

use crate::fingerprint::hex;
use crate::{Error, Purpose, Random};
use file::OpenFile;
use index::Digests;
pub(crate) use permutation::Permutation;

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

    /// A hash of the prompts and their order, saved with each snapshot.
    fn hash(&self) -> String;
}

/// A file of prompts: text with one prompt per line, or JSON Lines (`.jsonl`, `.ndjson`) with a caption per line.
///
/// With the feature `parquet` also Parquet with a column of captions, uncompressed or in Snappy. The first start copies the captions
/// to JSON Lines next to the file (`laion.parquet.caption.jsonl`).
#[derive(Clone, Debug, PartialEq)]
pub struct PromptFile {
    path: PathBuf,
    key: Option<String>,
    weight: f64,
}

impl PromptFile {
    /// A file whose prompts appear once in each epoch.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            key: None,
            weight: 1.0,
        }
    }

    /// Sets the key of the captions in JSON Lines, or their column in Parquet [default: `caption`, `prompt` or `text`, of which each
    /// line must have exactly one].
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the number of times that each prompt of the file appears in an epoch [default: 1]. With ½, each prompt
    /// appears once in two epochs.
    pub fn with_weight(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }
}

/// The contents of a prompt file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptCounts {
    /// The file.
    pub path: PathBuf,
    /// Number of distinct prompts.
    pub n_prompts: usize,
    /// Number of blank lines and empty captions, which are skipped.
    pub n_blank: usize,
    /// Number of prompts that are equal to an earlier one of this or another file, which are skipped.
    pub n_repeated: usize,
}

/// Prompts of one or several files. Only their positions are in memory, 16 bytes per prompt.
///
/// Prompts that are equal, apart from surrounding white space, are used once. Each epoch visits every prompt as often
/// as the weight of its file says, in an order that depends on the seed. The order is computed on demand, so any
/// position costs the same, also after a resume.
///
/// For files of 8 MiB and more, an index is stored next to the file (`prompts.txt.index`), so that only the first start
/// reads the whole file.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// use swiftbrush_trainer::{PromptFile, PromptSource, Prompts};
///
/// let [text, lines] = ["prompts.txt", "captions.jsonl"].map(|name| folder.path().join(name));
/// std::fs::write(&text, "a red circle\n\na green star\na red circle\n")?;
/// std::fs::write(&lines, r#"{"caption": "a blue ring"}"#)?;
/// let files = [PromptFile::new(text), PromptFile::new(lines).with_weight(2.0)];
/// let mut prompts = Prompts::open_files(&files, 0)?;
/// assert_eq!(prompts.len(), 4);
/// let mut epoch = prompts.get(0, 4)?;
/// epoch.sort();
/// assert_eq!(epoch, ["a blue ring", "a blue ring", "a green star", "a red circle"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prompts {
    files: Vec<OpenFile>,
    hash: String,
    seed: u64,
    /// Number of prompts in an epoch.
    len: u64,
    /// An epoch and its order.
    order: (u64, Permutation),
}

/// Version of the order of prompts, increased when the same seed gives another order.
const ORDER: &str = "order 2";

impl Prompts {
    /// Opens a file and checks all of it, like [`open_files`](Self::open_files).
    ///
    /// # Errors
    ///
    /// Same as [`open_files`](Self::open_files).
    pub fn open(path: impl AsRef<Path>, seed: u64) -> Result<Self, Error> {
        Self::open_files(&[PromptFile::new(path)], seed)
    }

    /// Opens files and checks all of them. Blank lines and repeated prompts are skipped and counted.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, has another format, is not UTF-8, has a line without a caption (the error names the line),
    /// or contains no prompts that the files before it lack; if a weight is not a finite number above 0.
    ///
    /// # Panics
    ///
    /// If there are no files.
    pub fn open_files(files: &[PromptFile], seed: u64) -> Result<Self, Error> {
        let (mut seen, is_alone) = (Digests::default(), files.len() == 1);
        let (mut opened, mut hasher) = (Vec::new(), Sha256::new());
        hasher.update(ORDER);
        for (number, file) in files.iter().enumerate() {
            let file = &file.as_lines()?;
            let mut index = file.index()?;
            if !is_alone {
                index.keep_new(&mut seen);
            }
            if index.entries.is_empty() {
                let path = file.path.clone();
                return Err(match index.n_repeated {
                    0 => TextError::Empty { path }.into(),
                    _ => file.error("all of its prompts are in the files before it; omit the file"),
                });
            }
            hasher.update(file.weight.to_le_bytes());
            for entry in &index.entries {
                hasher.update(entry.digest);
            }
            opened.push(OpenFile::new(file, index, seed, number as u64)?);
        }
        let len = opened.iter().map(OpenFile::n_in_epoch).sum();
        assert!(len > 0, "at least one file of prompts");
        Ok(Self {
            files: opened,
            hash: hex(&hasher.finalize()),
            seed,
            len,
            order: (0, Self::order(len, seed, 0)),
        })
    }

    /// The contents of each file.
    pub fn counts(&self) -> Vec<PromptCounts> {
        self.files.iter().map(|file| file.counts.clone()).collect()
    }

    fn order(len: u64, seed: u64, epoch: u64) -> Permutation {
        Permutation::new(len, random(seed, epoch, 0))
    }

    fn prompt(&mut self, index: u64) -> Result<String, Error> {
        let epoch = index / self.len;
        if self.order.0 != epoch {
            self.order = (epoch, Self::order(self.len, self.seed, epoch));
        }
        let mut place = self.order.1.at(index % self.len);
        for file in &mut self.files {
            let count = file.n_in_epoch();
            if place < count {
                return file.prompt(epoch * count + place);
            }
            place -= count;
        }
        unreachable!("the files add up to an epoch")
    }
}

/// Random numbers of a pass over a file, numbered from 1, or of an epoch of all files, 0.
fn random(seed: u64, pass: u64, file: u64) -> Random {
    Random::new(seed, Purpose::Data, pass << FILE_BITS | file)
}

/// Bits of a stream of random numbers that tell files apart.
const FILE_BITS: u32 = 16;

impl PromptFile {
    /// The file itself, or the captions of a Parquet file.
    #[cfg(feature = "parquet")]
    fn as_lines(&self) -> Result<Self, Error> {
        let extension = self.path.extension();
        if extension.is_none_or(|extension| !extension.eq_ignore_ascii_case(caption::PARQUET)) {
            return Ok(self.clone());
        }
        let captions = parquet::captions(&self.path, self.key.as_deref());
        Ok(Self {
            path: captions.map_err(|reason| self.error(reason))?,
            key: None,
            weight: self.weight,
        })
    }

    #[cfg(not(feature = "parquet"))]
    fn as_lines(&self) -> Result<Self, Error> {
        Ok(self.clone())
    }

    fn index(&self) -> Result<index::Index, Error> {
        let format = self.format()?;
        if !(self.weight.is_finite() && self.weight > 0.0) {
            let weight = self.weight;
            return Err(self.error(format!("weight {weight}: expected a finite number above 0")));
        }
        index::Index::open(&self.path, &format)
    }

    fn format(&self) -> Result<caption::Format, Error> {
        caption::Format::of(&self.path, self.key.as_deref()).map_err(|reason| self.error(reason))
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Prompts {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

impl PromptSource for Prompts {
    fn get(&mut self, first: u64, count: usize) -> Result<Vec<String>, Error> {
        (first..first + count as u64)
            .map(|index| self.prompt(index))
            .collect()
    }

    fn len(&self) -> usize {
        self.len as usize
    }

    fn hash(&self) -> String {
        self.hash.clone()
    }
}

impl std::fmt::Display for PromptCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} prompts", self.path.display(), self.n_prompts)?;
        for (count, what) in [
            (self.n_blank, "blank lines skipped"),
            (self.n_repeated, "repeated prompts skipped"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens files with these names and contents; the open handles outlive the folder.
    fn open_files(files: &[(&str, &[u8], f64)], seed: u64) -> Result<Prompts, Error> {
        let folder = tempfile::tempdir().unwrap();
        let files = files.iter().map(|(name, bytes, weight)| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            PromptFile::new(path).with_weight(*weight)
        });
        Prompts::open_files(&files.collect::<Vec<_>>(), seed)
    }

    fn open(bytes: &[u8]) -> Result<Prompts, Error> {
        open_files(&[("prompts.txt", bytes, 1.0)], 3)
    }

    fn sorted(mut prompts: Vec<String>) -> Vec<String> {
        prompts.sort();
        prompts
    }

    #[test]
    fn every_epoch_has_every_prompt_once_in_its_own_order() {
        let lines: Vec<_> = (0..20).map(|i| format!("prompt {i}")).collect();
        let text = lines.join("\n\n") + "\r\n  \n";
        let mut prompts = open(text.as_bytes()).unwrap();
        let counts = &prompts.counts()[0];
        assert_eq!((prompts.len(), counts.n_blank), (20, 20));
        let epochs = [0, 1].map(|epoch| prompts.get(epoch * 20, 20).unwrap());
        assert_ne!(epochs[0], epochs[1]);
        for epoch in epochs.clone() {
            assert_eq!(sorted(epoch), sorted(lines.clone()));
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
        let prompts = sorted(windows.get(0, 2).unwrap());
        assert_eq!(prompts, ["a green star", "a red circle"]);
        assert_ne!(plain.hash(), open(b"a red circle\n").unwrap().hash());
    }

    #[test]
    fn repeated_prompts_are_used_once_in_all_files_together() {
        let files = [
            ("a.txt", &b"x\ny\n\nx \n"[..], 1.0),
            ("b.jsonl", b"{\"text\": \"y\"}\n{\"text\": \"z\"}\n", 1.0),
        ];
        let mut prompts = open_files(&files, 0).unwrap();
        assert_eq!(sorted(prompts.get(0, 3).unwrap()), ["x", "y", "z"]);
        let texts: Vec<_> = prompts.counts().iter().map(ToString::to_string).collect();
        assert!(
            texts[0]
                .ends_with("a.txt: 2 prompts, 1 blank lines skipped, 1 repeated prompts skipped")
        );
        assert!(
            texts[1].ends_with("b.jsonl: 1 prompts, 1 repeated prompts skipped"),
            "{texts:?}"
        );
        let repeated = [files[0], ("b.txt", b"x\n", 1.0)];
        let error = open_files(&repeated, 0).unwrap_err().to_string();
        assert!(error.contains("b.txt: all of its prompts"), "{error}");
    }

    /// Three epochs of a file of two prompts with the weight 2, and one of six with the weight ⅓.
    #[test]
    fn a_weight_is_the_number_of_visits_in_an_epoch() {
        let files = [
            ("often.txt", &b"x\ny"[..], 2.0),
            ("seldom.txt", b"0\n1\n2\n3\n4\n5", 1.0 / 3.0),
        ];
        let mut prompts = open_files(&files, 1).unwrap();
        assert_eq!(prompts.len(), 6);
        let epochs = [0, 1, 2].map(|epoch| prompts.get(6 * epoch, 6).unwrap());
        for epoch in &epochs {
            for prompt in ["x", "y"] {
                assert_eq!(epoch.iter().filter(|other| *other == prompt).count(), 2);
            }
        }
        let seldom = epochs
            .concat()
            .into_iter()
            .filter(|text| !["x", "y"].contains(&text.as_str()));
        assert_eq!(sorted(seldom.collect()), ["0", "1", "2", "3", "4", "5"]);
        let other = [(files[0].0, files[0].1, 1.0), files[1]];
        assert_ne!(open_files(&other, 1).unwrap().hash(), prompts.hash());
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = open_files(&[("a.txt", b"x", weight)], 0)
                .unwrap_err()
                .to_string();
            assert!(error.contains("a.txt: weight"), "{error}");
        }
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
        #[cfg(not(feature = "parquet"))]
        {
            let parquet = Prompts::open("laion.parquet", 0).unwrap_err().to_string();
            assert!(
                parquet.starts_with("laion.parquet: Parquet needs the feature `parquet`"),
                "{parquet}"
            );
        }
    }

    #[test]
    fn a_file_that_changes_under_a_run_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, "a cat\n").unwrap();
        let mut prompts = Prompts::open(&path, 0).unwrap();
        assert_eq!(prompts.get(0, 1).unwrap(), ["a cat"]);
        for text in ["a dog\n", "a"] {
            std::fs::write(&path, text).unwrap();
            let error = prompts.get(0, 1).unwrap_err().to_string();
            assert!(error.contains("prompts.txt: the file changed"), "{error}");
        }
    }
}
