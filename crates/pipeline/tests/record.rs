//! Image files and their records.

use std::collections::BTreeMap;
use std::io::Cursor;

use burn::tensor::{DType, Tensor, TensorData};
use swiftbrush_checkpoint::sha256_of;
use swiftbrush_pipeline::edit::{AutomaticMask, Options};
use swiftbrush_pipeline::scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};
use swiftbrush_pipeline::vae::Tiling;
use swiftbrush_pipeline::{
    BetweenRecord, EditRecord, Error, FileRecord, Method, NegativeMethod, Picture, Record, Request,
    Rng, Source, Start, StartRecord,
};
use swiftbrush_testing::device;

/// Values, and PyTorch's rounded `(x/2 + 0.5).clamp(0, 1) * 255` of them.
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
    let mut source = Source::new("/home/me/models/v1-5.safetensors");
    source.adapters = vec![("styles/ink.safetensors".into(), 0.5)];
    let request = Request::new([""])
        .with_method(Method::Sampler(SamplerKind::EulerAncestral, 25))
        .with_guidance(7.5)
        .with_negative_prompt("blurry");
    let scheduler = SchedulerConfig::default();
    let mut record = Record::with_parts(&source, &request, [512, 768], scheduler)
        .with_image("a castle,\nby night", 42);
    record.software = "swiftbrush 0.1.0".to_owned();
    record.device = "flex".to_owned();
    record.rng = Rng::Cpu;
    record.hashes = BTreeMap::from(
        [
            ("unet/v1-5.safetensors", "0123456789abcdef"),
            ("lora/ink.safetensors", "fedcba9876543210"),
        ]
        .map(|(name, hash)| (name.to_owned(), hash.to_owned())),
    );
    record.start = Some(StartRecord {
        file: "sketch.png".into(),
        sha256: "00".to_owned(),
        strength: 0.6,
        mask: None,
    });
    record
}

/// The format used by AUTOMATIC1111's web UI and its readers.
#[test]
fn parameters_have_three_parts() {
    let expected = "a castle,\nby night\nNegative prompt: blurry\n\
        Steps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 768x512, Model hash: 0123456789, \
        Model: v1-5, Denoising strength: 0.6, Lora hashes: ink: fedcba9876, RNG: CPU, \
        Version: swiftbrush 0.1.0";
    let found = record().parameters();
    // A value that contains a colon is quoted.
    assert_eq!(
        found,
        expected.replace("ink: fedcba9876", "\"ink: fedcba9876\"")
    );
}

/// PEFT gives every adapter file the same name.
#[test]
fn adapters_of_the_same_name_have_hashes_of_their_own() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/model");
    let mut source = Source::new(model);
    for name in ["a", "b"] {
        let path = folder.path().join(name).join("adapter_model.safetensors");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        std::fs::write(&path, name).expect("a writable folder");
        source.adapters.push((path, 1.0));
    }
    let hashes = source.hashes().expect("the files exist");
    let hash = |name: &str| hashes[&format!("lora/adapter_model.safetensors{name}")].as_str();
    let [a, b] = ["a", "b"].map(|text| sha256_of(text.as_bytes()));
    assert_eq!([hash(""), hash(" (2)")], [&a, &b]);
    let mut record = record();
    record.source = source;
    record.hashes.clone_from(&hashes);
    let [a, b] = [&a[..10], &b[..10]];
    let expected = format!("adapter_model: {a}, adapter_model: {b}");
    let found = record.parameters();
    assert!(found.contains(&expected), "{found}");
}

#[test]
fn a_record_is_read_back_from_its_picture() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("picture.png");
    let picture = Picture {
        width: 2,
        height: 1,
        bytes: vec![0, 1, 2, 253, 254, 255],
    };
    for prompt in ["plain", "ä ö", "円", "\u{1F58C}", "", "a \"quoted\" \\ one"] {
        let record = record().with_image(prompt, 42);
        picture
            .save(&path, Some(&record))
            .expect("a writable folder");
        assert_eq!(
            Record::read(&path).expect("it says how it was made"),
            record
        );
    }
}

