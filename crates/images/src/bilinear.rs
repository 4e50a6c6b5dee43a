use image::{Rgb32FImage, RgbImage};

/// Alignment of the source and destination grids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Pixel centres are aligned: PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
    Centres,
    /// Upper left corners are aligned: TensorFlow 1's `resize_bilinear`, which shifts the image.
    Corners,
}

/// Resizes with bilinear interpolation of four pixels at any scale, without antialiasing.
///
/// - returns: values in 0…255, not rounded
///
/// # Panics
///
/// If any side, old or new, is zero.
#[track_caller]
pub fn resize_bilinear(picture: &RgbImage, width: u32, height: u32, grid: Grid) -> Rgb32FImage {
    let columns = places(picture.width(), width, grid);
    let rows = places(picture.height(), height, grid);
    Rgb32FImage::from_fn(width, height, |x, y| {
        let ((left, right, across), (above, below, down)) = (columns[x as usize], rows[y as usize]);
        let [above_left, above_right, below_left, below_right] =
            [(left, above), (right, above), (left, below), (right, below)]
                .map(|(x, y)| picture.get_pixel(x, y).0.map(f32::from));
        image::Rgb(std::array::from_fn(|c| {
            let upper = above_left[c] + (above_right[c] - above_left[c]) * across;
            let lower = below_left[c] + (below_right[c] - below_left[c]) * across;
            upper + (lower - upper) * down
        }))
    })
}

/// The two source indices of each destination index, and the weight of the second.
fn places(from: u32, to: u32, grid: Grid) -> Vec<(u32, u32, f32)> {
    assert!(from > 0 && to > 0, "expected at least one pixel per side");
    let scale = from as f32 / to as f32;
    let place = |index: u32| {
        let at = match grid {
            Grid::Centres => (scale * (index as f32 + 0.5) - 0.5).max(0.0),
            Grid::Corners => scale * index as f32,
        };
        let first = (at as u32).min(from - 1);
        (first, (first + 1).min(from - 1), at - first as f32)
    };
    (0..to).map(place).collect()
}
