//! Pixel arrays in golden files, and chunks of PNG files.
#![allow(dead_code, reason = "each test target uses only some of it")]

use std::path::{Path, PathBuf};

use image::{Rgb32FImage, RgbImage};
use safetensors::SafeTensors;

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        Self(std::fs::read(golden().join(name).with_extension("safetensors")).unwrap())
    }

    /// Height, width, and bytes of an array.
    fn array(&self, name: &str) -> Option<(u32, u32, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let array = file.tensor(name).ok()?;
        let shape = array.shape();
        Some((shape[0] as u32, shape[1] as u32, array.data().to_vec()))
    }

    pub(crate) fn picture(&self, name: &str) -> Option<RgbImage> {
        let (height, width, bytes) = self.array(name)?;
        RgbImage::from_raw(width, height, bytes)
    }

    pub(crate) fn floats(&self, name: &str) -> Option<Rgb32FImage> {
        let (height, width, bytes) = self.array(name)?;
        let (values, _) = bytes.as_chunks();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Rgb32FImage::from_raw(width, height, values.collect())
    }

    /// Names of arrays that begin with `prefix`, which is removed.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let names = file.names().into_iter();
        let names = names.filter_map(|name| name.strip_prefix(prefix).map(str::to_owned));
        names.collect()
    }
}

/// A chunk of a PNG file, with its length and checksum.
pub(crate) fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let len = (data.len() as u32).to_be_bytes();
    [&len[..], &body, &checksum(&body).to_be_bytes()].concat()
}

/// CRC-32 of a PNG chunk.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => (crc >> 1) ^ 0xedb8_8320,
            _ => crc >> 1,
        })
    })
}
