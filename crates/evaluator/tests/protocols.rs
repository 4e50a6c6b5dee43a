//! Protocols as data, and their measures on a network with known features.

use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_evaluator::{
    Error, Evaluation, FeatureNetwork, Measure, NETWORKS, Networks, Preparation, Protocol,
    Reference, comparable,
};
use swiftbrush_images::{Filter, Orient};
use swiftbrush_metrics::{Features, Moments, frechet_distance, inception_score};
use swiftbrush_testing::device;

/// Takes the first pixel as the features of an image, and the number of words as those of a text.
struct FirstPixel(Device);

impl FeatureNetwork for FirstPixel {
    fn width(&self) -> usize {
        3
    }

    fn features(&self, pictures: &[RgbImage]) -> Tensor<2> {
        let first = pictures
            .iter()
            .flat_map(|picture| picture.get_pixel(0, 0).0.map(f32::from));
        let values: Vec<f32> = first.map(|byte| byte / 100.0).collect();
        Tensor::from_data(TensorData::new(values, [pictures.len(), 3]), &self.0)
    }

    fn logits(&self, features: Tensor<2>) -> Option<Tensor<2>> {
        Some(features * 2.0)
    }

    fn texts(&self, texts: &[String]) -> Option<Tensor<2>> {
        let words = texts
            .iter()
            .flat_map(|text| [text.split(' ').count() as f32, 0.0, 0.0]);
        let values: Vec<f32> = words.collect();
        Some(Tensor::from_data(
            TensorData::new(values, [texts.len(), 3]),
            &self.0,
        ))
    }
}

fn pictures(seed: u64, count: usize) -> Vec<RgbImage> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let color = Rgb(std::array::from_fn(|_| rng.random_range(0..=255)));
            RgbImage::from_pixel(8, 6, color)
        })
        .collect()
}

fn networks(device: &Device) -> Networks {
    let with =
        |networks: Networks, name: &&str| networks.with(name, Box::new(FirstPixel(device.clone())));
    NETWORKS.iter().fold(Networks::default(), with)
}

fn prompts(count: usize) -> Vec<String> {
    (0..count)
        .map(|index| vec!["word"; index % 3 + 1].join(" "))
        .collect()
}

fn first_pixels(pictures: &[RgbImage]) -> Features {
    let rows = pictures.iter().flat_map(|picture| {
        picture
            .get_pixel(0, 0)
            .0
            .map(|byte| f32::from(byte) / 100.0)
    });
    Features::new(3, rows.collect()).unwrap()
}

