use image::ImageDecoder;
use image::metadata::Orientation;
use serde::{Deserialize, Serialize};

/// Handling of the Exif orientation tag, which cameras write for images stored sideways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orient {
    /// Rotates or mirrors the image so that it is upright, like `PIL.ImageOps.exif_transpose`, viewers, browsers and
    /// diffusers' `load_image`.
    #[default]
    Upright,
    /// Ignores the tag, except in TIFF, like pytorch-fid, clean-fid and torch-fidelity.
    AsStored,
}

/// The orientation of a PNG from its Exif data, before or after the pixels, or from XMP.
pub(crate) fn of_png(bytes: &[u8]) -> Orientation {
    const SIGNATURE: usize = 8;
    let (mut exif, mut xmp) = (None, None);
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    // Length, type, data, checksum.
    while let Some((header, data)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, kind @ ..] = *header;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(chunk) = data.get(..len) else { break };
        match &kind {
            b"eXIf" => exif = exif.or(Some(chunk)),
            b"iTXt" if chunk.starts_with(b"XML:com.adobe.xmp\0") => xmp = Some(chunk),
            _ => {}
        }
        rest = data.get(len + 4..).unwrap_or_default();
    }
    either(exif, xmp)
}

/// The orientation of a WebP from its Exif data or XMP.
pub(crate) fn of_webp(bytes: &[u8]) -> Orientation {
    const HEADER: usize = 12;
    let (mut exif, mut xmp) = (None, None);
    let mut rest = bytes.get(HEADER..).unwrap_or_default();
    // Type, length, data, padding to an even length.
    while let Some((header, data)) = rest.split_first_chunk::<8>() {
        let [kind @ .., a, b, c, d] = *header;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some(chunk) = data.get(..len) else { break };
        match &kind {
            b"EXIF" => exif = Some(chunk),
            b"XMP " => xmp = Some(chunk),
            _ => {}
        }
        rest = data.get(len + len % 2..).unwrap_or_default();
    }
    // Some writers keep the prefix that precedes Exif data in JPEG.
    let exif = exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    either(exif, xmp)
}

/// The orientation of any other file, as reported by its decoder; unreadable metadata counts as none.
pub(crate) fn of_decoder(decoder: &mut impl ImageDecoder) -> Orientation {
    match decoder.orientation() {
        Ok(orientation) if orientation != Orientation::NoTransforms => orientation,
        _ => {
            let xmp = decoder.xmp_metadata().ok().flatten();
            either(None, xmp.as_deref())
        }
    }
}

/// Prefers Exif to XMP, as Pillow does.
fn either(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let exif = exif.and_then(Orientation::from_exif_chunk);
    exif.or_else(|| of_xmp(xmp?))
        .unwrap_or(Orientation::NoTransforms)
}

/// Looks for `tiff:Orientation="6"` or `<tiff:Orientation>6<`, as Pillow does.
fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    const KEY: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(KEY.len()).position(|window| window == KEY)?;
    let rest = &xmp[at + KEY.len()..];
    let digit = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
    let digit = digit.first()?.checked_sub(b'0')?;
    Orientation::from_exif(digit)
}
