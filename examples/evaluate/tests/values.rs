//! Values respond to the pictures as they should.

use super::*;

#[test]
fn worse_pictures_have_worse_values() {
    const COUNT: usize = 256;
    let (real, captions) = truth(1, COUNT);
    let reference = folder(&real, &captions);
    let (others, captions) = truth(2, COUNT);
    let of_others = beside(&others, &captions, &reference);

    let noisy = |level: i16| -> Vec<RgbImage> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut pictures = others.clone();
        for byte in pictures.iter_mut().flat_map(|picture| picture.iter_mut()) {
            let noisy = i16::from(*byte) + rng.random_range(-level..=level);
            *byte = noisy.clamp(0, 255) as u8;
        }
        pictures
    };
    let blurred = |sigma: f32| -> Vec<RgbImage> {
        others
            .iter()
            .map(|picture| image::imageops::blur(picture, sigma))
            .collect()
    };
    for (what, a_little, a_lot) in [
        ("noise", noisy(50), noisy(120)),
        ("blur", blurred(2.0), blurred(4.0)),
    ] {
        let [little, lot] =
            [a_little, a_lot].map(|pictures| beside(&pictures, &captions, &reference));
        for name in ["Fréchet distance", "kernel distance"] {
            let values = [&of_others, &little, &lot].map(|of| value(of, name));
            assert!(
                values.is_sorted() && values[0] < values[2],
                "{name} with {what}: {values:?}"
            );
        }
        for name in ["coverage", "CLIP score"] {
            let values = [&of_others, &lot].map(|of| value(of, name));
            assert!(values[0] > values[1], "{name} with {what}: {values:?}");
        }
    }

    // Circles alone are as precise, but cover little.
    let (all, captions) = truth(4, 24 * COUNT);
    let circles = all.into_iter().zip(captions).filter(|(_, caption)| {
        caption.contains(" circle on a") && !caption.contains("above") && !caption.contains("left")
    });
    let (circles, captions): (Vec<_>, Vec<_>) = circles.take(COUNT).unzip();
    assert_eq!(circles.len(), COUNT);
    let of_circles = beside(&circles, &captions, &reference);
    assert!(
        value(&of_circles, "precision") > 0.9,
        "{:?}",
        of_circles.values
    );
    assert!(
        value(&of_circles, "recall") < 0.5,
        "{:?}",
        of_circles.values
    );
    let coverages = [&of_circles, &of_others].map(|of| value(of, "coverage"));
    assert!(coverages[0] < 0.8 * coverages[1], "{coverages:?}");
    assert!(value(&of_circles, "Fréchet distance") > 10.0 * value(&of_others, "Fréchet distance"));

    // Prompts of other pictures.
    let mut wrong = captions.clone();
    wrong.rotate_left(1);
    let of_wrong = beside(&circles, &wrong, &reference);
    assert!(value(&of_wrong, "CLIP score") < value(&of_circles, "CLIP score") - 0.05);
}

#[test]
fn a_set_has_zero_distance_from_itself() {
    let (real, captions) = truth(5, 48);
    let reference = folder(&real, &captions);
    let evaluation = beside(&real, &captions, &reference);
    assert!(value(&evaluation, "Fréchet distance").abs() < 1e-6);
    for name in ["precision", "recall", "coverage"] {
        assert_eq!(value(&evaluation, name), 1.0);
    }
    assert_eq!(
        evaluation.hashes["pictures"],
        evaluation.hashes["reference"]
    );
}