#[test]
fn every_protocol_computes_its_measures() {
    let device = device();
    let networks = networks(&device);
    let (real, generated) = (pictures(1, 40), pictures(2, 30));
    let prompts = prompts(30);
    for name in Protocol::NAMES {
        let protocol = Protocol::named(name).unwrap();
        let prepare = |pictures: &[RgbImage]| -> Vec<RgbImage> {
            let prepare = |picture: &RgbImage| protocol.pictures.apply(picture.clone());
            pictures.iter().map(prepare).collect()
        };
        let reference = Reference {
            features: networks
                .extract_reference(&protocol, &prepare(&real))
                .unwrap(),
            ..Reference::default()
        };
        // In two batches.
        let (first, rest) = generated.split_at(11);
        let mut seen = networks
            .extract(&protocol, &prepare(first), Some(&prompts[..11]))
            .unwrap();
        let rest = networks.extract(&protocol, &prepare(rest), Some(&prompts[11..]));
        for (name, features) in rest.unwrap() {
            seen.get_mut(&name).unwrap().append(&features).unwrap();
        }
        let measured = networks.measure(&protocol, &seen, &reference, 1, 5, &device);
        let measured = measured.unwrap();
        let value = |name: &str| {
            let value = measured.values.iter().find(|value| value.name == name);
            value.map(|value| value.value)
        };
        let (real, generated) = (first_pixels(&real), first_pixels(&generated));
        let distance = value("FID").or(value("Fréchet distance"));
        if let Some(distance) = distance {
            let [real, generated] =
                [&real, &generated].map(|features| Moments::of(features).gaussian().unwrap());
            assert_eq!(distance, frechet_distance(&real, &generated).unwrap());
        }
        if let Some(score) = value("CLIP score") {
            let (scale, more) = match name {
                "swiftbrush-v2" => (1.0, 3.0),
                "hpsv2" => (100.0, 0.0),
                _ => (1.0, 0.0),
            };
            let words = |index: usize| (index % 3 + 1) as f64 + more;
            let scores = generated.rows().enumerate();
            let scores = scores.map(|(index, row)| scale * f64::from(row[0]) * words(index));
            let mean = scores.sum::<f64>() / 30.0;
            assert!((score / mean - 1.0).abs() < 1e-5, "{name}: {score} {mean}");
            assert_eq!(measured.scores.as_ref().map(Vec::len), Some(30));
        }
        if let Some(score) = value("inception score") {
            let doubled = generated.values().iter().map(|value| 2.0 * value);
            let logits = Features::new(3, doubled.collect()).unwrap();
            let whole = inception_score(&logits, 1).unwrap().0;
            // Smaller, for splits of three images.
            assert!(score > 1.0 && score < whole, "{score} {whole}");
        }
        assert!(!measured.values.is_empty() && measured.notes.is_empty());
    }
    // Distances are called FID and KID only on Inception's features.
    let names = |name: &str| -> Vec<String> {
        let protocol = Protocol::named(name).unwrap();
        protocol.measures.iter().map(Measure::to_string).collect()
    };
    assert_eq!(names("clean-fid"), ["FID", "KID"]);
    assert!(!names("efficientnet-lite0").contains(&"FID".to_owned()));
    assert_eq!(names("cmmd"), ["CMMD"]);
}

#[test]
fn central_squares_are_resized_by_lanczos() {
    let protocol = Protocol::named("swiftbrush-v2").unwrap();
    let picture = RgbImage::from_fn(300, 200, |x, _| match (50..250).contains(&x) {
        true => Rgb([200, 100, 50]),
        false => Rgb([0, 0, 0]),
    });
    let prepared = protocol.pictures.apply(picture);
    assert_eq!(prepared.dimensions(), (256, 256));
    assert!(prepared.pixels().all(|pixel| pixel.0 == [200, 100, 50]));
    let side = Preparation::Square {
        side: 256,
        filter: Filter::Lanczos,
    };
    assert_eq!(protocol.pictures, side);
}

#[test]
fn missing_inputs_are_named() {
    let device = device();
    let networks = networks(&device);
    let protocol = Protocol::named("swiftbrush-v2").unwrap();
    let pictures = pictures(3, 30);
    let error = Networks::default().extract(&protocol, &pictures, None);
    let error = error.expect_err("there is no network").to_string();
    assert!(error.contains("swiftbrush-v2 needs the network"), "{error}");

    let seen = networks.extract(&protocol, &pictures, None).unwrap();
    let measure = |reference: &Reference| {
        networks
            .measure(&protocol, &seen, reference, 1, 0, &device)
            .map(drop)
            .expect_err("something is missing")
            .to_string()
    };
    let error = measure(&Reference::default());
    assert!(error.contains("FID needs a reference"), "{error}");
    // Statistics are enough for FID, but not for nearest neighbours.
    let gaussian = Moments::of(&seen["inception/clean-fid"])
        .gaussian()
        .unwrap();
    let statistics = [("inception/clean-fid".to_owned(), gaussian)].into();
    let error = measure(&Reference {
        statistics,
        ..Reference::default()
    });
    assert!(
        error.contains("precision and recall needs the images of the reference"),
        "{error}"
    );
    let reference = Reference {
        features: seen.clone(),
        ..Reference::default()
    };
    let error = measure(&reference);
    assert!(error.contains("CLIP score needs prompts"), "{error}");

    // The covariance of three features needs more than three images.
    let one = Protocol::named("pytorch-fid").unwrap();
    let few = networks.extract(&one, &pictures[..3], None).unwrap();
    let reference = Reference {
        features: networks.extract_reference(&one, &pictures).unwrap(),
        ..Reference::default()
    };
    let measured = networks
        .measure(&one, &few, &reference, 1, 0, &device)
        .unwrap();
    assert_eq!(measured.notes.len(), 1);
    assert!(
        measured.notes[0].contains("3 generated pictures for 3 features"),
        "{:?}",
        measured.notes
    );
}

