use std::io;

use image::RgbImage;
use npyz::NpyFile;

pub(crate) const SIGNATURE: &[u8] = b"\x93NUMPY";

/// Reads the shape of an array of bytes: height, width and three channels, in row-major order.
///
/// # Errors
///
/// If the file is damaged or contains anything else; the error is a message.
pub(crate) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let file = NpyFile::new(bytes).map_err(|error| error.to_string())?;
    let kind = file.dtype().descr();
    let expected = "expected bytes (uint8) of shape [height, width, 3]";
    let side = |side: u64| u32::try_from(side).ok();
    match (file.shape(), file.order(), kind.as_str()) {
        (&[height, width, 3], npyz::Order::C, "'|u1'") => side(width)
            .zip(side(height))
            .ok_or_else(|| format!("{expected}, found {height} × {width} pixels")),
        (shape, _, _) => Err(format!("{expected}, found {kind} of shape {shape:?}")),
    }
}

/// Decodes the image in an array of `dimensions`.
///
/// # Errors
///
/// If bytes are missing.
pub(crate) fn decode(bytes: &[u8], (width, height): (u32, u32)) -> io::Result<RgbImage> {
    let values: Vec<u8> = NpyFile::new(bytes)?.into_vec()?;
    RgbImage::from_raw(width, height, values).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
