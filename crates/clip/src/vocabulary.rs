//! CLIP's vocabulary, which is the same in every checkpoint.

use std::io::Read;

use flate2::read::GzDecoder;
use tokenizers::models::bpe::{Merges, Vocab};

/// The token before the text.
pub(crate) const START: &str = "<|startoftext|>";
/// The token after the text.
pub(crate) const END: &str = "<|endoftext|>";
/// Suffix of tokens at the end of a word.
pub(crate) const END_OF_WORD: &str = "</w>";

const FILE: &[u8] = include_bytes!("../data/bpe_simple_vocab_16e6.txt.gz");
/// Number of merges that CLIP uses from the file. Together with 256 bytes inside words, 256 at the end of words and two
/// special tokens they make 49,408 tokens.
const N_MERGES: usize = 48_894;

/// The tokens with their indices, and the merges.
pub(crate) fn clip_vocabulary() -> (Vocab, Merges) {
    let mut text = String::new();
    let whole = GzDecoder::new(FILE).read_to_string(&mut text);
    whole.expect("the built-in file is complete");
    let merges: Merges = text
        .lines()
        .skip(1)
        .take(N_MERGES)
        .filter_map(|line| line.split_once(' '))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let bytes = symbols();
    let ends = bytes.iter().map(|symbol| format!("{symbol}{END_OF_WORD}"));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let special = [START, END].map(str::to_owned);
    let tokens = bytes
        .iter()
        .cloned()
        .chain(ends)
        .chain(merged)
        .chain(special);
    (tokens.zip(0..).collect(), merges)
}

/// A printable character for each byte: the byte itself if it is printable, else a character beyond the first 256.
/// Printable bytes come first.
fn symbols() -> Vec<String> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let n_others = (0..256).filter(|byte| !printable(byte)).count() as u32;
    let characters = (0..256).filter(printable).chain(256..256 + n_others);
    characters
        .filter_map(char::from_u32)
        .map(String::from)
        .collect()
}
