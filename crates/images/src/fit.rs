use image::RgbImage;
use image::imageops::crop_imm;

use crate::{Filter, resize};

/// Fits a start image to `width` × `height`, with [`round_down`] if that gives this size, else with [`resize_and_crop`].
///
/// # Panics
///
/// If a side, old or new, or `unit` is zero.
#[track_caller]
pub fn fit(picture: &RgbImage, width: u32, height: u32, unit: u32) -> RgbImage {
    let rounded = round_down(picture, unit);
    let rounded = rounded.filter(|rounded| rounded.dimensions() == (width, height));
    rounded.unwrap_or_else(|| resize_and_crop(picture, width, height))
}

/// Resizes an image with the Lanczos filter to cover `width` × `height`, preserving its aspect ratio, and crops the excess
/// evenly on both sides. The result matches diffusers' `VaeImageProcessor.resize` with `resize_mode="crop"` byte for byte.
///
/// # Panics
///
/// If a side, old or new, is zero.
#[track_caller]
pub fn resize_and_crop(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let [from_width, from_height] = [picture.width(), picture.height()].map(u64::from);
    let [to_width, to_height] = [width, height].map(u64::from);
    let is_wider = to_width * from_height > from_width * to_height;
    let covering = match is_wider {
        true => (to_width, from_height * to_width / from_width),
        false => (from_width * to_height / from_height, to_height),
    };
    let (cover_width, cover_height) = (covering.0 as u32, covering.1 as u32);
    let covering = resize(picture, cover_width, cover_height, Filter::Lanczos);
    let (x, y) = (cover_width / 2 - width / 2, cover_height / 2 - height / 2);
    crop_imm(&covering, x, y, width, height).to_image()
}

/// Resizes an image with the Lanczos filter, rounding its sides down to multiples of `unit`, which changes its aspect ratio
/// slightly. The result matches diffusers' `VaeImageProcessor.preprocess` with a `vae_scale_factor` of `unit` byte for byte.
///
/// - returns: `None` if a side is smaller than `unit`
///
/// # Panics
///
/// If `unit` is zero.
#[track_caller]
pub fn round_down(picture: &RgbImage, unit: u32) -> Option<RgbImage> {
    let (width, height) = picture.dimensions();
    let [width, height] = [width, height].map(|side| side - side % unit);
    (width > 0 && height > 0).then(|| resize(picture, width, height, Filter::Lanczos))
}
