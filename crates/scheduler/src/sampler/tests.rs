use super::*;

#[test]
fn one_trailing_step_is_the_one_step_rule() {
    let config = SchedulerConfig::default();
    let schedule = NoiseSchedule::new(&config);
    let euler = Sampler::new(SamplerKind::Euler, &config, 1).unwrap();
    assert_eq!(euler.steps[0].timestep, 999.0);
    assert!((euler.initial_scale - 14.614_641).abs() < 1e-5);
    // SD-Turbo: x̂₀ = (σ/α)·(z − ε); the input of the network is σ·z.
    assert!((euler.initial_scale * euler.steps[0].input_scale - schedule.sigma(999)).abs() < 1e-12);
    assert!((euler.steps[0].predicted[0] + euler.initial_scale).abs() < 1e-12);
}

/// From any starting point, a perfect network leads to the clean latents, whatever it predicts. Samplers that add
/// noise are tested with only one step.
#[test]
fn every_sampler_returns_the_clean_latents_of_a_perfect_network() {
    let (x0, noise) = (0.7, -1.3);
    for prediction_type in [
        PredictionType::Epsilon,
        PredictionType::VPrediction,
        PredictionType::Sample,
    ] {
        let config = SchedulerConfig {
            set_alpha_to_one: true,
            prediction_type,
            // Otherwise the boundary condition of a consistency model would keep some of the noise.
            timestep_scaling: 1e9,
            ..Default::default()
        };
        for (kind, n_steps, n_skipped) in SamplerKind::ALL
            .into_iter()
            .flat_map(|kind| [(1, 0), (2, 0), (4, 0), (25, 0), (25, 24)].map(|(n, s)| (kind, n, s)))
        {
            let is_sample = prediction_type == PredictionType::Sample;
            if is_sample && matches!(kind, SamplerKind::Pndm | SamplerKind::EulerAncestral) {
                continue;
            }
            let sampler = Sampler::after(kind, &config, n_steps, n_skipped).unwrap();
            if sampler.steps.len() > 1 && sampler.steps[0].fresh != 0.0 {
                continue;
            }
            // diffusers' PNDM is inexact when it begins in the middle.
            if kind == SamplerKind::Pndm && n_skipped > 0 {
                continue;
            }
            let [clean, level] = sampler.steps[0].entry;
            let mut x = clean * x0 + level * noise;
            let mut predictions = Vec::new();
            for step in &sampler.steps {
                let input = x * step.input_scale;
                // For x = a·x₀ + s·ε with a² + s² = 1, the input of the network.
                let (alpha, sigma) = {
                    let [clean, level] = step.entry;
                    (clean * step.input_scale, level * step.input_scale)
                };
                let noise = (input - alpha * x0) / sigma;
                let output = match prediction_type {
                    PredictionType::Epsilon => noise,
                    PredictionType::VPrediction => alpha * noise - sigma * x0,
                    PredictionType::Sample => x0,
                };
                let [of_latents, of_output] = step.prediction;
                predictions.insert(0, of_latents * x + of_output * output);
                let terms = step.predicted.iter().zip(&predictions);
                x = x * step.keep + terms.map(|(factor, value)| factor * value).sum::<f64>();
            }
            let case = format!("{kind:?} {prediction_type:?} {n_steps} {n_skipped}");
            let velocity_by_pndm = kind == SamplerKind::Pndm
                && prediction_type == PredictionType::VPrediction
                && n_steps > 1;
            // Velocities at different timesteps differ even if all of them are exact.
            let tolerance = if velocity_by_pndm { 0.5 } else { 1e-6 };
            assert!((x - x0).abs() < tolerance, "{case} ends at {x}");
        }
    }
}

#[test]
fn step_counts_out_of_range_are_errors() {
    let config = SchedulerConfig::default();
    for (kind, steps, most) in [
        (SamplerKind::Ddim, 0, "1 to 1000"),
        (SamplerKind::Ddim, 1001, "1 to 1000"),
        (SamplerKind::DpmSolver, 1000, "1 to 999"),
        (SamplerKind::Lcm, 51, "1 to 50"),
    ] {
        let error = Sampler::new(kind, &config, steps).unwrap_err().to_string();
        assert!(
            error.contains(most) && error.contains(kind.name()),
            "{error}"
        );
    }
    let error = Sampler::after(SamplerKind::Ddim, &config, 3, 3).unwrap_err();
    assert!(matches!(error, ConfigError::NoSteps { .. }), "{error}");
}
