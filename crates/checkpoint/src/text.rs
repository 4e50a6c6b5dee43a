use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest accepted line in bytes: far beyond any prompt, but small enough to buffer.
const MAX_LINE: usize = 1 << 20;

const UTF8_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const UTF16_MARKS: [[u8; 2]; 2] = [[0xff, 0xfe], [0xfe, 0xff]];

/// An error reading a text file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The file begins with the byte-order mark of UTF-16 (or UTF-32).
    #[error("{path}: expected UTF-8, found the byte-order mark of UTF-16; save the file as UTF-8")]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// A line is not UTF-8, or has a NUL byte, as in UTF-16 without a byte-order mark.
    #[error("{path}: line {line} is not UTF-8 text; save the file as UTF-8")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// A line is longer than any prompt.
    #[error("{path}: line {line} is longer than {MAX_LINE} bytes; expected one prompt per line")]
    Long {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// The file has no lines, or only blank ones.
    #[error("{path} has no text; expected one prompt per line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A non-blank line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// Line number in the file, from 1, counting blank lines.
    pub number: usize,
    /// Byte offset of `text` in the file.
    pub offset: u64,
    /// The text, without leading and trailing white space.
    pub text: String,
}

/// An iterator over the non-blank lines of a text file of any size.
///
/// The text is UTF-8, with or without a byte-order mark. Lines end with LF, CRLF or CR, as in Python's text mode. Blank lines are
/// skipped, but counted. The iterator ends after an error.
///
/// # Examples
///
/// ```
/// use swiftbrush_checkpoint::Lines;
///
/// let text = "\u{feff}a cat\r\n\r\n  a dog\n";
/// let mut lines = Lines::new(text.as_bytes(), "prompts.txt");
/// let prompts: Vec<String> = lines.by_ref().map(|line| Ok(line?.text)).collect::<Result<_, swiftbrush_checkpoint::TextError>>()?;
/// assert_eq!(prompts, ["a cat", "a dog"]);
/// assert_eq!(lines.n_blank(), 1);
/// # Ok::<(), swiftbrush_checkpoint::TextError>(())
/// ```
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    path: PathBuf,
    /// Bytes up to and including a line feed.
    chunk: Vec<u8>,
    /// Offset of `chunk` in the file.
    start: u64,
    /// Offset of the next line in `chunk`.
    next: usize,
    number: usize,
    n_blank: usize,
    failed: bool,
}

impl Lines<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref().to_owned();
        match File::open(&path) {
            Ok(file) => Ok(Self::new(BufReader::with_capacity(1 << 20, file), path)),
            Err(cause) => Err(TextError::Io { path, cause }),
        }
    }
}

impl<R: BufRead> Lines<R> {
    /// Reads lines from `reader`; errors name `path`.
    pub fn new(reader: R, path: impl AsRef<Path>) -> Self {
        Self {
            reader,
            path: path.as_ref().to_owned(),
            chunk: Vec::new(),
            start: 0,
            next: 0,
            number: 0,
            n_blank: 0,
            failed: false,
        }
    }

    /// The number of blank lines skipped so far.
    pub fn n_blank(&self) -> usize {
        self.n_blank
    }

    /// Reads the next chunk; false at the end of the file.
    fn refill(&mut self) -> Result<bool, TextError> {
        self.start += self.chunk.len() as u64;
        self.chunk.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE as u64 + 1);
        if let Err(cause) = limited.read_until(b'\n', &mut self.chunk) {
            let path = self.path.clone();
            return Err(TextError::Io { path, cause });
        }
        self.next = 0;
        if self.start == 0 {
            self.next = mark_len(&self.chunk, &self.path)?;
        }
        if self.chunk.len() > MAX_LINE {
            let (path, line) = (self.path.clone(), self.number + 1);
            return Err(TextError::Long { path, line });
        }
        Ok(!self.chunk.is_empty())
    }

    fn read(&mut self) -> Result<Option<Line>, TextError> {
        loop {
            while self.next >= self.chunk.len() {
                if !self.refill()? {
                    return Ok(None);
                }
            }
            let rest = &self.chunk[self.next..];
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let end = end.unwrap_or(rest.len());
            let ending = if rest[end..].starts_with(b"\r\n") {
                2
            } else {
                1
            };
            let (line, offset) = (&rest[..end], self.start + self.next as u64);
            self.next += end + ending;
            self.number += 1;
            let text = std::str::from_utf8(line)
                .ok()
                .filter(|_| !line.contains(&0));
            let text = text.ok_or_else(|| TextError::Encoding {
                path: self.path.clone(),
                line: self.number,
            })?;
            let trimmed = text.trim();
            if trimmed.is_empty() {
                self.n_blank += 1;
                continue;
            }
            return Ok(Some(Line {
                number: self.number,
                offset: offset + (text.len() - text.trim_start().len()) as u64,
                text: trimmed.to_owned(),
            }));
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = self.read();
        self.failed = line.is_err();
        line.transpose()
    }
}