/// A record of version 0.1.0, written before options had their own type.
const OLD: &str = r#"{"software": "swiftbrush 0.1.0", "source": {"model": "/models/sd-turbo", "denoiser": "teacher",
    "dtype": "F32", "storage": "F16", "decoder": "kl", "tiling": {"side": 32, "overlap": 8}, "family": "sd-turbo",
    "adapters": [["a.safetensors", 0.5]]}, "device": "flex", "prompt": "a", "negative_prompt": "",
    "method": {"sampler": ["euler", 1]}, "guidance": 1.0, "size": [512, 512], "seed": 1, "rng": "native",
    "scheduler": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "timestep_spacing": "trailing",
    "steps_offset": 1, "set_alpha_to_one": false, "rescale_betas_zero_snr": false, "original_inference_steps": 50,
    "timestep_scaling": 10.0, "clip_sample": false, "skip_prk_steps": true, "use_karras_sigmas": false}}"#;

#[test]
fn a_picture_in_memory_is_read_with_its_record() {
    let picture = Picture {
        width: 3,
        height: 2,
        bytes: (0..18).collect(),
    };
    let file = picture.to_png(Some(&record()));
    assert_eq!(Picture::of_png(&file).unwrap(), picture);
    assert_eq!(
        Record::of_png(Cursor::new(&file), "a.png").unwrap(),
        record()
    );
    let error = Record::of_png(Cursor::new(picture.to_png(None)), "a.png").unwrap_err();
    assert!(error.to_string().contains("a.png: no swiftbrush record"));
    assert!(Picture::of_png(&file[..file.len() - 40]).is_err());

    let mut grey = Vec::new();
    let mut encoder = png::Encoder::new(&mut grey, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[7]).unwrap();
    drop(writer);
    let error = Picture::of_png(&grey).unwrap_err().to_string();
    assert!(error.contains("expected RGB"), "{error}");
}

#[test]
fn old_records_are_readable() {
    let record: Record = serde_json::from_str(OLD).expect("the form is the same");
    assert_eq!(record.source.options.denoiser, "teacher");
    assert_eq!(record.source.options.storage, Some(DType::F16));
    assert_eq!(
        record.source.options.tiling.map(|tiling| tiling.side),
        Some(32)
    );
    let trailing = TimestepSpacing::Trailing;
    assert_eq!(record.scheduler.timestep_spacing, trailing);
    assert_eq!(record.negative_method, None);
    record.check().expect("it is valid");
    let value = serde_json::to_value(&record).expect("it can be serialised");
    for key in [
        "denoiser", "dtype", "storage", "decoder", "tiling", "family",
    ] {
        assert!(value["source"].get(key).is_some(), "{key} is where it was");
    }
}

#[test]
fn records_hold_names_instead_of_paths() {
    let text = serde_json::to_string(&record()).expect("it can be serialised");
    assert!(
        text.contains("v1-5.safetensors") && !text.contains("/home"),
        "{text}"
    );
    let folder = tempfile::tempdir().expect("a writable folder");
    std::fs::write(folder.path().join("v1-5.safetensors"), "").expect("a writable folder");
    let found = record().source.found_in(folder.path());
    assert_eq!(found.model, folder.path().join("v1-5.safetensors"));
}

/// A PNG file may claim anything.
#[test]
fn impossible_records_are_rejected() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let path = folder.path().join("picture.png");
    let picture = Picture {
        width: 1,
        height: 1,
        bytes: vec![0; 3],
    };
    type Change = fn(&mut Record);
    let changes: [(Change, &str); 13] = [
        (|record| record.batch = [1, 1], "image 1 of a batch of 1"),
        (|record| record.batch = [0, 1000], "batch of 1000"),
        (|record| record.size = [0, 64], "size"),
        (|record| record.size = [1 << 40, 1 << 40], "limit"),
        (|record| record.enlarged = 0, "enlarged 0"),
        (|record| record.enlarged = u32::MAX, "enlarged"),
        (|record| record.guidance = -f64::MAX * 2.0, "damaged"),
        (|record| record.source.options.dtype = DType::I32, "I32"),
        (
            |record| {
                record.source.options.tiling = Some(Tiling {
                    side: 32,
                    overlap: 32,
                });
            },
            "overlap",
        ),
        (
            |record| record.negative_method = Some(NegativeMethod::NASA.with_scale(-1.0)),
            "scale -1",
        ),
        (
            |record| record.scheduler.num_train_timesteps = 0,
            "num_train_timesteps",
        ),
        (
            |record| record.method = Method::Sampler(SamplerKind::Ddim, usize::MAX),
            "1 to 1000",
        ),
        (
            |record| record.start.as_mut().expect("it has one").strength = 7.0,
            "strength 7",
        ),
    ];
    for (change, part) in changes {
        let mut record = record();
        change(&mut record);
        picture
            .save(&path, Some(&record))
            .expect("a writable folder");
        let error = Record::read(&path)
            .expect_err("it is impossible")
            .to_string();
        assert!(
            error.contains(part) && error.contains("picture.png"),
            "{part}: {error}"
        );
    }
}