#[test]
fn a_custom_protocol_needs_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("protocol.json");
    let write = |protocol: &Protocol| {
        std::fs::write(&path, serde_json::to_string(protocol).unwrap()).unwrap();
        Protocol::open(&path)
    };
    for name in Protocol::NAMES {
        let protocol = Protocol::named(name).unwrap();
        assert_eq!(write(&protocol).unwrap(), protocol);
    }
    let mut protocol = Protocol::named("clean-fid").unwrap();
    protocol.measures.pop();
    let error = write(&protocol)
        .expect_err("it has another's name")
        .to_string();
    assert!(
        error.contains("clean-fid is the name of a different built-in protocol"),
        "{error}"
    );
    protocol.name = "mine".to_owned();
    assert_eq!(write(&protocol).unwrap(), protocol);
    let measures = [
        r#"{"measure": "precision-recall", "network": "clip/crop", "k": 0}"#,
        r#"{"measure": "density-coverage", "network": "clip/crop", "k": 0}"#,
        r#"{"measure": "kernel-distance", "network": "clip/crop", "subsets": 0, "size": 9}"#,
        r#"{"measure": "frechet-infinity", "network": "clip/crop", "smallest": 9, "points": 1}"#,
        r#"{"measure": "inception-score", "network": "clip/crop", "splits": 0}"#,
        r#"{"measure": "gaussian-distance", "network": "clip/crop", "sigma": 0.0, "scale": 1.0}"#,
    ]
    .map(|measure| {
        format!(
            r#"{{"name": "a", "version": 1, "pictures": "as-they-are", "measures": [{measure}]}}"#
        )
    });
    for text in measures.iter().map(String::as_str).chain([
        "{}",
        r#"{"name": "a", "version": 1, "pictures": "as-they-are", "measures": [{"measure": "fid"}]}"#,
        r#"{"name": "a", "version": 1, "pictures": "as-they-are", "measures": [], "more": 1}"#,
        r#"{"name": "a", "version": 1, "pictures": {"square": {"side": 0, "filter": "box"}}, "measures": []}"#,
    ]) {
        std::fs::write(&path, text).unwrap();
        let error = Protocol::open(&path).expect_err("it is none");
        assert!(matches!(error, Error::Protocol { .. }));
        assert!(error.to_string().contains("protocol.json"), "{error}");
    }
    assert!(Protocol::named("mine").is_err());
}

