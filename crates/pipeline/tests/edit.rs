//! ChordEdit, masks and interpolation against their formulas in PyTorch. `golden/edit.py` writes the tensors.

use std::path::{Path, PathBuf};

use burn::tensor::{FloatDType, Tensor};
use swiftbrush_pipeline::edit::{AutomaticMask, Chord, Edit, Masking, Options, Refinement};
use swiftbrush_pipeline::scheduler::{NoiseSchedule, PredictionType, SamplerKind};
use swiftbrush_pipeline::{
    Between, Conditioning, Error, Given, Mask, Method, Model, Noise, Picture, Request, Rng, Seeds,
    Stage, Start, TextToImage, slerp,
};
use swiftbrush_testing::{Golden, assert_close, device, values};

/// Differences of two outputs, times σ/α of up to 8.3: ten times the tolerance of a single pass.
const DIFFERENCES: f64 = 1e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model")
}

fn pipeline() -> TextToImage {
    let model = Model::open(folder()).expect("the folder is there");
    TextToImage::from_model(&model, None, &device()).expect("the folder is whole")
}

fn golden<const D: usize>(name: &str) -> Tensor<D> {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "edit").tensor(name, &device())
}

fn noises(count: usize) -> Vec<Tensor<4>> {
    (0..count).map(|i| golden(&format!("noise.{i}"))).collect()
}

fn edit() -> Edit {
    Edit::new(golden("images"), ["red circle", "on"], ["circle", "re red"])
        .with_method(Method::OneStep)
}

fn check_formulas(name: &str, options: Options, kind: PredictionType) {
    let pipeline = pipeline();
    let config = pipeline.scheduler.clone().with_prediction_type(kind);
    let schedule = NoiseSchedule::new(&config);
    let network = |noisy: Tensor<4>, timesteps: Tensor<1>, context: Tensor<3>| {
        pipeline.unet.forward(noisy, timesteps, context)
    };
    let chord = Chord {
        schedule: &schedule,
        network: &network,
    };
    let (latents, target) = (golden("latents"), golden("target"));
    let noises = noises(options.noises);
    let field = chord.field(&latents, &golden("source"), &target, &noises, &options);
    assert_close(field.clone(), golden(&format!("field.{name}")), DIFFERENCES);
    let moved = latents + field * options.step;
    assert_close(moved.clone(), golden(&format!("moved.{name}")), DIFFERENCES);
    let refinement = options.refinement.expect("the golden file has one");
    let refined = chord.refine(moved, &target, &noises[0], refinement);
    assert_close(refined, golden(&format!("refined.{name}")), DIFFERENCES);
}

#[test]
fn the_default_field_and_refinement() {
    check_formulas("default", Options::default(), PredictionType::Epsilon);
}

#[test]
fn three_noises_other_times_and_a_blended_refinement() {
    let refinement = Refinement::default().with_time(0.45).with_blend(0.7);
    let options = Options::default()
        .with_times(0.8, 0.3)
        .with_noises(3)
        .with_step(0.7)
        .with_refinement(Some(refinement));
    check_formulas("three", options, PredictionType::Epsilon);
}

#[test]
fn one_time_alone() {
    let options = Options::one_time().with_step(1.5);
    check_formulas("one", options, PredictionType::Epsilon);
}

#[test]
fn two_noises_and_a_network_that_predicts_velocity() {
    let options = Options::default().with_noises(2);
    check_formulas("velocity", options, PredictionType::VPrediction);
}

#[test]
fn the_automatic_mask_of_a_field() {
    let automatic = AutomaticMask::default().with_blur(1.2).with_threshold(0.6);
    let field = golden("field.default");
    assert_close(automatic.of_field(field), golden("mask.automatic"), 1e-5);
    let nothing = automatic.of_field(Tensor::zeros([1, 4, 8, 8], &device()));
    assert!(values(nothing).iter().all(|&value| value == 0.0));
}

#[test]
fn an_edit_from_image_and_prompts_to_latents() {
    let pipeline = pipeline();
    let edited = pipeline.edit(&edit(), &mut Given::new(noises(1)));
    let edited = edited.expect("the edit is valid");
    assert_close(edited.latents, golden("edit.plain"), DIFFERENCES);
    assert_eq!(edited.images.dims(), [2, 3, 16, 16]);
    assert!(edited.mask.is_none());
    assert_eq!(edited.conditioning.batch(), 2);
}

