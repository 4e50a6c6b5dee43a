use image::RgbImage;
use image::imageops::crop_imm;

/// Crops the largest central square.
///
/// An odd border is split as in torchvision's `center_crop`, which rounds halves to even.
pub fn centre_square(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let side = width.min(height);
    let border = |length: u32| (f64::from(length - side) / 2.0).round_ties_even() as u32;
    crop_imm(picture, border(width), border(height), side, side).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First column that torchvision's `center_crop` keeps of images 4, 5, 6 and 7 wide and 4 high.
    #[test]
    fn borders_are_as_in_torchvision() {
        for (width, first) in [(4, 0), (5, 0), (6, 1), (7, 2)] {
            let picture = RgbImage::from_fn(width, 4, |x, y| image::Rgb([x as u8, y as u8, 0]));
            let square = centre_square(&picture);
            assert_eq!(square.dimensions(), (4, 4));
            assert_eq!(square.get_pixel(0, 0).0, [first, 0, 0], "{width} wide");
            let transposed = RgbImage::from_fn(4, width, |x, y| image::Rgb([x as u8, y as u8, 0]));
            assert_eq!(centre_square(&transposed).get_pixel(0, 0).0, [0, first, 0]);
        }
    }
}