#[test]
fn results_of_different_conditions_are_not_comparable() {
    let evaluation = Evaluation {
        subject: "a".to_owned(),
        protocol: Protocol::named("cmmd").unwrap(),
        software: String::new(),
        hashes: [("clip", "1"), ("reference", "2"), ("pictures", "3")]
            .map(|(name, hash)| (name.to_owned(), hash.to_owned()))
            .into(),
        pictures: 10,
        per_prompt: 1,
        reference_pictures: None,
        painted: serde_json::json!({ "seed": 1 }),
        values: Vec::new(),
        notes: Vec::new(),
    };
    // Images and models may differ.
    let mut other = evaluation.clone();
    other.painted = serde_json::json!({ "seed": 2 });
    other.subject = "b".to_owned();
    other.hashes.insert("pictures".to_owned(), "4".to_owned());
    comparable([&evaluation, &other]).unwrap();

    type Change = fn(&mut Evaluation);
    let changes: [(&str, Change); 6] = [
        ("hashes.clip is \"1\" and \"9\"", |of| {
            drop(of.hashes.insert("clip".to_owned(), "9".to_owned()));
        }),
        ("hashes.reference is \"2\" and nothing", |of| {
            drop(of.hashes.remove("reference"));
        }),
        ("pictures is 10 and 11", |of| of.pictures = 11),
        ("reference pictures is nothing and 5", |of| {
            of.reference_pictures = Some(5);
        }),
        ("protocol.version is 1 and 2", |of| of.protocol.version = 2),
        ("protocol.measures.0.sigma is 10.0 and 5.0", |of| {
            if let Measure::GaussianDistance { sigma, .. } = &mut of.protocol.measures[0] {
                *sigma = 5.0;
            }
        }),
    ];
    for (expected, change) in changes {
        let mut other = other.clone();
        change(&mut other);
        let error = comparable([&evaluation, &other])
            .expect_err(expected)
            .to_string();
        assert!(
            error.contains(expected) && error.contains("a and b"),
            "{error}"
        );
    }
}

/// A network that must not run.
struct Costly;

impl FeatureNetwork for Costly {
    fn width(&self) -> usize {
        3
    }

    fn features(&self, _: &[RgbImage]) -> Tensor<2> {
        panic!("this network ran")
    }
}

#[test]
fn only_comparing_networks_run_over_the_reference() {
    let device = device();
    let protocol = Protocol::named("swiftbrush-v2").unwrap();
    let networks = networks(&device).with("clip/crop", Box::new(Costly));
    let features = networks
        .extract_reference(&protocol, &pictures(1, 8))
        .unwrap();
    let names: Vec<_> = features.keys().map(String::as_str).collect();
    assert_eq!(names, ["inception/clean-fid", "inception/torch-fidelity"]);
    let scores = Protocol::named("hpsv2").unwrap();
    assert!(
        networks
            .extract_reference(&scores, &pictures(1, 8))
            .unwrap()
            .is_empty()
    );
}

/// Repeating each image adds no information: no interval may shrink.
#[test]
fn intervals_are_over_prompts() {
    let device = device();
    let networks = networks(&device);
    let protocol = Protocol::named("clip").unwrap();
    let reference = Reference {
        features: networks
            .extract_reference(&protocol, &pictures(1, 64))
            .unwrap(),
        ..Reference::default()
    };
    let errors = |copies: usize| {
        let repeat = |picture: &RgbImage| vec![picture.clone(); copies];
        let pictures: Vec<_> = pictures(2, 64).iter().flat_map(repeat).collect();
        let prompts: Vec<_> = (0..64)
            .flat_map(|index| vec![["word"; 3][..index % 3 + 1].join(" "); copies])
            .collect();
        let sets = networks
            .extract(&protocol, &pictures, Some(&prompts))
            .unwrap();
        let measured = networks.measure(&protocol, &sets, &reference, copies, 40, &device);
        let values = measured.unwrap().values.into_iter();
        let errors = values.map(|value| (value.name, value.standard_error));
        errors.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (single, repeated) = (errors(1), errors(4));
    // With four copies, the radii of three neighbours are zero, so recall means nothing.
    for name in [
        "Fréchet distance",
        "precision",
        "density",
        "coverage",
        "CLIP score",
    ] {
        let [single, repeated] = [&single, &repeated].map(|errors| errors[name].unwrap());
        assert!(repeated > 0.8 * single, "{name}: {repeated} {single}");
    }
    let equal = single["CLIP score"].unwrap() - repeated["CLIP score"].unwrap();
    assert!(equal.abs() < 1e-9, "{equal}");
}

#[test]
fn protocols_of_other_programs_ignore_orientations() {
    for name in Protocol::NAMES {
        let expected = match name {
            "clip" | "efficientnet-lite0" => Orient::Upright,
            _ => Orient::AsStored,
        };
        assert_eq!(
            Protocol::named(name).unwrap().orientation,
            expected,
            "{name}"
        );
    }
}
