//! Parity of samplers with diffusers' schedulers; the files are written by `golden/make.py`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use swiftbrush_scheduler::{Sampler, SamplerKind, SchedulerConfig};

/// A run of one of diffusers' samplers on a scalar.
#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    kind: SamplerKind,
    steps: usize,
    skipped: usize,
    timesteps: Vec<f64>,
    /// The latents before the first step and after each.
    trace: Vec<f64>,
}

/// diffusers stores Euler's tables and takes steps in f32, so a relative 1e-5 is its own precision.
const TOLERANCE: f64 = 1e-5;
/// Relative to σ/α = 4096, where noise levels begin if the schedule ends in pure noise.
const TOLERANCE_ZERO_SNR: f64 = 4e-4;

fn run(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    for case in cases {
        let config = SchedulerConfig::from_json(&case.config.to_string()).unwrap();
        let sampler = Sampler::after(case.kind, &config, case.steps, case.skipped).unwrap();
        let name = format!(
            "{:?} {:?} {:?} zero SNR {}, {} steps after {}",
            case.kind,
            config.timestep_spacing,
            config.prediction_type,
            config.rescale_betas_zero_snr,
            case.steps,
            case.skipped
        );
        let tolerance = match config.rescale_betas_zero_snr {
            true => TOLERANCE_ZERO_SNR,
            false => TOLERANCE,
        };
        let close = |what: &str, found: f64, expected: f64| {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                error < tolerance,
                "{name}: {what} gives {found}, not {expected}"
            );
        };
        let mut x = match case.skipped {
            0 => 0.7 * sampler.initial_scale(),
            _ => {
                let [clean, noise] = sampler.steps()[0].entry;
                0.7 * clean + 1.1 * noise
            }
        };
        close("the start", x, case.trace[0]);
        let mut noise = [0.5, -0.8].into_iter().cycle();
        let mut predictions = Vec::new();
        for (index, step) in sampler.steps().iter().enumerate() {
            let expected = case.timesteps[index];
            assert!(
                (step.timestep - expected).abs() < 1e-3,
                "{name}: t = {}, not {expected}",
                step.timestep
            );
            let output = 0.3 * x * step.input_scale + 0.1 * step.timestep.cos();
            let [of_latents, of_output] = step.prediction;
            predictions.insert(0, of_latents * x + of_output * output);
            let terms = step.predicted.iter().zip(&predictions);
            let [of_latents, of_output] = step.clean;
            let clean = of_latents * x + of_output * output;
            x = x * step.keep + terms.map(|(factor, value)| factor * value).sum::<f64>();
            if let Some([bound, factor]) = step.clipped {
                x += factor * clean.clamp(-bound, bound);
            }
            if step.fresh != 0.0 {
                x += step.fresh * noise.next().unwrap();
            }
            close(&format!("step {index}"), x, case.trace[index + 1]);
        }
        assert_eq!(sampler.steps().len(), case.timesteps.len(), "{name}");
    }
}

#[test]
fn samplers_take_the_steps_of_diffusers() {
    run("samplers.json");
}

/// Each file's class × each sampler, with the fields written out and omitted.
#[test]
fn a_swapped_sampler_uses_the_defaults_of_its_class() {
    run("swapped.json");
}

/// The defaults of omitted fields, for every class with betas.
#[test]
fn omitted_fields_are_the_defaults_of_the_class() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/defaults.json");
    let text = std::fs::read_to_string(path).unwrap();
    let classes: BTreeMap<String, Map<String, Value>> = serde_json::from_str(&text).unwrap();
    assert!(classes.len() > 15);
    for (class, expected) in classes {
        let config = SchedulerConfig::from_json(&json!({ "_class_name": class }).to_string());
        let Value::Object(found) = serde_json::to_value(config.unwrap()).unwrap() else {
            panic!("a configuration is an object");
        };
        for (name, expected) in expected {
            assert_eq!(found[&name], expected, "{class}: {name}");
        }
    }
}
