//! Resizing compared with Pillow, PyTorch and TensorFlow (`golden/make.py`).

mod common;

use image::Rgb32FImage;
use swiftbrush_images::{
    Filter, Grid, resize, resize_and_crop, resize_bilinear, resize_floats, round_down,
};

use common::Golden;

const FILTERS: [(&str, Filter); 5] = [
    ("box", Filter::Box),
    ("bilinear", Filter::Bilinear),
    ("hamming", Filter::Hamming),
    ("bicubic", Filter::Bicubic),
    ("lanczos", Filter::Lanczos),
];

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
                // The products, of values up to 255, are summed in another order.
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

#[test]
fn start_images_are_fitted_as_diffusers_does() {
    let golden = Golden::open("pictures");
    let noise = golden.picture("noise").unwrap();
    let sizes = golden.names("crop.");
    assert_eq!(sizes.len(), 8);
    for size in sizes {
        let expected = golden.picture(&format!("crop.{size}")).unwrap();
        let found = resize_and_crop(&noise, expected.width(), expected.height());
        assert!(found == expected, "cropped to {size}");
    }
    let units = golden.names("round.");
    assert_eq!(units.len(), 5);
    for unit in units {
        let expected = golden.picture(&format!("round.{unit}")).unwrap();
        let found = round_down(&noise, unit.parse().unwrap());
        assert!(
            found == Some(expected),
            "rounded down to multiples of {unit}"
        );
    }
    assert_eq!(round_down(&noise, 38), None);
}