#[test]
fn an_image_to_start_from_must_be_the_same_regular_file() {
    let folder = tempfile::tempdir().expect("a writable folder");
    let file = folder.path().join("sketch.png");
    std::fs::write(&file, "a").expect("a writable folder");
    let start = StartRecord::of_file(&file, 0.5).expect("it is a file");
    start.check_file().expect("it is unchanged");
    std::fs::write(&file, "b").expect("a writable folder");
    assert!(matches!(start.check_file(), Err(Error::Picture { .. })));
    for path in ["/dev/zero", "/dev/stdin", "/"] {
        assert!(StartRecord::of_file(path, 0.5).is_err(), "{path}");
    }
}

#[test]
fn pictures_become_images_and_back() {
    let picture = |value: u8| Picture {
        width: 3,
        height: 2,
        bytes: (0..18).map(|i| i * 13 + value).collect(),
    };
    let pictures = [picture(0), picture(7)];
    let start = Start::from_pictures(&pictures, 0.5, &device()).expect("they have one size");
    assert_eq!(start.images.dims(), [2, 3, 2, 3]);
    assert_eq!(Picture::of_images(start.images), pictures);
    let other = Picture {
        width: 2,
        ..picture(0)
    };
    let error = Start::from_pictures(&[picture(0), other], 0.5, &device());
    let error = error.expect_err("the sizes differ").to_string();
    assert!(error.contains("3x2") && error.contains("2x2"), "{error}");
    assert!(picture(0).save("picture.jpg", None).is_err());
}

fn edited() -> Record {
    let file = |name: &str| FileRecord {
        file: name.into(),
        sha256: "00".to_owned(),
    };
    let mut record = record().with_image("a blue circle", 1);
    record.method = Method::OneStep;
    record.start = None;
    record.edit = Some(EditRecord {
        image: file("picture.png"),
        source_prompt: "a red circle".to_owned(),
        options: Options::one_time().with_refinement(None),
        automatic_mask: None,
        mask: Some(file("mask.png")),
    });
    record
}

#[test]
fn edits_and_animations_are_recorded() {
    let mut between = record();
    between.between = Some(BetweenRecord {
        prompt: "a castle by day".to_owned(),
        seed: 43,
        share: 0.25,
    });
    for record in [edited(), between] {
        record.check().expect("it is valid");
        let text = serde_json::to_string(&record).expect("it is plain data");
        let again: Record = serde_json::from_str(&text).expect("it is its own form");
        assert_eq!(again, record);
    }
    let parameters = edited().parameters();
    assert!(
        parameters.contains("Edited from: a red circle"),
        "{parameters}"
    );
}

#[test]
fn impossible_edits_and_animations_are_rejected() {
    type Change = fn(&mut Record);
    let changes: [(Change, &str); 5] = [
        (
            |record| {
                let edit = record.edit.as_mut().expect("it is one");
                edit.options = Options::default().with_noises(1000);
            },
            "noises 1000",
        ),
        (
            |record| {
                let edit = record.edit.as_mut().expect("it is one");
                edit.automatic_mask = Some(AutomaticMask::default());
            },
            "one of them",
        ),
        (
            |record| record.method = Method::Sampler(SamplerKind::Euler, 4),
            "4 steps",
        ),
        (
            |record| record.start = self::record().start,
            "also a start image",
        ),
        (
            |record| {
                record.edit = None;
                record.between = Some(BetweenRecord {
                    prompt: String::new(),
                    seed: 0,
                    share: 2.0,
                });
            },
            "share 2",
        ),
    ];
    for (change, part) in changes {
        let mut record = edited();
        change(&mut record);
        let error = record.check().expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let unknown = r#"{"time": 0.5, "lambda": 2.0}"#;
    let unknown: Result<Options, _> = serde_json::from_str(unknown);
    assert!(unknown.is_err());
}