#[test]
fn edits_with_a_given_and_an_automatic_mask() {
    let pipeline = pipeline();
    let refinement = Refinement::default().with_blend(0.8);
    let edit = edit().with_options(Options::default().with_refinement(Some(refinement)));
    let given = Masking::Given(Mask::new(golden("mask.pixels")));
    let automatic = Masking::Automatic(AutomaticMask::default().with_threshold(0.85));
    for (name, masking) in [("given", given), ("automatic", automatic)] {
        let edit = edit.clone().with_masking(masking);
        let edited = pipeline.edit(&edit, &mut Given::new(noises(1)));
        let edited = edited.expect("the edit is valid");
        let expected = golden(&format!("edit.{name}"));
        assert_close(edited.latents.clone(), expected, DIFFERENCES);
        let mask = edited.mask.clone().expect("there is one").pixels;
        let originals = Picture::of_images(edit.images.clone());
        let pictures = edited.pictures();
        let mut kept = 0;
        let masks = values(mask);
        for (place, &share) in masks.iter().enumerate() {
            let (picture, pixel) = (place / 256, 3 * (place % 256));
            let pixels = |picture: &Picture| picture.bytes[pixel..pixel + 3].to_vec();
            if share == 0.0 {
                assert_eq!(pixels(&pictures[picture]), pixels(&originals[picture]));
                kept += 1;
            }
        }
        assert!(kept > 20 && kept < masks.len() - 20, "{name}: {kept} kept");
        if name == "given" {
            assert_close(edited.images, golden("edit.pasted"), DIFFERENCES);
        }
    }
}

#[test]
fn equal_prompts_change_nothing_without_refinement() {
    let pipeline = pipeline();
    let options = Options::default().with_refinement(None);
    let mut edit = edit().with_options(options);
    edit.targets.clone_from(&edit.sources);
    let edited = pipeline.edit(&edit, &mut Given::new(noises(1)));
    let latents = edited.expect("the edit is valid").latents;
    let encoded = pipeline.decoder.encode_mode(edit.images);
    assert_close(latents, encoded, 1e-6);
}

