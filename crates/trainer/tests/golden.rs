//! Parity of a complete step with PyTorch; the values are written by `golden/make.py`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use swiftbrush_checkpoint::{LazyTensor, named_tensors, with_tensors, write_tensors};
use swiftbrush_clip::ClipConfig;
use swiftbrush_lora::{AdapterFile, insert};
use swiftbrush_scheduler::{NoiseSchedule, PredictionType, SchedulerConfig};
use swiftbrush_testing::{F32, Golden, assert_close, assert_values_close, device};
use swiftbrush_trainer::losses::{
    FakeDraw, GradientWeight, Guidance, StudentDraw, Teachers, clip_loss, clip_loss_checkpointed,
    distillation_gradient, distillation_loss, fake_loss, student_latents,
};
use swiftbrush_trainer::{
    AdamW, AdamWConfig, Denoiser, Ema, NamedGradients, Precision, WithCheckpoints,
};
use swiftbrush_unet::{UNet, UNetConfig};
use swiftbrush_vae::AutoencoderTinyConfig;

/// x̂₀ amplifies the rounding of ε̂ 14.6 times; everything else follows from x̂₀.
const TOLERANCE: f64 = 1e-4;

struct Step {
    golden: Golden,
    device: Device,
}

impl Step {
    fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.golden.tensor(name, &self.device)
    }

    fn timesteps(&self, name: &str) -> Vec<usize> {
        self.golden
            .data(name)
            .iter::<i64>()
            .map(|t| t as usize)
            .collect()
    }

    fn unet(&self, name: &str) -> UNet {
        let tensors = self.golden.tensors_under(&format!("{name}."));
        with_tensors(
            UNetConfig::tiny().init(&self.device),
            &tensors,
            Path::new(name),
        )
        .unwrap()
    }

    /// The teacher's weights with the adapters of the golden file, α/r = 2.
    fn fake(&self) -> UNet {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let tensors = self.golden.tensors_under("lora.").into_iter();
        let tensors = tensors
            .map(|(name, data)| LazyTensor::ready(name, data))
            .collect();
        let config = r#"{"unet.r": 2, "unet.lora_alpha": 4}"#.to_owned();
        write_tensors(
            &path,
            tensors,
            HashMap::from([("lora_adapter_metadata".to_owned(), config)]),
        )
        .unwrap();
        insert(
            self.unet("teacher"),
            &AdapterFile::open(&path).unwrap().unet,
        )
        .unwrap()
    }

    fn student_draw(&self) -> StudentDraw {
        StudentDraw {
            noise: self.tensor("noise"),
            timesteps: self.timesteps("timesteps"),
            renoise: self.tensor("renoise"),
        }
    }

    /// Clips, updates twice with the same gradient, and compares norm and weights.
    fn check_updates(&self, name: &str, mut unet: UNet, grads: NamedGradients, learning_rate: f64) {
        let (grads, norm) = grads.clip(1.0);
        let expected: f64 = self
            .golden
            .data(&format!("{name}.norm"))
            .iter::<f64>()
            .sum();
        assert!(
            (norm - expected).abs() < TOLERANCE * expected,
            "norm {norm}, not {expected}"
        );
        let before = named_tensors(&unet);
        let config = AdamWConfig {
            weight_decay: 0.01,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(config);
        for step in [1, 2] {
            unet = optimizer.step(unet, grads.clone(), learning_rate);
            let after = named_tensors(&unet);
            let expected = self.golden.tensors_under(&format!("{name}{step}."));
            assert!(!expected.is_empty());
            for (parameter, expected) in &expected {
                // Compare the update rather than the weight, which hardly moves.
                let moved = difference(&after[parameter], &before[parameter]);
                let expected = difference(expected, &before[parameter]);
                check_update(
                    parameter,
                    &moved,
                    &expected,
                    learning_rate * f64::from(step),
                );
            }
            for (parameter, data) in &after {
                let is_trained = expected.contains_key(parameter);
                assert!(
                    is_trained || *data == before[parameter],
                    "{parameter} is frozen and moved"
                );
            }
        }
    }
}

fn difference(a: &TensorData, b: &TensorData) -> Vec<f32> {
    a.iter::<f32>()
        .zip(b.iter::<f32>())
        .map(|(a, b)| a - b)
        .collect()
}

