//! Detection of file formats by their first bytes.

use crate::archive::MAX_HEADER;

/// Number of bytes that [`describe`] needs.
pub(crate) const SNIFFED: u64 = 512;

/// Returns whether the file begins like a zip archive or a pickle, the two formats of `torch.save`.
///
/// A safetensors file begins with the length of its header, whose bytes may coincide with either; a length within the
/// format's limit is taken as a header.
pub(crate) fn is_pytorch(first: &[u8]) -> bool {
    let is_length = first
        .first_chunk()
        .is_some_and(|length| u64::from_le_bytes(*length) <= MAX_HEADER);
    !is_length && (first.starts_with(b"PK\x03\x04") || first.starts_with(b"\x80"))
}

/// Describes a file that is neither safetensors nor written by `torch.save`, and says what to do about it.
pub(crate) fn describe(first: &[u8]) -> Option<&'static str> {
    let text = first.trim_ascii_start();
    let begins = |start: &[u8]| {
        text.get(..start.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(start))
    };
    if begins(b"version https://git-lfs.github.com") {
        return Some("a Git LFS pointer, not the file itself; run `git lfs pull` or download it");
    }
    if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") {
        return Some("a web page, not a weight file; download the file itself");
    }
    const MAGIC: [(usize, &[u8], &str); 9] = [
        (
            0,
            b"PK\x03\x04",
            "a zip archive or a file of torch.save, not safetensors",
        ),
        (
            0,
            b"\x80",
            "a pickle or a file of torch.save, not safetensors",
        ),
        (0, b"GGUF", "a GGUF file; convert it to safetensors"),
        (0, b"\x1f\x8b", "compressed by gzip; decompress it first"),
        (0, b"\x89HDF", "an HDF5 file; convert it to safetensors"),
        (0, b"\x89PNG", "a PNG image, not a weight file"),
        (0, b"\xff\xd8\xff", "a JPEG image, not a weight file"),
        (
            257,
            b"ustar",
            "a tar archive; extract it, or save it again with PyTorch 1.6 or later",
        ),
        (0, b"{", "a JSON file, not a weight file"),
    ];
    let found = MAGIC
        .iter()
        .find(|(at, magic, _)| first.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    // The length in the first eight bytes of a safetensors file has zeros.
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match found {
        Some((_, _, kind)) => Some(kind),
        None if first.len() >= 8 && first[..8].iter().all(is_text) => {
            Some("a text file, not a weight file")
        }
        None => None,
    }
}
