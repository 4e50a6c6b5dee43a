//! Limits on the size of images, and an estimate of the memory they need.

use crate::Error;

/// Maximum number of pixels of an image.
const MAX_PIXELS: usize = 1 << 26;
/// The side of the largest square image.
const MAX_SIDE: usize = 1 << 13;
/// Number of tensors of the decoder's last block that are alive at once: the input, the normalised input, and the output.
const LIVE_TENSORS: u64 = 3;

/// Peak memory of decoding in bytes, besides the weights; `channels` is the width of the block at full resolution.
pub(crate) fn decoding_memory([height, width]: [usize; 2], batch: usize, channels: usize) -> u64 {
    let values = [height, width, batch, channels].map(|size| size as u64);
    let values = values.into_iter().fold(1u64, u64::saturating_mul);
    values.saturating_mul(4 * LIVE_TENSORS)
}

/// Checks height and width in pixels for images with `scale` pixels per latent along each axis.
pub(crate) fn check_size(
    [height, width]: [usize; 2],
    scale: usize,
    channels: usize,
) -> Result<(), Error> {
    let sides = [height, width];
    if !sides
        .iter()
        .all(|&side| side > 0 && side.is_multiple_of(scale))
    {
        return Err(Error::Request(format!(
            "size {width}x{height}: width and height must be multiples of {scale}"
        )));
    }
    check_pixels([height, width]).map_err(|limit| {
        let memory = bytes(decoding_memory([height, width], 1, channels));
        Error::Request(format!("{limit}, and decoding would take about {memory}"))
    })
}

/// Checks only the number of pixels; the error is the beginning of a sentence.
pub(crate) fn check_pixels([height, width]: [usize; 2]) -> Result<(), String> {
    let pixels = height.checked_mul(width);
    match pixels.is_some_and(|pixels| pixels <= MAX_PIXELS) {
        true => Ok(()),
        false => Err(format!(
            "size {width}x{height}: the limit is {MAX_PIXELS} pixels, such as {MAX_SIDE}x{MAX_SIDE}"
        )),
    }
}

/// Formats a number of bytes in a readable unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_the_scale_and_within_the_limit() {
        for size in [[8, 8], [392, 520], [8192, 8192]] {
            assert!(check_size(size, 8, 128).is_ok(), "{size:?}");
        }
        for (size, part) in [
            (
                [500, 512],
                "size 512x500: width and height must be multiples of 8",
            ),
            ([0, 64], "multiples of 8"),
            ([100_000, 100_000], "14.0 TiB"),
            ([usize::MAX - 7, 8], "67108864 pixels, such as 8192x8192"),
        ] {
            let error = check_size(size, 8, 128).expect_err("it is out of bounds");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