/// Adam divides a gradient by its own magnitude: if the gradient is mere rounding error, so is the update,
/// and its sign means nothing. All but one in fifty must agree, and none may exceed the learning rate.
fn check_update(name: &str, found: &[f32], expected: &[f32], reach: f64) {
    let is_off =
        |(found, expected): &(&f32, &f32)| f64::from((*found - *expected).abs()) > 5e-3 * reach;
    let off = found.iter().zip(expected).filter(is_off).count();
    assert!(
        off * 50 <= found.len(),
        "{name}: {off} of {} updates differ",
        found.len()
    );
    let farthest = found.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    assert!(
        found.iter().all(|x| f64::from(x.abs()) < 1.1 * reach),
        "{name} moved by {farthest}, which is more than {reach}: {found:?}, not {expected:?}"
    );
}

#[test]
fn a_teacher_differs_from_itself_only_by_guidance() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "step");
    let step = Step {
        golden,
        device: device(),
    };
    let schedule = NoiseSchedule::new(&SchedulerConfig::default());
    let draw = step.student_draw();
    let unet = step.unet("teacher");
    let gradient = |teacher, fake| {
        let teachers = Teachers {
            teacher: &unet,
            fake: &unet,
            schedule: &schedule,
        };
        distillation_gradient(
            teachers,
            &Guidance::constant(teacher, fake, 2),
            GradientWeight::Variance,
            step.tensor("latents"),
            &draw,
            step.tensor("context"),
            step.tensor("null_context"),
        )
    };
    let largest = |x: Tensor<4>| x.abs().max().into_data().iter::<f32>().sum::<f32>();
    let (twice, once) = (gradient(3.0, 1.0), gradient(2.0, 1.0));
    assert!(largest(once.clone()) > 1e-4);
    // ε_c + (s − 1)·(ε_c − ε_u) compared with ε_c.
    assert_close(twice, once * 2.0, 1e-4);
    assert_eq!(largest(gradient(1.0, 1.0)), 0.0);
    assert_eq!(largest(gradient(3.0, 3.0)), 0.0);
}

/// The loss of a network and its gradients, with and without checkpoints.
fn both_ways(
    unet: &UNet,
    loss: impl Fn(&dyn Denoiser) -> Tensor<1>,
) -> [(Tensor<1>, NamedGradients); 2] {
    let plain = loss(unet);
    let grads = NamedGradients::take(unet, &mut plain.backward());
    let with = WithCheckpoints::new(unet);
    let checkpointed = loss(&with);
    let of_blocks = with.gradients(checkpointed.clone(), NamedGradients::default());
    [(plain.inner(), grads), (checkpointed.inner(), of_blocks)]
}

#[test]
fn losses_gradients_and_new_weights_are_those_of_pytorch() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "step");
    let step = Step {
        golden,
        device: device(),
    };
    let schedule = NoiseSchedule::new(&SchedulerConfig::default());
    let context: Tensor<3> = step.tensor("context");
    let student = step.unet("student").train().unfreeze();
    let fake = step.fake();
    let draw = step.student_draw();

    let latents = student_latents(&student, &schedule, &draw, context.clone());
    let fixed = latents.clone().inner();
    assert_close(fixed.clone(), step.tensor("latents"), TOLERANCE);
    let teachers = Teachers {
        teacher: &step.unet("teacher"),
        fake: &fake,
        schedule: &schedule,
    };
    let gradient = distillation_gradient(
        teachers,
        &Guidance::constant(4.5, 4.5, 2),
        GradientWeight::Variance,
        fixed.clone(),
        &draw,
        context.clone(),
        step.tensor("null_context"),
    );
    assert_close(gradient.clone(), step.tensor("gradient"), TOLERANCE);
    let losses = both_ways(&student, |student| {
        let latents = student_latents(student, &schedule, &draw, context.clone());
        distillation_loss(latents, gradient.clone())
    });
    for (loss, grads) in losses {
        assert_close(loss, step.tensor("loss"), TOLERANCE);
        step.check_updates("student_after", student.clone(), grads, 1e-3);
    }

    let fake = fake.train();
    let draw = FakeDraw {
        timesteps: step.timesteps("fake_timesteps"),
        noise: step.tensor("fake_noise"),
    };
    let losses = both_ways(&fake, |fake| {
        fake_loss(fake, &schedule, fixed.clone(), &draw, context.clone())
    });
    for (loss, grads) in losses {
        assert_close(loss, step.tensor("fake_loss"), TOLERANCE);
        step.check_updates("fake_after", fake.clone(), grads, 1e-2);
    }
}

