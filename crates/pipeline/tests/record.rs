//! Pictures as files, and what is written into them.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig};
use swiftbrush_pipeline::{Method, Picture, Record, Rng, Source, StartRecord};
use swiftbrush_testing::device;

/// Numbers and what PyTorch makes of `(x/2 + 0.5).clamp(0, 1) * 255`, rounded.
#[test]
fn pixels_are_those_of_diffusers() {
    let values = [
        -1.5f32,
        -1.0,
        -0.996,
        -0.7,
        -0.5,
        0.0,
        0.25,
        0.5,
        0.85,
        0.988_235_3,
        1.0,
        2.0,
    ];
    let expected = [0, 0, 1, 38, 64, 128, 159, 191, 236, 254, 255, 255];
    let image = TensorData::new(values.to_vec(), [1, 3, 2, 2]);
    let pictures = Picture::of_images(Tensor::from_data(image, &device()));
    assert_eq!(
        (pictures.len(), pictures[0].width, pictures[0].height),
        (1, 2, 2)
    );
    for (index, byte) in pictures[0].bytes.iter().enumerate() {
        let (pixel, channel) = (index / 3, index % 3);
        assert_eq!(
            *byte,
            expected[4 * channel + pixel],
            "{}",
            values[4 * channel + pixel]
        );
    }
}

fn record() -> Record {
    Record {
        software: "swiftbrush 0.1.0".to_owned(),
        source: Source {
            adapters: vec![("styles/ink.safetensors".into(), 0.5)],
            ..Source::new("models/v1-5.safetensors")
        },
        hashes: BTreeMap::from([
            (
                "unet/v1-5.safetensors".to_owned(),
                "0123456789abcdef".to_owned(),
            ),
            (
                "lora/ink.safetensors".to_owned(),
                "fedcba9876543210".to_owned(),
            ),
        ]),
        device: "flex".to_owned(),
        prompt: "a castle,\nby night".to_owned(),
        negative_prompt: "blurry".to_owned(),
        method: Method::Sampler(SamplerKind::EulerAncestral, 25),
        guidance: 7.5,
        size: [512, 768],
        seed: 42,
        rng: Rng::Cpu,
        start: Some(StartRecord {
            file: "sketch.png".into(),
            sha256: "00".to_owned(),
            strength: 0.6,
        }),
        scheduler: SchedulerConfig::default(),
        enlarged: 1,
        batch: [0, 1],
    }
}

/// The form that AUTOMATIC1111's interface and its readers agree on.
#[test]
fn parameters_are_three_parts() {
    let expected = "a castle,\nby night\nNegative prompt: blurry\n\
        Steps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 768x512, Model hash: 0123456789, \
        Model: v1-5, Denoising strength: 0.6, Lora hashes: ink: fedcba9876, RNG: CPU, \
        Version: swiftbrush 0.1.0";
    let found = record().parameters();
    // A value with a colon in it is quoted.
    assert_eq!(
        found,
        expected.replace("ink: fedcba9876", "\"ink: fedcba9876\"")
    );
}

#[test]
fn a_record_comes_back_out_of_its_picture() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("picture.png");
    let picture = Picture {
        width: 2,
        height: 1,
        bytes: vec![0, 1, 2, 253, 254, 255],
    };
    for prompt in ["plain", "ä ö", "円", "\u{1F58C}", "", "a \"quoted\" \\ one"] {
        let record = Record {
            prompt: prompt.to_owned(),
            ..record()
        };
        std::fs::write(&path, picture.to_png(&record)).expect("there is room");
        assert_eq!(
            Record::read(&path).expect("it says how it was made"),
            record
        );
    }
}
