use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::codecs::bmp::BmpDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::UnsupportedErrorKind;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageResult, Limits,
    RgbImage,
};

use crate::{Orient, npy, orientation};

/// Size limit of a decoded image in pixels: Pillow's own limit, above which it suspects a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;
/// Size limit of a file in bytes, large enough for uncompressed images of [`MAX_PIXELS`].
pub const MAX_FILE: u64 = 1 << 30;
/// Memory limit for colour profiles and texts in a PNG, which are compressed and could otherwise inflate without bound.
const MAX_METADATA: u64 = 64 << 20;

/// Errors of reading an image.
///
/// Messages include their causes, so [`source`](std::error::Error::source) is always `None`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {cause}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The file is damaged, or not an image in a supported format.
    #[error("cannot decode {path}: {cause}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: ImageError,
    },
    /// The image would need a conversion that common tools do differently, or it exceeds a limit.
    #[error("{path} {found}; {remedy}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The unsupported property of the image.
        found: String,
        /// The remedy.
        remedy: String,
    },
    /// A folder has no images.
    #[error("{path} has no images ({})", crate::EXTENSIONS.join(", "))]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// A decoded file, and the changes made by decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// The image, in RGB with eight bits per channel.
    pub image: RgbImage,
    /// Exif orientation of the file, 1 to 8; 1 means upright or unspecified. It is always 1 for TIFF, whose readers, including
    /// Pillow's, always apply the orientation.
    pub orientation: u8,
    /// True if any pixel was not opaque. Colours are kept and transparency is dropped, as in Pillow's `convert("RGB")`.
    pub had_transparency: bool,
}

/// Opens an image upright; see [`decode`].
///
/// # Errors
///
/// If it cannot be read or decoded.
pub fn open(path: impl AsRef<Path>) -> Result<Decoded, Error> {
    let path = path.as_ref();
    decode(&read_file(path)?, path, Orient::Upright)
}

