use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

/// Files that are taken for pictures.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A picture that cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is damaged or no picture.
    #[error("cannot decode {path}")]
    Decode {
        /// Which.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// A picture of a kind that would have to be changed before it is compared, in one of several ways.
    #[error("{path} {what}; {remedy}")]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A folder without pictures.
    #[error("there are no pictures (png, jpg, webp) in {path}")]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

/// The pictures in a folder and those below it, in the order of their paths.
///
/// # Errors
///
/// If a folder cannot be read, or there are none.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut pictures = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |source| Error::Io {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            let is_picture = extension.is_some_and(|extension| {
                EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
            });
            if path.is_dir() {
                folders.push(path);
            } else if is_picture {
                pictures.push(path);
            }
        }
    }
    if pictures.is_empty() {
        let path = folder.to_owned();
        return Err(Error::Empty { path });
    }
    pictures.sort();
    Ok(pictures)
}

/// Reads a picture; see [`decode`].
///
/// # Errors
///
/// As there.
pub fn read(path: &Path) -> Result<RgbImage, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    decode(&bytes, path)
}

/// Decodes a picture whose file is `path`: eight bits of RGB, or of grey, which becomes RGB as every tool of the field
/// makes it (COCO has such photographs). A turn that its EXIF data speak of is not taken, as the field's tools take none.
///
/// # Errors
///
/// If it is damaged, transparent, animated, in CMYK, of more than eight bits, or less than two pixels wide or high.
pub fn decode(bytes: &[u8], path: &Path) -> Result<RgbImage, Error> {
    let failed = |source| Error::Decode {
        path: path.to_owned(),
        source,
    };
    let refuse = |what: String, remedy| {
        Err(Error::Kind {
            path: path.to_owned(),
            what,
            remedy,
        })
    };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    reader.limits(Limits::default());
    let is_animated = match reader.format() {
        Some(ImageFormat::Png) => {
            let decoder = PngDecoder::new(Cursor::new(bytes)).map_err(failed)?;
            decoder.is_apng().map_err(failed)?
        }
        Some(ImageFormat::WebP) => {
            let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failed)?;
            decoder.has_animation()
        }
        _ => false,
    };
    if is_animated {
        return refuse("is animated".to_owned(), "write one frame as a picture");
    }
    if reader.format() == Some(ImageFormat::Jpeg) && jpeg_components(bytes) == Some(4) {
        return refuse(
            "is in CMYK".to_owned(),
            "convert it to RGB with the colour profile that it was made for",
        );
    }
    let decoder = reader.into_decoder().map_err(failed)?;
    let kind = decoder.original_color_type();
    if kind.bits_per_pixel() > 8 * u16::from(kind.channel_count()) {
        return refuse(
            "has more than eight bits a channel".to_owned(),
            "write it with eight",
        );
    }
    let (width, height) = decoder.dimensions();
    if width < 2 || height < 2 {
        return refuse(
            format!("is {width}x{height}"),
            "there is nothing in it to compare: take it out",
        );
    }
    match DynamicImage::from_decoder(decoder).map_err(failed)? {
        DynamicImage::ImageRgb8(picture) => Ok(picture),
        picture @ DynamicImage::ImageLuma8(_) => Ok(picture.into_rgb8()),
        picture if picture.color().has_alpha() => {
            let picture = picture.into_rgba8();
            // An alpha channel that says nothing is dropped.
            if picture.pixels().all(|pixel| pixel.0[3] == 255) {
                return Ok(DynamicImage::ImageRgba8(picture).into_rgb8());
            }
            refuse(
                "is transparent".to_owned(),
                "put it on the ground that it is to be judged on",
            )
        }
        picture => refuse(
            format!("has pixels of {:?}", picture.color()),
            "write it as RGB with eight bits a channel",
        ),
    }
}

/// How many colours a JPEG has, by the header of its frame; the decoder tells of what it has made of them.
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    const COMPONENTS: usize = 9;
    let mut rest = bytes.get(2..)?;
    loop {
        let (marker, length) = (rest.get(1)?, rest.get(2..4)?);
        // All of C0 to CF begin a frame but the tables and the conditioning among them.
        if (0xc0..=0xcf).contains(marker) && ![0xc4, 0xc8, 0xcc].contains(marker) {
            return rest.get(COMPONENTS).copied();
        }
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        rest = rest.get(2 + length..)?;
    }
}
