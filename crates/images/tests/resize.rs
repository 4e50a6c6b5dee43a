//! Resizing beside Pillow, PyTorch and TensorFlow (`golden/make.py`).

use image::{Rgb32FImage, RgbImage};
use safetensors::SafeTensors;
use swiftbrush_images::{Filter, Grid, resize, resize_bilinear, resize_floats};

const FILTERS: [(&str, Filter); 5] = [
    ("box", Filter::Box),
    ("bilinear", Filter::Bilinear),
    ("hamming", Filter::Hamming),
    ("bicubic", Filter::Bicubic),
    ("lanczos", Filter::Lanczos),
];

struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
        Self(std::fs::read(format!("{folder}{name}.safetensors")).unwrap())
    }

    /// Height, width, and bytes of an array.
    fn array(&self, name: &str) -> Option<(u32, u32, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let array = file.tensor(name).ok()?;
        let shape = array.shape();
        Some((shape[0] as u32, shape[1] as u32, array.data().to_vec()))
    }

    fn picture(&self, name: &str) -> Option<RgbImage> {
        let (height, width, bytes) = self.array(name)?;
        RgbImage::from_raw(width, height, bytes)
    }

    fn floats(&self, name: &str) -> Option<Rgb32FImage> {
        let (height, width, bytes) = self.array(name)?;
        let (values, _) = bytes.as_chunks();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Rgb32FImage::from_raw(width, height, values.collect())
    }
}

#[test]
fn bytes_are_pillows() {
    let golden = Golden::open("pillow");
    let mut compared = 0;
    while let Some(picture) = golden.picture(&format!("{compared}.bytes")) {
        for (name, filter) in FILTERS {
            let expected = golden.picture(&format!("{compared}.bytes.{name}")).unwrap();
            let (width, height) = expected.dimensions();
            let found = resize(&picture, width, height, filter);
            assert!(found == expected, "{name} of case {compared}");
        }
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn floats_are_pillows() {
    let golden = Golden::open("pillow");
    let mut compared = 0;
    while let Some(picture) = golden.floats(&format!("{compared}.floats")) {
        for (name, filter) in FILTERS {
            let expected = golden.floats(&format!("{compared}.floats.{name}")).unwrap();
            let (width, height) = expected.dimensions();
            let found = resize_floats(&picture, width, height, filter);
            let bits =
                |picture: &Rgb32FImage| picture.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&found) == bits(&expected), "{name} of case {compared}");
        }
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn interpolation_is_pytorchs_and_tensorflows() {
    let (golden, expected) = (Golden::open("pillow"), Golden::open("bilinear"));
    let mut compared = 0;
    while let Some(picture) = golden.picture(&format!("{compared}.bytes")) {
        for (name, grid) in [("centres", Grid::Centres), ("corners", Grid::Corners)] {
            let expected = expected.floats(&format!("{compared}.{name}")).unwrap();
            let (width, height) = expected.dimensions();
            let found = resize_bilinear(&picture, width, height, grid);
            for (found, expected) in found.iter().zip(expected.iter()) {
                // Sums of products in another order, of values up to 255.
                assert!(
                    (found - expected).abs() < 2e-4,
                    "{found} {expected}: {name} of case {compared}"
                );
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 15);
}
