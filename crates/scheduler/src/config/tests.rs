use super::*;

#[test]
fn reads_the_file_of_sd_turbo() {
    let text = r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.24.0.dev0",
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
        "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "trailing",
        "timestep_type": "discrete", "trained_betas": null, "use_karras_sigmas": false}"#;
    let config = SchedulerConfig::from_json(text).unwrap();
    let expected = SchedulerConfig::default();
    assert_eq!(config.fields(), expected.fields());
    assert_eq!(config.sampler().unwrap(), SamplerKind::Euler);
    assert!(config.unknown_keys().is_empty());
}

/// diffusers writes `lambda_min_clipped` as `-Infinity`, which is not JSON.
#[test]
fn reads_the_file_that_diffusers_writes_for_its_solver() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
        "lambda_min_clipped": -Infinity, "lower_order_final": true, "solver_order": 2,
        "thresholding": false, "variance_type": null}"#;
    let config = SchedulerConfig::from_json(text).unwrap();
    assert_eq!(config.timestep_spacing, TimestepSpacing::Linspace);
    assert_eq!((config.beta_start, config.beta_end), (0.0001, 0.02));
    assert!(config.for_sampler(SamplerKind::DpmSolver).is_ok());
}

#[test]
fn classes_without_an_implementation_are_substituted_or_rejected() {
    let sampler = |class: &str| {
        let text = format!(r#"{{"_class_name": "{class}", "beta_start": 0.001}}"#);
        SchedulerConfig::from_json(&text).and_then(|config| config.sampler())
    };
    for (class, kind) in [
        ("DDPMScheduler", SamplerKind::Ddim),
        ("UniPCMultistepScheduler", SamplerKind::DpmSolver),
        ("HeunDiscreteScheduler", SamplerKind::Euler),
        (
            "KDPM2AncestralDiscreteScheduler",
            SamplerKind::EulerAncestral,
        ),
    ] {
        assert_eq!(sampler(class).unwrap(), kind, "{class}");
    }
    for class in ["TCDScheduler", "MyScheduler"] {
        let error = sampler(class).unwrap_err().to_string();
        let names = [class, "euler-ancestral", "lcm"];
        assert!(names.iter().all(|name| error.contains(name)), "{error}");
    }
    for class in ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"] {
        let error = sampler(class).unwrap_err().to_string();
        assert!(
            error.contains("_class_name") && error.contains(class),
            "{error}"
        );
    }
}

#[test]
fn unsupported_noise_schedules_are_rejected_by_name() {
    for (text, name) in [
        (r#"{"rescale_betas_zero_snr": true}"#, "prediction_type"),
        (
            r#"{"_class_name": "LCMScheduler", "trained_betas": [0.1]}"#,
            "trained_betas",
        ),
        (
            r#"{"_class_name": "UniPCMultistepScheduler", "trained_betas": [0.1]}"#,
            "trained_betas",
        ),
        (
            r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#,
            "use_flow_sigmas",
        ),
        (r#"{"beta_end": 2.0}"#, "beta_start..beta_end"),
        (r#"{"beta_start": "0.00085"}"#, "beta_start"),
        (r#"{"beta_schedule": "sigmoid"}"#, "beta_schedule"),
        (
            r#"{"prediction_type": "flow_prediction"}"#,
            "prediction_type",
        ),
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"num_train_timesteps": 999.5}"#, "num_train_timesteps"),
        (r#"{"num_train_timesteps": 1e9}"#, "num_train_timesteps"),
        (r#"{"steps_offset": 5000}"#, "steps_offset"),
        (
            r#"{"original_inference_steps": 5000}"#,
            "original_inference_steps",
        ),
        (r#"{"clip_sample": "no"}"#, "clip_sample"),
        (r#"{"_class_name": ["a", "b"]}"#, "_class_name"),
        (
            r#"{"_swiftbrush_sampler": "two-step"}"#,
            "_swiftbrush_sampler",
        ),
    ] {
        let error = SchedulerConfig::from_json(text).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{text}: {error}");
    }
}

#[test]
fn options_are_checked_by_the_samplers_that_read_them() {
    let config = |text: &str| SchedulerConfig::from_json(text).unwrap();
    for (text, kind, name) in [
        (
            r#"{"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true}"#,
            SamplerKind::Euler,
            "use_karras_sigmas",
        ),
        (
            r#"{"_class_name": "UniPCMultistepScheduler", "solver_order": 3}"#,
            SamplerKind::DpmSolver,
            "solver_order",
        ),
        (
            r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#,
            SamplerKind::Ddim,
            "thresholding",
        ),
        (
            r#"{"_class_name": "PNDMScheduler"}"#,
            SamplerKind::Pndm,
            "skip_prk_steps",
        ),
        (
            r#"{"_class_name": "EulerDiscreteScheduler"}"#,
            SamplerKind::Pndm,
            "skip_prk_steps",
        ),
        (
            r#"{"prediction_type": "sample"}"#,
            SamplerKind::EulerAncestral,
            "prediction_type",
        ),
        (
            r#"{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction", "skip_prk_steps": true}"#,
            SamplerKind::Pndm,
            "rescale_betas_zero_snr",
        ),
        (r#"{"clip_sample": true}"#, SamplerKind::Lcm, "clip_sample"),
    ] {
        let error = config(text).for_sampler(kind).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{text}: {error}");
    }
    let karras = config(r#"{"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true}"#);
    assert!(karras.for_sampler(SamplerKind::EulerAncestral).is_ok());
    let unipc = config(r#"{"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"}"#);
    assert!(unipc.for_sampler(SamplerKind::DpmSolver).is_ok());
}

#[test]
fn values_that_diffusers_accepts_are_read() {
    let text = r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000.0, "clip_sample": null,
        "set_alpha_to_one": null, "tensor_format": "pt", "_notes": "mine", "my_note": 3}"#;
    let config = SchedulerConfig::from_json(text).unwrap();
    assert_eq!(config.num_train_timesteps, 1000);
    assert!(!config.clip_sample && !config.set_alpha_to_one);
    assert_eq!(config.unknown_keys(), ["my_note"]);
}

#[test]
fn long_values_are_cut_in_errors() {
    let text = format!(r#"{{"trained_betas": {:?}}}"#, vec![0.1; 1000]);
    let error = SchedulerConfig::from_json(&text).unwrap_err().to_string();
    assert!(error.len() < 160, "{error}");
}

/// Records contain configurations, so a configuration that is written must be read back, including its omitted fields.
#[test]
fn a_configuration_survives_serialisation() {
    let text = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "skip_prk_steps": true,
        "use_karras_sigmas": true, "_swiftbrush_sampler": "one-step"}"#;
    let mut config = SchedulerConfig::from_json(text).unwrap();
    config.correct_for_stable_diffusion();
    let again: SchedulerConfig =
        serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(again.is_one_step);
    let ddim = again.for_sampler(SamplerKind::Ddim).unwrap();
    assert_eq!(ddim.steps_offset, 0, "DDIM's own default");
    let bad = serde_json::from_str::<SchedulerConfig>(r#"{"num_train_timesteps": 0}"#);
    assert!(bad.is_err(), "deserialisation checks too");
}

#[test]
fn settings_of_the_caller_apply_to_every_sampler() {
    let config = SchedulerConfig::from_json(r#"{"_class_name": "DDIMScheduler"}"#).unwrap();
    let config = config.with_spacing(TimestepSpacing::Leading);
    let euler = config.for_sampler(SamplerKind::Euler).unwrap();
    assert_eq!(euler.timestep_spacing, TimestepSpacing::Leading);
}
