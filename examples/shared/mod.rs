//! What the programs share: devices by name, pictures as files.
#![allow(dead_code, reason = "each program uses a part")]

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor};
use image::RgbImage;

/// Names that `--device` takes in this build.
pub(crate) const DEVICES: &[&str] = &[
    #[cfg(feature = "flex")]
    "flex",
    #[cfg(feature = "wgpu")]
    "wgpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "metal")]
    "metal",
];

/// The device of a name; `cuda:1` is the second card.
pub(crate) fn device(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (
            kind,
            index
                .parse::<usize>()
                .with_context(|| format!("--device {name}"))?,
        ),
        None => (name, 0),
    };
    let _ = index;
    Ok(match kind {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(index),
        #[cfg(feature = "metal")]
        "metal" => Device::metal(burn::tensor::DeviceKind::DefaultDevice),
        _ => bail!(
            "--device {name} is not in this build, which has {}; others come with --features",
            DEVICES.join(", ")
        ),
    })
}

/// Images of a batch in −1…1 as pictures.
pub(crate) fn pictures(images: Tensor<4>) -> Vec<RgbImage> {
    let [batch, _, height, width] = images.dims();
    let values = images.permute([0, 2, 3, 1]).into_data();
    let bytes: Vec<u8> = values
        .iter::<f32>()
        .map(|x| ((x + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8)
        .collect();
    let (size, width, height) = (bytes.len() / batch, width as u32, height as u32);
    let picture = |bytes: &[u8]| RgbImage::from_raw(width, height, bytes.to_vec());
    bytes
        .chunks(size)
        .map(|bytes| picture(bytes).expect("three bytes a pixel"))
        .collect()
}

/// Each pixel as a square of `factor` pixels.
pub(crate) fn enlarged(picture: &RgbImage, factor: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    image::imageops::resize(
        picture,
        width * factor,
        height * factor,
        image::imageops::Nearest,
    )
}

/// Pictures side by side, `columns` in a row.
pub(crate) fn grid(pictures: &[RgbImage], columns: usize) -> RgbImage {
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

/// Writes a PNG that replaces an older one only when it is whole.
pub(crate) fn write_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(swiftbrush_checkpoint::write_atomically(path, |file| {
        file.write_all(bytes.get_ref())
    })?)
}
