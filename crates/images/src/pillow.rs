//! Pillow's resizing with antialiasing (`ImagingResample`), bit for bit: weights in f64, in fixed point for bytes, rounded between
//! the two axes.
//!
//! The order of the axes follows Pillow 13; older versions always resize rows first. The results agree for squares, and unless
//! the height shrinks by more than twice as many pixels as the width.

use std::f64::consts::PI;

use image::{Rgb32FImage, RgbImage};
use serde::{Deserialize, Serialize};

/// A resampling filter, with Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Mean of the covered pixels.
    Box,
    /// Triangle.
    Bilinear,
    /// Sinc with a Hamming window.
    Hamming,
    /// Keys' cubic with a = −½.
    Bicubic,
    /// Sinc with a Lanczos window of three lobes.
    Lanczos,
}

impl Filter {
    /// Radius of the filter, in pixels of the larger side.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Bilinear if x.abs() < 1.0 => 1.0 - x.abs(),
            Self::Hamming if x == 0.0 => 1.0,
            Self::Hamming if x.abs() < 1.0 => {
                let x = x.abs() * PI;
                // Pillow's constants are f32.
                x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
            }
            Self::Bicubic => cubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// Resizes an 8-bit image. The result matches Pillow's `Image.resize` in mode RGB byte for byte.
///
/// # Panics
///
/// If a side, old or new, is zero.
#[track_caller]
pub fn resize(picture: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let samples = resample(picture, picture.dimensions(), (width, height), filter);
    RgbImage::from_raw(width, height, samples).expect("three samples per pixel")
}

/// Resizes a floating-point image. Each channel matches Pillow's `Image.resize` in mode F bit for bit. Values are not clipped:
/// cubic and sinc filters overshoot at edges.
///
/// # Panics
///
/// If a side, old or new, is zero.
#[track_caller]
pub fn resize_floats(
    picture: &Rgb32FImage,
    width: u32,
    height: u32,
    filter: Filter,
) -> Rgb32FImage {
    let samples = resample(picture, picture.dimensions(), (width, height), filter);
    Rgb32FImage::from_raw(width, height, samples).expect("three samples per pixel")
}

/// Converts bytes to floats in 0…255.
pub fn to_floats(picture: &RgbImage) -> Rgb32FImage {
    let (width, height) = picture.dimensions();
    let samples = picture.iter().map(|byte| f32::from(*byte)).collect();
    Rgb32FImage::from_raw(width, height, samples).expect("a float for each byte")
}

fn resample<S: Sample>(
    samples: &[S],
    (from_width, from_height): (u32, u32),
    (to_width, to_height): (u32, u32),
    filter: Filter,
) -> Vec<S> {
    let across = |samples: &[S]| match from_width == to_width {
        true => samples.to_vec(),
        false => Weights::new(from_width, to_width, filter).rows(samples),
    };
    let down = |samples: &[S], width: u32| match from_height == to_height {
        true => samples.to_vec(),
        false => Weights::new(from_height, to_height, filter).columns(samples, 3 * width as usize),
    };
    let shrinks = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (lost_rows, lost_columns) = (
        shrinks(from_height, to_height),
        shrinks(from_width, to_width),
    );
    if lost_rows > 0 && lost_rows > 2 * lost_columns {
        across(&down(samples, from_width))
    } else {
        down(&across(samples), to_width)
    }
}

/// A sample of an image, and the arithmetic of its weighted sums.
trait Sample: Copy {
    type Weight: Copy;
    type Sum: Copy;

    fn weight(weight: f64) -> Self::Weight;
    fn start() -> Self::Sum;
    fn add(sum: Self::Sum, sample: Self, weight: Self::Weight) -> Self::Sum;
    fn end(sum: Self::Sum) -> Self;
}

/// Number of fractional bits of a weight for bytes.
const PRECISION: u32 = 32 - 8 - 2;

impl Sample for u8 {
    type Weight = i32;
    type Sum = i32;

    fn weight(weight: f64) -> i32 {
        let scaled = weight * f64::from(1u32 << PRECISION);
        // Rounds half away from zero, as Pillow does.
        (scaled + 0.5f64.copysign(scaled)) as i32
    }

    fn start() -> i32 {
        1 << (PRECISION - 1)
    }

    fn add(sum: i32, sample: u8, weight: i32) -> i32 {
        sum.wrapping_add(i32::from(sample).wrapping_mul(weight))
    }

    fn end(sum: i32) -> u8 {
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}

impl Sample for f32 {
    type Weight = f64;
    type Sum = f64;

    fn weight(weight: f64) -> f64 {
        weight
    }

    fn start() -> f64 {
        0.0
    }

    fn add(sum: f64, sample: f32, weight: f64) -> f64 {
        sum + f64::from(sample) * weight
    }

    fn end(sum: f64) -> f32 {
        sum as f32
    }
}

/// Weights along one axis: first source index and weights of each destination index.
struct Weights<S: Sample> {
    from: usize,
    places: Vec<(usize, Vec<S::Weight>)>,
}

impl<S: Sample> Weights<S> {
    fn new(from: u32, to: u32, filter: Filter) -> Self {
        assert!(from > 0 && to > 0, "expected at least one pixel per side");
        let scale = f64::from(from) / f64::from(to);
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let inverse = 1.0 / widening;
        let place = |index: u32| {
            let centre = (f64::from(index) + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0);
            let last = ((centre + support + 0.5) as i64).min(i64::from(from));
            let weights: Vec<f64> = (first..last)
                .map(|old| filter.weight((old as f64 - centre + 0.5) * inverse))
                .collect();
            let total: f64 = weights.iter().sum();
            let share = |weight: f64| if total == 0.0 { weight } else { weight / total };
            let weights = weights.into_iter().map(|weight| S::weight(share(weight)));
            (first as usize, weights.collect())
        };
        Self {
            from: from as usize,
            places: (0..to).map(place).collect(),
        }
    }

    fn rows(&self, samples: &[S]) -> Vec<S> {
        let mut resized = Vec::with_capacity(samples.len() / self.from * self.places.len());
        for row in samples.chunks(3 * self.from) {
            for (first, weights) in &self.places {
                let mut sums = [S::start(); 3];
                for (pixel, &weight) in row[3 * first..].chunks_exact(3).zip(weights) {
                    for (sum, &sample) in sums.iter_mut().zip(pixel) {
                        *sum = S::add(*sum, sample, weight);
                    }
                }
                resized.extend(sums.map(S::end));
            }
        }
        resized
    }

    /// Resizes the rows of `width` samples.
    fn columns(&self, samples: &[S], width: usize) -> Vec<S> {
        let mut resized = Vec::with_capacity(width * self.places.len());
        for (first, weights) in &self.places {
            let mut sums = vec![S::start(); width];
            for (row, &weight) in samples[width * first..].chunks_exact(width).zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(row) {
                    *sum = S::add(*sum, sample, weight);
                }
            }
            resized.extend(sums.into_iter().map(S::end));
        }
        resized
    }
}