#[test]
fn an_edit_tells_its_calls_and_can_be_cancelled() {
    let pipeline = pipeline();
    let mut calls = Vec::new();
    let result = pipeline.edit_with(&edit(), &mut Given::new(noises(1)), &mut |progress| {
        if let Stage::Call { done, n_calls, .. } = progress.stage {
            calls.push((done, n_calls));
        }
        std::ops::ControlFlow::Continue(())
    });
    result.expect("the edit is valid");
    assert_eq!(calls, [(0, 2), (1, 2), (2, 2)]);
    let cancelled = pipeline.edit_with(&edit(), &mut Given::new(noises(1)), &mut |_| {
        std::ops::ControlFlow::Break(())
    });
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

#[test]
fn edits_that_contradict_themselves_or_the_model_are_rejected() {
    let (pipeline, device) = (pipeline(), device());
    let error = |edit: Edit| match pipeline.edit(&edit, &mut Seeds::new(Rng::Native, [0, 1])) {
        Err(Error::Request(text)) => text,
        other => panic!("not rejected: {other:?}"),
    };
    let mask = |width, height| {
        let bytes = vec![255; width * height];
        Mask::from_bytes(width, height, &bytes, &device).expect("the sizes agree")
    };
    let with = |mask: Mask| edit().with_masking(Masking::Given(mask));
    let mut many_steps = edit();
    many_steps.method = None;
    let mut unpaired = edit();
    unpaired.targets.pop();
    let mut odd = edit();
    odd.images = Tensor::zeros([2, 3, 15, 16], &device);
    let mut bytes = edit();
    bytes.images = Tensor::full([2, 3, 16, 16], 200.0, &device);
    let mut grey = edit();
    grey.images = Tensor::zeros([2, 1, 16, 16], &device);
    let three = Mask::new(Tensor::zeros([3, 1, 16, 16], &device));
    let colour = Mask::new(Tensor::zeros([1, 3, 16, 16], &device));
    let bright = Mask::new(Tensor::full([1, 1, 16, 16], 1.5, &device));
    let threshold = AutomaticMask::default().with_threshold(0.0);
    for (edit, part) in [
        (many_steps, "this method takes 25 steps"),
        (unpaired, "a target prompt for each of 2 images, found 1"),
        (odd, "size 16x15"),
        (grey, "3 channels"),
        (bytes, "image to edit has values of up to 200"),
        (with(mask(8, 16)), "the mask is 8x16, the image 16x16"),
        (with(three), "one for each of 2 images, found 3"),
        (with(colour), "1 channel, found 3"),
        (with(bright), "the value 1.5"),
        (with(mask(16, 16).with_feather(-1.0)), "feather is -1"),
        (
            edit().with_masking(Masking::Automatic(threshold)),
            "threshold 0",
        ),
        (
            edit().with_options(Options::default().with_noises(0)),
            "noises 0",
        ),
    ] {
        let found = error(edit);
        assert!(found.contains(part), "{part:?} is not in {found}");
    }
    let bytes = Mask::from_bytes(4, 4, &[0; 15], &device);
    assert!(bytes.is_err());
}

fn masked(method: Method, strength: f64) -> Request {
    let mask = Mask::new(golden("mask.pixels"));
    Request::new(["circle", "re red"])
        .with_method(method)
        .with_start(Start::new(golden("images"), strength).with_mask(mask))
}

#[test]
fn image_to_image_with_a_mask_in_one_step_and_in_several() {
    let pipeline = pipeline();
    let ddim = Method::Sampler(SamplerKind::Ddim, 5);
    for (name, method, strength) in [("one-step", Method::OneStep, 0.5), ("ddim", ddim, 0.6)] {
        let request = masked(method, strength);
        let generation = pipeline.generate(&request, &mut Given::new(noises(2)));
        let generation = generation.expect("the request is valid");
        let expected = golden(&format!("masked.{name}"));
        assert_close(generation.latents, expected, DIFFERENCES);
        let outside = golden::<4>("mask.pixels").equal_elem(0.0).float();
        let differences = (generation.images - golden("images")) * outside;
        assert!(values(differences).iter().all(|&by| by == 0.0));
        assert!(generation.mask.is_some());
    }
}

#[test]
fn one_step_does_not_fill_large_holes() {
    let pipeline = pipeline();
    let request = masked(Method::OneStep, 1.0);
    let Err(Error::Request(error)) = pipeline.check(&request) else {
        panic!("it is a large hole");
    };
    assert!(
        error.contains("15 % of the image at strength 1") && error.contains("take two steps"),
        "{error}"
    );
    let two = masked(Method::Sampler(SamplerKind::Lcm, 2), 1.0);
    pipeline.check(&two).expect("two steps can");
    let weaker = masked(Method::OneStep, 0.8);
    pipeline.check(&weaker).expect("the image is still seen");
}

#[test]
fn masks_are_shared_out_over_batches() {
    let pipeline = pipeline();
    let request = masked(Method::OneStep, 0.5);
    let rng = Rng::Native;
    let both = pipeline.generate(&request, &mut Seeds::new(rng, [5, 6]));
    let both = both.expect("the request is valid").pictures();
    let seeds = [5, 6];
    let alone = pipeline
        .generate_in_batches(&request, rng, &seeds, 1, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .expect("the request is valid");
    for (both, alone) in both.iter().zip(&alone.pictures) {
        let pairs = both.bytes.iter().zip(&alone.bytes);
        assert!(pairs.clone().all(|(a, b)| a.abs_diff(*b) <= 1));
    }
    let mut few = masked(Method::OneStep, 0.5).with_prompts(["circle"]);
    if let Some(start) = &mut few.start {
        start.images = start.images.clone().narrow(0, 0, 1);
    }
    let batches = pipeline.generate_in_batches(&few, rng, &[5, 6, 7], 2, &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    let error = batches.map(|_| ()).expect_err("two masks for three seeds");
    let expected = "expected one or 3 masks for 3 seeds, found 2";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn noise_is_interpolated_on_the_sphere() {
    let [from, to] = [golden::<4>("noise.0"), golden("noise.1")];
    let found = slerp(from.clone(), to.clone(), &[0.25, 0.6]);
    assert_close(found, golden("slerp"), 1e-5);
    let mut between = Between::new(Given::from(from), Given::from(to), [0.25, 0.6]);
    let drawn = between.draw([2, 4, 8, 8], &device());
    assert_close(drawn.expect("the shape is given"), golden("slerp"), 1e-5);
    let mut few = Between::new(
        Seeds::new(Rng::Native, [1, 2]),
        Seeds::new(Rng::Native, [3, 4]),
        [0.5],
    );
    assert!(few.draw([2, 4, 8, 8], &device()).is_err());
}

#[test]
fn prompts_are_interpolated_in_their_embeddings() {
    let pipeline = pipeline();
    let encode = |prompt: &str| pipeline.encode(&[prompt]).expect("it encodes");
    let (from, to) = (encode("red circle"), encode("on"));
    let between = from.interpolate(&to, &[0.0, 0.25, 1.0]);
    let context = between.expect("the shares are valid").context;
    let expected = Tensor::cat(
        vec![
            from.context.clone(),
            from.context.clone() * 0.75 + to.context.clone() * 0.25,
            to.context.clone(),
        ],
        0,
    );
    assert_close(context, expected.cast(FloatDType::F32), 1e-6);
    assert!(from.interpolate(&to, &[1.1]).is_err());
    let wide = Conditioning::new(Tensor::zeros([1, 12, 13], &device()));
    assert!(from.interpolate(&wide, &[0.5]).is_err());
}