/// Only the networks are in bf16. The gradients of student and fake teacher then deviate slightly; those of
/// `torch.autocast` in bf16 have cosines of 0.9885 and 0.9998 with the exact ones in this step.
#[test]
fn in_bf16_a_step_has_nearly_the_same_direction() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "step");
    let device = device();
    if !device.supports_dtype(DType::BF16) {
        return;
    }
    let step = Step { golden, device };
    let schedule = NoiseSchedule::new(&SchedulerConfig::default());
    let grads = |precision: Precision| {
        let half = |name| step.tensor::<3>(name).cast(precision.dtype());
        let (context, null_context) = (half("context"), half("null_context"));
        let student = step.unet("student").train().unfreeze();
        let draw = step.student_draw();
        let latents = student_latents(&student, &schedule, &draw, context.clone());
        let fixed = latents.clone().inner();
        let teachers = Teachers {
            teacher: &step.unet("teacher"),
            fake: &step.fake(),
            schedule: &schedule,
        };
        let gradient = distillation_gradient(
            teachers,
            &Guidance::constant(4.5, 4.5, 2),
            GradientWeight::Variance,
            fixed.clone(),
            &draw,
            context.clone(),
            null_context,
        );
        let loss = distillation_loss(latents.clone(), gradient.clone());
        assert_eq!([latents.dtype(), loss.dtype()], [DType::F32; 2]);
        let student = NamedGradients::take(&student, &mut loss.backward());

        let fake = step.fake().train();
        let draw = FakeDraw {
            timesteps: step.timesteps("fake_timesteps"),
            noise: step.tensor("fake_noise"),
        };
        let loss = fake_loss(&fake, &schedule, fixed, &draw, context);
        let fake = NamedGradients::take(&fake, &mut loss.backward());
        [student, fake].map(|grads| {
            let flat = grads.names().map(|name| grads.get(name).unwrap().clone());
            Tensor::cat(flat.collect(), 0)
        })
    };
    let dot = |a: &Tensor<1>, b: &Tensor<1>| (a.clone() * b.clone()).sum().into_scalar::<f64>();
    let (exact, half) = (grads(Precision::F32), grads(Precision::Bf16));
    for ((exact, half), least) in exact.iter().zip(&half).zip([0.98, 0.999]) {
        let cosine = dot(exact, half) / (dot(exact, exact) * dot(half, half)).sqrt();
        assert!((least..1.0 - 1e-7).contains(&cosine), "cosine {cosine}");
        let lengths = (dot(half, half) / dot(exact, exact)).sqrt();
        assert!((0.95..1.05).contains(&lengths), "{lengths} times as long");
    }
}

/// Settings other than the paper's, on the networks and inputs of the step (`golden/make_settings.py`).
#[test]
fn other_settings_agree_with_pytorch() {
    let golden = |name| Golden::open(env!("CARGO_MANIFEST_DIR"), name);
    let (settings, device) = (golden("settings"), device());
    let step = Step {
        golden: golden("step"),
        device: device.clone(),
    };
    let schedule = |prediction_type| {
        let config = SchedulerConfig::default().with_prediction_type(prediction_type);
        NoiseSchedule::new(&config)
    };
    let noise = schedule(PredictionType::Epsilon);
    let velocity = schedule(PredictionType::VPrediction);
    let (teacher, fake, draw) = (step.unet("teacher"), step.fake(), step.student_draw());
    let gradient = |schedule: &NoiseSchedule, teacher_scales: [f64; 2], fake_scale, weight| {
        let teachers = Teachers {
            teacher: &teacher,
            fake: &fake,
            schedule,
        };
        let guidance = Guidance {
            teacher: teacher_scales.to_vec(),
            fake: vec![fake_scale; 2],
        };
        distillation_gradient(
            teachers,
            &guidance,
            weight,
            step.tensor("latents"),
            &draw,
            step.tensor("context"),
            step.tensor("null_context"),
        )
    };
    use GradientWeight::{Normalized, Variance};
    for (name, found) in [
        ("velocity", gradient(&velocity, [4.5; 2], 4.5, Variance)),
        ("per_sample", gradient(&noise, [0.5, 3.0], 1.0, Variance)),
        ("cut", gradient(&noise, [4.5, 1.0], 1.0, Variance)),
        ("normalized", gradient(&noise, [4.5; 2], 1.0, Normalized)),
    ] {
        let expected = settings.tensor(name, &device);
        // The normalised gradient subtracts estimates that nearly agree.
        let tolerance = if name == "normalized" { 3.0 } else { 1.0 } * TOLERANCE;
        assert_close(found, expected, tolerance);
    }
    let draw = FakeDraw {
        timesteps: step.timesteps("fake_timesteps"),
        noise: step.tensor("fake_noise"),
    };
    let (latents, context) = (step.tensor("latents"), step.tensor("context"));
    let loss = fake_loss(&fake.train(), &velocity, latents, &draw, context);
    let expected = settings.tensor("velocity_fake_loss", &device);
    assert_close(loss.inner(), expected, TOLERANCE);
    // A student that predicts velocity.
    let student = step.unet("student").train();
    let latents = student_latents(
        &student,
        &velocity,
        &step.student_draw(),
        step.tensor("context"),
    );
    let expected = settings.tensor("velocity_latents", &device);
    assert_close(latents.inner(), expected, F32);
}

