//! Against diffusers: `golden/make.py` writes the numbers.

use serde::Deserialize;
use swiftbrush_scheduler::{NoiseSchedule, Predicts, Sampler, SchedulerConfig};

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    kind: String,
    steps: usize,
    timesteps: Vec<f64>,
    trace: Vec<f64>,
}

/// diffusers keeps Euler's tables in f32 and steps in f32: a relative 1e-5 is its own precision.
const TOLERANCE: f64 = 1e-5;

#[test]
fn samplers_take_the_steps_of_diffusers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/samplers.json")).unwrap();
    for case in cases {
        let config = SchedulerConfig::from_json(&case.config.to_string()).unwrap();
        let sampler = match case.kind.as_str() {
            "ddim" => Sampler::ddim(&config, case.steps),
            "dpm" => Sampler::dpm_solver(&config, case.steps),
            "pndm" => Sampler::pndm(&config, case.steps),
            _ => Sampler::euler(&config, case.steps),
        };
        let schedule = NoiseSchedule::new(&config);
        let name = format!(
            "{} {:?}, {} steps",
            case.kind, config.timestep_spacing, case.steps
        );
        let mut x = 0.7 * sampler.initial_scale();
        let mut predictions = Vec::new();
        for (index, step) in sampler.steps().iter().enumerate() {
            let expected = case.timesteps[index];
            assert!(
                (step.timestep - expected).abs() < 1e-3,
                "{name}: t = {}, not {expected}",
                step.timestep
            );
            let noise = 0.3 * x * step.input_scale + 0.1 * step.timestep.cos();
            let t = step.timestep as usize;
            predictions.insert(
                0,
                match sampler.predicts() {
                    Predicts::Noise => noise,
                    Predicts::Latents => (x - schedule.sigma(t) * noise) / schedule.alpha(t),
                },
            );
            let terms = step.predicted.iter().zip(&predictions);
            x = x * step.keep + terms.map(|(factor, value)| factor * value).sum::<f64>();
            let expected = case.trace[index];
            let error = (x - expected).abs() / expected.abs().max(1.0);
            assert!(
                error < TOLERANCE,
                "{name}: step {index} gives {x}, not {expected}"
            );
        }
        assert_eq!(sampler.steps().len(), case.trace.len(), "{name}");
    }
}