/// Reads the non-blank lines of a file and the number of blank lines skipped; see [`Lines`].
///
/// # Errors
///
/// If the file cannot be read, is not UTF-8, or has no text.
pub fn read_lines(path: impl AsRef<Path>) -> Result<(Vec<String>, usize), TextError> {
    let path = path.as_ref();
    let mut lines = Lines::open(path)?;
    let found: Result<Vec<_>, _> = lines.by_ref().map(|line| Ok(line?.text)).collect();
    let found = found?;
    if found.is_empty() {
        return Err(TextError::Empty {
            path: path.to_owned(),
        });
    }
    Ok((found, lines.n_blank()))
}

/// Reads a whole UTF-8 file, such as JSON or TOML, and strips a byte-order mark.
///
/// # Errors
///
/// If the file cannot be read or is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String, TextError> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|cause| TextError::Io {
        path: path.to_owned(),
        cause,
    })?;
    let text = &bytes[mark_len(&bytes, path)?..];
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let before = &text[..error.valid_up_to()];
            Err(TextError::Encoding {
                path: path.to_owned(),
                line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            })
        }
    }
}

/// The length of the UTF-8 byte-order mark at the start of a file.
fn mark_len(start: &[u8], path: &Path) -> Result<usize, TextError> {
    if UTF16_MARKS.iter().any(|mark| start.starts_with(mark)) {
        let path = path.to_owned();
        return Err(TextError::Utf16 { path });
    }
    match start.starts_with(&UTF8_MARK) {
        true => Ok(UTF8_MARK.len()),
        false => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Result<(Vec<(usize, String)>, usize), TextError> {
        let mut lines = Lines::new(bytes, "prompts.txt");
        let mut found = Vec::new();
        for line in lines.by_ref() {
            let line = line?;
            let start = line.offset as usize;
            let stored = &bytes[start..start + line.text.len()];
            assert_eq!(stored, line.text.as_bytes(), "the offset of {line:?}");
            found.push((line.number, line.text));
        }
        Ok((found, lines.n_blank()))
    }

    #[test]
    fn marks_line_ends_and_blank_lines_make_no_difference() {
        let expected = |numbers: [usize; 2]| {
            let texts = ["ein Käse", "a dog"].map(str::to_owned);
            numbers.into_iter().zip(texts).collect::<Vec<_>>()
        };
        for (text, numbers, n_blank) in [
            ("ein Käse\na dog", [1, 2], 0),
            ("\u{feff}ein Käse\r\na dog\r\n", [1, 2], 0),
            ("ein Käse\ra dog\r", [1, 2], 0),
            ("\n \t\n ein Käse \r\n\r\n\ta dog\n\u{a0}\n", [3, 5], 4),
        ] {
            let found = lines(text.as_bytes()).unwrap();
            assert_eq!(found, (expected(numbers), n_blank), "{text:?}");
        }
        assert_eq!(lines(b"").unwrap(), (Vec::new(), 0));
        assert_eq!(lines(&UTF8_MARK).unwrap(), (Vec::new(), 0));
    }

    #[test]
    fn other_encodings_are_rejected_with_the_line() {
        let utf16 = |mark: [u8; 2]| [&mark[..], b"a\0\n\0"].concat();
        for mark in UTF16_MARKS {
            let error = lines(&utf16(mark)).unwrap_err().to_string();
            assert!(
                error.contains("prompts.txt: expected UTF-8, found the byte-order mark of UTF-16"),
                "{error}"
            );
        }
        for bytes in [&b"a\n\nK\xe4se\n"[..], b"a\n\na\0\n"] {
            let error = lines(bytes).unwrap_err().to_string();
            assert!(
                error.contains("prompts.txt: line 3 is not UTF-8"),
                "{error}"
            );
        }
        let long = [b"a\n".to_vec(), vec![b'x'; MAX_LINE + 1]].concat();
        let error = lines(&long).unwrap_err().to_string();
        assert!(error.contains("line 2 is longer than"), "{error}");
    }

    #[test]
    fn files_are_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        std::fs::write(&path, "\u{feff}{\n}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "{\n}");
        std::fs::write(&path, b"a\n\xff").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, "\n \r\n").unwrap();
        assert!(matches!(read_lines(&path), Err(TextError::Empty { .. })));
        std::fs::write(&path, "a\n\nb").unwrap();
        let expected = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(read_lines(&path).unwrap(), (expected, 1));
        assert!(read_lines(folder.path().join("none")).is_err());
    }
}