#[test]
fn the_clamped_clip_loss_pulls_latents_as_in_pytorch() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "clip_loss");
    let device = device().autodiff();
    let clip: ClipConfig = serde_json::from_str(golden.metadata("clip")).unwrap();
    let clip = with_tensors(
        clip.init(&device),
        &golden.tensors_under("clip."),
        Path::new("clip"),
    );
    let decoder: AutoencoderTinyConfig = serde_json::from_str(golden.metadata("decoder")).unwrap();
    let decoder = with_tensors(
        decoder.init(&device),
        &golden.tensors_under("decoder."),
        Path::new("decoder"),
    );
    let (clip, decoder) = (clip.unwrap(), decoder.unwrap());
    let inner = device.clone().inner();
    for loss in [clip_loss, clip_loss_checkpointed] {
        let latents = golden.tensor::<4>("latents", &device).require_grad();
        let texts = golden.tensor("texts", &inner);
        let threshold = golden.metadata("threshold").parse().unwrap();
        let loss = loss(&clip, &decoder, latents.clone(), texts, threshold);
        assert_close(loss.clone().inner(), golden.tensor("loss", &inner), F32);
        let grad = latents.grad(&loss.backward()).unwrap();
        assert_close(grad, golden.tensor("latents_grad", &inner), F32);
    }
}

#[test]
fn averages_are_those_of_diffusers() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "ema");
    let device = device();
    let module = |step: usize| Weight {
        weight: Param::from_tensor(golden.tensor(&format!("weight.{step}"), &device)),
    };
    let mut ema = Ema::new(&module(0), 0.3);
    for step in 1..8 {
        ema.update(&module(step)).unwrap();
        let average = ema.apply(module(0)).weight.val();
        assert_close(
            average,
            golden.tensor(&format!("average.{step}"), &device),
            1e-6,
        );
    }
}

#[test]
fn the_average_of_a_constant_weight_is_that_weight() {
    let weight = swiftbrush_testing::random([100], 0, &device());
    let module = Weight {
        weight: Param::from_tensor(weight),
    };
    let mut ema = Ema::new(&module, 0.99);
    for _ in 0..50 {
        ema.update(&module).unwrap();
    }
    assert_eq!(
        named_tensors(&ema.apply(module.clone())),
        named_tensors(&module)
    );
}

#[derive(Module, Debug)]
struct Weight {
    weight: Param<Tensor<1>>,
}

/// PyTorch 2.15: `AdamW([1.0, -2.0], lr=0.1, weight_decay=0.5)`, gradients [0.5, -1e-3] and [−0.25, 2.0].
#[test]
fn adamw_takes_the_steps_of_pytorch() {
    let device = device().autodiff();
    let weight = Tensor::from_data([1.0, -2.0], &device);
    let mut module = Weight {
        weight: Param::from_tensor(weight),
    };
    let mut optimizer = AdamW::new(AdamWConfig {
        weight_decay: 0.5,
        ..AdamWConfig::default()
    });
    let mut trace = Vec::new();
    for grad in [[0.5, -1e-3], [-0.25, 2.0]] {
        let loss = (module.weight.val() * Tensor::from_data(grad, &device)).sum();
        let grads = NamedGradients::take(&module, &mut loss.backward());
        module = optimizer.step(module, grads, 0.1);
        trace.extend(named_tensors(&module)["weight"].iter::<f32>());
    }
    assert_values_close(&trace, &ADAMW_TRACE, 1e-6);
    let state: BTreeMap<_, _> = optimizer.state();
    assert_eq!(
        state.keys().map(String::as_str).collect::<Vec<_>>(),
        ["weight.exp_avg", "weight.exp_avg_sq"]
    );
}

const ADAMW_TRACE: [f32; 4] = [0.85, -1.800001, 0.7808663, -1.784381];
