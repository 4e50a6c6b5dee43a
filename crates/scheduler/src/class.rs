//! Scheduler classes of diffusers 0.42: their defaults, their options, and the samplers that replace them.

use serde_json::{Value, json};

use crate::{BetaSchedule, SamplerKind, SchedulerConfig, TimestepSpacing};

/// The replacement for a scheduler class without an implementation: the closest sampler in order and kind of noise.
pub(crate) fn replacement(class: &str) -> Option<SamplerKind> {
    Some(match class {
        "DDPMScheduler" | "DDPMParallelScheduler" | "DDIMParallelScheduler" => SamplerKind::Ddim,
        "DEISMultistepScheduler"
        | "DPMSolverSDEScheduler"
        | "DPMSolverSinglestepScheduler"
        | "SASolverScheduler"
        | "UniPCMultistepScheduler" => SamplerKind::DpmSolver,
        "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" | "LMSDiscreteScheduler" => {
            SamplerKind::Euler
        }
        "KDPM2AncestralDiscreteScheduler" => SamplerKind::EulerAncestral,
        _ => return None,
    })
}

/// Name prefixes of classes whose models are not trained on a schedule of betas, so that none of the samplers here is
/// right for them.
const OTHER_PROCESSES: [&str; 22] = [
    "Amused",
    "BlockRefinement",
    "CMStochastic",
    "CogVideoX",
    "ConsistencyDecoder",
    "Cosine",
    "DDPMWuerstchen",
    "DiscreteDDIM",
    "EDM",
    "EntropyBound",
    "Flow",
    "Helios",
    "IPNDM",
    "KarrasVe",
    "LTX",
    "MiniMax",
    "Piflow",
    "RFD",
    "SCM",
    "ScoreSde",
    "UnCLIP",
    "VQDiffusion",
];

pub(crate) fn is_other_process(class: &str) -> bool {
    OTHER_PROCESSES.iter().any(|name| class.starts_with(name))
}

/// The defaults of diffusers' class of that name, for fields missing in a file. Unknown classes get the defaults that
/// most classes share.
pub(crate) fn defaults(class: &str) -> SchedulerConfig {
    let common = SchedulerConfig {
        class_name: class.to_owned(),
        beta_start: 0.0001,
        beta_end: 0.02,
        beta_schedule: BetaSchedule::Linear,
        timestep_spacing: TimestepSpacing::Linspace,
        steps_offset: 0,
        skip_prk_steps: false,
        ..SchedulerConfig::default()
    };
    let leading = SchedulerConfig {
        timestep_spacing: TimestepSpacing::Leading,
        ..common.clone()
    };
    match class {
        "DDIMScheduler" | "DDIMParallelScheduler" => SchedulerConfig {
            clip_sample: true,
            set_alpha_to_one: true,
            ..leading
        },
        "DDPMScheduler" | "DDPMParallelScheduler" => SchedulerConfig {
            clip_sample: true,
            ..leading
        },
        "PNDMScheduler" => leading,
        "LCMScheduler" | "TCDScheduler" => SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            set_alpha_to_one: true,
            ..leading
        },
        "DPMSolverSDEScheduler"
        | "HeunDiscreteScheduler"
        | "KDPM2AncestralDiscreteScheduler"
        | "KDPM2DiscreteScheduler" => SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            ..common
        },
        _ => common,
    }
}

/// An option that is supported only with values that have no effect here.
pub(crate) struct SwitchedOff {
    pub(crate) name: &'static str,
    values: fn() -> Vec<Value>,
    /// The samplers whose class has the option.
    kinds: &'static [SamplerKind],
}

impl SwitchedOff {
    pub(crate) fn accepts(&self, value: &Value) -> bool {
        let same = |accepted: &Value| match (accepted.as_f64(), value.as_f64()) {
            (Some(accepted), Some(value)) => accepted == value,
            _ => accepted == value,
        };
        value.is_null() || (self.values)().iter().any(same)
    }

    pub(crate) fn concerns(&self, kind: SamplerKind) -> bool {
        self.kinds.contains(&kind)
    }

    pub(crate) fn expected(&self) -> String {
        let values: Vec<_> = (self.values)().iter().map(Value::to_string).collect();
        match values.is_empty() {
            true => "null".to_owned(),
            false => values.join(" or "),
        }
    }
}

pub(crate) fn switched_off(name: &str) -> Option<&'static SwitchedOff> {
    SWITCHED_OFF.iter().find(|option| option.name == name)
}

const SWITCHED_OFF: [SwitchedOff; 16] = {
    use SamplerKind::{Ddim, DpmSolver, Euler, Lcm};
    const fn option(
        name: &'static str,
        values: fn() -> Vec<Value>,
        kinds: &'static [SamplerKind],
    ) -> SwitchedOff {
        SwitchedOff {
            name,
            values,
            kinds,
        }
    }
    const OFF: fn() -> Vec<Value> = || vec![json!(false)];
    const NULL: fn() -> Vec<Value> = Vec::new;
    [
        // DPM-Solver treats DEIS' name as its own.
        option(
            "algorithm_type",
            || vec![json!("dpmsolver++"), json!("deis")],
            &[DpmSolver],
        ),
        option(
            "final_sigmas_type",
            || vec![json!("zero")],
            &[Euler, DpmSolver],
        ),
        option("interpolation_type", || vec![json!("linear")], &[Euler]),
        option("lambda_min_clipped", NULL, &[DpmSolver]),
        option("sigma_max", NULL, &[Euler]),
        option("sigma_min", NULL, &[Euler]),
        option("solver_order", || vec![json!(2)], &[DpmSolver]),
        // The other three name other solvers, for which DPM-Solver uses the midpoint rule.
        option(
            "solver_type",
            || {
                vec![
                    json!("midpoint"),
                    json!("logrho"),
                    json!("bh1"),
                    json!("bh2"),
                ]
            },
            &[DpmSolver],
        ),
        option("thresholding", OFF, &[Ddim, DpmSolver, Lcm]),
        option("timestep_type", || vec![json!("discrete")], &[Euler]),
        option("use_beta_sigmas", OFF, &[Euler, DpmSolver]),
        option("use_dynamic_shifting", OFF, &[DpmSolver]),
        option("use_exponential_sigmas", OFF, &[Euler, DpmSolver]),
        option("use_flow_sigmas", OFF, &SamplerKind::ALL),
        option("use_karras_sigmas", OFF, &[Euler, DpmSolver]),
        option("use_lu_lambdas", OFF, &[DpmSolver]),
    ]
};

/// Options of diffusers' classes that have no effect on the samplers here: they belong to classes without an
/// implementation, to options that are off, or to the last step, which always ends at σ = 0.
const WITHOUT_EFFECT: [&str; 21] = [
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "eta",
    "euler_at_final",
    "flow_shift",
    "gamma",
    "lower_order_final",
    "noise_sampler_seed",
    "predict_x0",
    "predictor_order",
    "quantization_config",
    "rho",
    "sample_max_value",
    "shift_terminal",
    "sigma_data",
    "solver_p",
    "tau_func",
    "tensor_format",
    "time_shift_type",
    "variance_type",
];

pub(crate) fn is_without_effect(name: &str) -> bool {
    name.starts_with('_') || WITHOUT_EFFECT.contains(&name)
}