/// Reads a regular file of at most [`MAX_FILE`] bytes; a device such as `/dev/zero` is an error.
///
/// # Errors
///
/// If it cannot be read, is not a regular file, or is larger.
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
    let path = path.as_ref();
    let failed = |cause| Error::Io {
        path: path.to_owned(),
        cause,
    };
    let unsupported = |found: String, remedy: &str| Error::Unsupported {
        path: path.to_owned(),
        found,
        remedy: remedy.to_owned(),
    };
    // Opening a pipe would block until it has a writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        let found = "is not a regular file".to_owned();
        return Err(unsupported(found, "expected a picture"));
    }
    if metadata.len() > MAX_FILE {
        let found = format!("has {} bytes", metadata.len());
        let remedy = format!("at most {MAX_FILE} are supported");
        return Err(unsupported(found, &remedy));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Decodes the bytes of an image. The format is recognised by content; `path` is used only in errors.
///
/// PNG, JPEG, WebP, BMP, TIFF (first page), PNM, and NumPy arrays of bytes are supported. Greyscale becomes RGB; transparency
/// is dropped in every colour type, and reported.
///
/// # Errors
///
/// If the image is damaged, animated, in CMYK, has more than eight bits per channel or more than [`MAX_PIXELS`], or is less
/// than two pixels wide or high.
pub fn decode(bytes: &[u8], path: impl AsRef<Path>, orient: Orient) -> Result<Decoded, Error> {
    let path = path.as_ref();
    let found = match bytes.starts_with(npy::SIGNATURE) {
        true => decode_array(bytes),
        false => decode_picture(bytes, orient),
    };
    found.map_err(|fault| fault.of(path))
}

/// An error that does not name its file yet.
#[derive(Debug)]
enum Fault {
    Image(ImageError),
    Unsupported(String, String),
}

impl Fault {
    fn unsupported(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsupported(found.into(), remedy.into())
    }

    fn of(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Image(cause) => Error::Decode { path, cause },
            Self::Unsupported(found, remedy) => Error::Unsupported {
                path,
                found,
                remedy,
            },
        }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

fn decode_array(bytes: &[u8]) -> Result<Decoded, Fault> {
    let dimensions = npy::dimensions(bytes);
    let dimensions =
        dimensions.map_err(|reason| Fault::unsupported("is not an image array", reason))?;
    check_dimensions(dimensions)?;
    Ok(Decoded {
        image: npy::decode(bytes, dimensions).map_err(ImageError::IoError)?,
        orientation: Orientation::NoTransforms.to_exif(),
        had_transparency: false,
    })
}

fn decode_picture(bytes: &[u8], orient: Orient) -> Result<Decoded, Fault> {
    let (decoder, turn) = open_decoder(bytes)?;
    let dimensions = decoder.dimensions();
    let kind = decoder.original_color_type();
    if matches!(kind, ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16) {
        return Err(cmyk());
    }
    check_dimensions(dimensions)?;
    if kind.bits_per_pixel() > 8 * u16::from(kind.channel_count()) {
        return Err(Fault::unsupported(
            "has more than eight bits per channel",
            "write it with eight: tools disagree on the conversion",
        ));
    }
    let mut image = DynamicImage::from_decoder(decoder)?;
    let is_tiff = image::guess_format(bytes)? == ImageFormat::Tiff;
    if orient == Orient::Upright || is_tiff {
        image.apply_orientation(turn);
    }
    let named = match is_tiff {
        true => Orientation::NoTransforms,
        false => turn,
    };
    Ok(Decoded {
        had_transparency: has_transparency(&image),
        image: image.into_rgb8(),
        orientation: named.to_exif(),
    })
}

/// Creates the decoder of a file, with limits, and reads the orientation of the file.
fn open_decoder(bytes: &[u8]) -> Result<(Box<dyn ImageDecoder + '_>, Orientation), Fault> {
    let reader = Cursor::new(bytes);
    Ok(match image::guess_format(bytes)? {
        ImageFormat::Png => {
            check_palette(bytes)?;
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(MAX_METADATA);
            let decoder = PngDecoder::with_limits(reader, limits)?;
            still(!decoder.is_apng()?)?;
            (Box::new(decoder), orientation::of_png(bytes))
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(reader)?;
            still(!decoder.has_animation())?;
            (Box::new(decoder), orientation::of_webp(bytes))
        }
        ImageFormat::Jpeg if jpeg_components(bytes) == Some(4) => return Err(cmyk()),
        ImageFormat::Jpeg => limited(JpegDecoder::new(reader)?)?,
        ImageFormat::Tiff => limited(TiffDecoder::new(reader)?)?,
        ImageFormat::Bmp => limited(BmpDecoder::new(reader)?)?,
        ImageFormat::Pnm => limited(PnmDecoder::new(reader)?)?,
        other => {
            let kind = UnsupportedErrorKind::Format(other.into());
            let error = image::error::UnsupportedError::from_format_and_kind(other.into(), kind);
            return Err(ImageError::Unsupported(error).into());
        }
    })
}

fn limited<'a, D: ImageDecoder + 'a>(
    mut decoder: D,
) -> ImageResult<(Box<dyn ImageDecoder + 'a>, Orientation)> {
    let mut limits = Limits::no_limits();
    // Four bytes per pixel, and the same again for decoding.
    limits.max_alloc = Some(8 * MAX_PIXELS);
    decoder.set_limits(limits)?;
    let turn = orientation::of_decoder(&mut decoder);
    Ok((Box::new(decoder), turn))
}

fn still(is_still: bool) -> Result<(), Fault> {
    match is_still {
        true => Ok(()),
        false => Err(Fault::unsupported(
            "is animated",
            "write one frame as a picture",
        )),
    }
}

fn cmyk() -> Fault {
    let remedy = "convert it to RGB with the colour profile that it was made for";
    Fault::unsupported("is in CMYK", remedy)
}

fn check_dimensions((width, height): (u32, u32)) -> Result<(), Fault> {
    if width < 2 || height < 2 {
        return Err(Fault::unsupported(
            format!("is {width}x{height}"),
            "expected at least two pixels per side",
        ));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Fault::unsupported(
            format!("is {width}x{height}"),
            format!("at most {MAX_PIXELS} pixels are supported"),
        ));
    }
    Ok(())
}

fn has_transparency(image: &DynamicImage) -> bool {
    match image {
        DynamicImage::ImageRgba8(image) => image.pixels().any(|pixel| pixel.0[3] < 255),
        DynamicImage::ImageLumaA8(image) => image.pixels().any(|pixel| pixel.0[1] < 255),
        _ => false,
    }
}

/// Checks the length of a PNG's palette; the decoder (png 0.18.1) panics at one that is not a multiple of three.
fn check_palette(bytes: &[u8]) -> Result<(), Fault> {
    /// Length and type before a chunk's data, and the checksum after it.
    const FRAME: usize = 12;
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((header, _)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, kind @ ..] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let is_valid = (3..=3 * 256).contains(&length) && length.is_multiple_of(3);
        match &kind {
            b"PLTE" if !is_valid => {
                let found = format!("has a palette of {length} bytes");
                return Err(Fault::unsupported(
                    found,
                    "expected three for each of 1 to 256 colours",
                ));
            }
            b"IDAT" => break,
            _ => rest = rest.get(length.saturating_add(FRAME)..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Number of components of a JPEG, from its frame header. The decoder reports only those of its own output.
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    const COMPONENTS: usize = 9;
    let mut rest = bytes.get(2..)?;
    loop {
        let (marker, length) = (rest.get(1)?, rest.get(2..4)?);
        // C0 to CF begin a frame, except for those that begin tables or arithmetic conditioning.
        if (0xc0..=0xcf).contains(marker) && ![0xc4, 0xc8, 0xcc].contains(marker) {
            return rest.get(COMPONENTS).copied();
        }
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        rest = rest.get(2 + length..)?;
    }
}
