//! Negative prompts in one network call, against diffusers with attention processors of our own. `golden/negative.py` writes
//! the tensors.

use std::ops::ControlFlow;
use std::path::Path;

use swiftbrush_pipeline::scheduler::SamplerKind;
use swiftbrush_pipeline::{
    Conditioning, Generation, Loader, Method, Model, NegativeMethod, Record, Request, Rng, Seeds,
    Source, Stage, TextToImage,
};
use swiftbrush_testing::{Golden, assert_close, device, values};

const PROMPTS: [&str; 2] = ["a red circle on a blue background", ""];
const EULER: Method = Method::Sampler(SamplerKind::Euler, 1);
/// f32 on both sides.
const LATENTS: f64 = 1e-4;

fn loader() -> Loader {
    let twin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/twins/sd-turbo");
    Loader::new(Model::open(twin).expect("it is there"), &device())
}

fn pipeline() -> TextToImage {
    loader().load().expect("it is whole")
}

fn seeds() -> Seeds {
    Seeds::new(Rng::Cpu, [3, 4])
}

fn request(method: Method) -> Request {
    Request::new(PROMPTS)
        .with_method(method)
        .with_negative_prompt("a")
}

fn generate(pipeline: &TextToImage, request: &Request) -> Generation {
    let generation = pipeline.generate(request, &mut seeds());
    generation.expect("the request is valid")
}

#[test]
fn latents_are_those_of_diffusers() {
    let (pipeline, golden) = (
        pipeline(),
        Golden::open(env!("CARGO_MANIFEST_DIR"), "negative"),
    );
    for (name, negative) in [
        ("nasa", NegativeMethod::NASA),
        ("nasa.5", NegativeMethod::NASA.with_scale(5.0)),
        ("nag", NegativeMethod::NAG),
        ("nag.40", NegativeMethod::NAG.with_scale(40.0)),
    ] {
        for (kind, method) in [("one-step", Method::OneStep), ("euler", EULER)] {
            let request = request(method).with_negative_method(negative);
            let latents = generate(&pipeline, &request).latents;
            let expected = golden.tensor(&format!("{name}.{kind}"), &device());
            assert_close(latents, expected, LATENTS);
        }
    }
}

#[test]
fn one_call_applies_a_negative_prompt_by_nasa() {
    let pipeline = pipeline();
    let own = request(EULER).with_negative_method(NegativeMethod::NASA);
    let expected = values(generate(&pipeline, &own).latents);
    let mut calls = Vec::new();
    let default = pipeline.generate_with(&request(EULER), &mut seeds(), &mut |progress| {
        if let Stage::Call { done, n_calls, .. } = progress.stage {
            calls.push((done, n_calls));
        }
        ControlFlow::Continue(())
    });
    let default = default.expect("the request is valid");
    assert_eq!(values(default.latents), expected);
    assert_eq!(calls, [(0, 1), (1, 1)]);
    let in_turn = loader().generate_sequentially(&request(EULER), &mut seeds(), &mut |_| {
        ControlFlow::Continue(())
    });
    let in_turn = in_turn.expect("the request is valid");
    assert_eq!(values(in_turn.latents), expected);
}

#[test]
fn a_scale_of_zero_is_the_plain_image_to_the_bit() {
    let pipeline = pipeline();
    let plain = generate(&pipeline, &Request::new(PROMPTS).with_method(EULER));
    let plain = values(plain.images);
    for method in [NegativeMethod::NASA, NegativeMethod::NAG] {
        let found = |scale| {
            let method = method.with_scale(scale);
            values(generate(&pipeline, &request(EULER).with_negative_method(method)).images)
        };
        assert_eq!(found(0.0), plain, "{method}");
        assert_ne!(found(0.1), plain, "{method}");
    }
}

#[test]
fn embeddings_give_what_their_prompts_give() {
    let (pipeline, request) = (
        pipeline(),
        request(Method::OneStep).with_negative_method(NegativeMethod::NAG),
    );
    let expected = values(generate(&pipeline, &request).latents);
    let [context, negative] = [&PROMPTS[..], &["a"]].map(|prompts| {
        let conditioning = pipeline.encode(prompts);
        conditioning.expect("it is finite").context
    });
    let unread = request.with_negative_prompt("");
    let run = |conditioning: &Conditioning| {
        let watch = &mut |_| ControlFlow::Continue(());
        pipeline.generate_encoded(conditioning, &unread, &mut seeds(), watch)
    };
    let plain = Conditioning::new(context);
    let error = run(&plain).expect_err("it lacks the negative prompt");
    assert!(error.to_string().contains("needs embeddings of a negative"));
    let found = run(&plain.with_negative(negative)).expect("it is whole");
    assert_eq!(values(found.latents), expected);
}

#[test]
fn a_record_reproduces_its_image_of_a_batch() {
    let pipeline = pipeline();
    let request = request(EULER).with_prompts(["a", "b"]);
    let record = Record::of(
        &Source::new("sd-turbo"),
        &request,
        1,
        Rng::Cpu,
        3,
        &pipeline,
    );
    assert_eq!((record.prompt.as_str(), record.seed), ("b", 3));
    assert_eq!((record.rng, record.batch), (Rng::Cpu, [1, 2]));
}

#[test]
fn records_name_the_method_that_acted() {
    let pipeline = pipeline();
    let source = Source::new("sd-turbo");
    let record = Record::of(&source, &request(EULER), 0, Rng::Native, 3, &pipeline);
    assert_eq!(record.negative_method, Some(NegativeMethod::NASA));
    assert!(record.parameters().contains("Negative method: nasa 0.2"));
    let text = serde_json::to_string(&record).expect("it is plain data");
    let read: Record = serde_json::from_str(&text).expect("it is its own form");
    assert_eq!(read, record);
    let again = read.request();
    assert_eq!(again.negative_method, Some(NegativeMethod::NASA));
    let guided = request(EULER).with_guidance(2.0);
    let record = Record::of(&source, &guided, 0, Rng::Native, 3, &pipeline);
    let value = serde_json::to_value(&record).expect("it is plain data");
    assert!(value.get("negative_method").is_none(), "{value}");
}
