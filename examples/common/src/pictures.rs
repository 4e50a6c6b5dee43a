//! Pictures as files, tensors and contact sheets.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use swiftbrush_images::{Decoded, Orient};
use swiftbrush_pipeline::{Mask, Picture, Record};

/// Converts a batch of images in −1…1 to pictures.
pub fn pictures(images: Tensor<4>) -> Vec<RgbImage> {
    Picture::of_images(images).iter().map(image).collect()
}

/// Converts a picture to the type of the crate `image`.
pub fn image(picture: &Picture) -> RgbImage {
    let (width, height) = (picture.width as u32, picture.height as u32);
    RgbImage::from_raw(width, height, picture.bytes.clone()).expect("three bytes per pixel")
}

/// Opens a picture, rotates it upright and drops transparency, and reports both on stderr.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    Ok(reported(swiftbrush_images::open(path)?, path))
}

/// Decodes a picture like [`read_image`]; `path` names it in messages.
pub fn decode_image(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    let decoded = swiftbrush_images::decode(bytes, path, Orient::Upright)?;
    Ok(reported(decoded, path))
}

fn reported(decoded: Decoded, path: &Path) -> RgbImage {
    if decoded.orientation != 1 {
        eprintln!(
            "{}: rotated upright according to its Exif orientation {}",
            path.display(),
            decoded.orientation
        );
    }
    if decoded.had_transparency {
        eprintln!("{}: transparency dropped, colours kept", path.display());
    }
    decoded.image
}

/// Repeats a picture `count` times, `[count, 3, height, width]` in −1…1.
pub fn tensor(picture: &RgbImage, count: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = picture
        .iter()
        .map(|&byte| f32::from(byte) / 127.5 - 1.0)
        .collect();
    let [width, height] = [picture.width(), picture.height()].map(|side| side as usize);
    let image = TensorData::new(values, [1, height, width, 3]);
    let image = Tensor::<4>::from_data(image, device).permute([0, 3, 1, 2]);
    image.repeat_dim(0, count)
}

/// Opens a mask for a picture: grey, opaque, and of the same size.
pub fn read_mask(path: &Path, picture: &RgbImage) -> Result<RgbImage> {
    let decoded = swiftbrush_images::open(path)?;
    let path = path.display();
    ensure!(
        !decoded.had_transparency,
        "--mask {path}: expected black and white without transparency; flatten the picture"
    );
    let (mask, size) = (decoded.image, picture.dimensions());
    ensure!(
        mask.dimensions() == size,
        "--mask {path}: expected {}x{} pixels as the picture, found {}x{}",
        size.0,
        size.1,
        mask.width(),
        mask.height()
    );
    let colour = mask
        .enumerate_pixels()
        .find(|(_, _, pixel)| pixel.0 != [pixel.0[0]; 3]);
    match colour {
        Some((x, y, pixel)) => bail!(
            "--mask {path}: expected a grey picture, found the colour {:?} at ({x}, {y})",
            pixel.0
        ),
        None => Ok(mask),
    }
}

/// The mask of a grey picture.
pub fn mask(picture: &RgbImage, device: &Device) -> Result<Mask> {
    let grey: Vec<u8> = picture.pixels().map(|pixel| pixel.0[0]).collect();
    let [width, height] = [picture.width(), picture.height()].map(|side| side as usize);
    Ok(Mask::from_bytes(width, height, &grey, device)?)
}

/// Side of the squares that pixels of a picture were enlarged to, if it has the size that its record says; else 1.
pub fn enlargement(picture: &RgbImage, record: &Record) -> u32 {
    let factor = record.enlarged as usize;
    let [height, width] = record.size.map(|side| side.saturating_mul(factor));
    let found = [picture.height(), picture.width()].map(|side| side as usize);
    match found == [height, width] {
        true => record.enlarged,
        false => 1,
    }
}

/// A picture with one pixel for each square of side `factor`.
pub fn shrunk(picture: &RgbImage, factor: u32) -> RgbImage {
    let (width, height) = (picture.width() / factor, picture.height() / factor);
    RgbImage::from_fn(width, height, |x, y| {
        *picture.get_pixel(x * factor, y * factor)
    })
}

/// Writes a picture with its record. An existing file is replaced once the new one is complete.
pub fn write_picture(picture: &Picture, record: &Record, path: &Path) -> Result<()> {
    let bytes = picture.to_png(Some(record));
    Ok(swiftbrush_checkpoint::write_atomically(path, |file| {
        file.write_all(&bytes)
    })?)
}

/// Enlarges each pixel to a square of `factor` pixels.
pub fn enlarged(picture: &Picture, factor: u32) -> Picture {
    let factor = factor as usize;
    let (width, height) = (picture.width * factor, picture.height * factor);
    let pixel = |index: usize| {
        let (row, column) = (index / width / factor, index % width / factor);
        let start = 3 * (row * picture.width + column);
        &picture.bytes[start..start + 3]
    };
    Picture {
        width,
        height,
        bytes: (0..width * height).flat_map(pixel).copied().collect(),
    }
}

/// Arranges pictures of equal size on a contact sheet with `columns` per row.
pub fn grid(pictures: &[RgbImage], columns: usize) -> RgbImage {
    let (width, height) = pictures.first().map_or((1, 1), RgbImage::dimensions);
    let columns = columns.min(pictures.len()).max(1);
    let rows = pictures.len().div_ceil(columns);
    let mut grid = RgbImage::new(width * columns as u32, height * rows as u32);
    for (index, picture) in pictures.iter().enumerate() {
        let (x, y) = (
            (index % columns) as u32 * width,
            (index / columns) as u32 * height,
        );
        image::imageops::replace(&mut grid, picture, x.into(), y.into());
    }
    grid
}

/// Writes a PNG without a record. An existing file is replaced once the new one is complete.
pub fn write_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(swiftbrush_checkpoint::write_atomically(path, |file| {
        file.write_all(bytes.get_ref())
    })?)
}
