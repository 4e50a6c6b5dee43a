use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use swiftbrush_scheduler::{SamplerKind, SchedulerConfig, TimestepSpacing};

/// How latents are made of noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// SwiftBrush's rule, one network call; see [`one_step`](crate::one_step).
    OneStep,
    /// A sampler with this many steps. Euler's with one step and trailing spacing is SD-Turbo's own rule.
    Sampler(SamplerKind, usize),
}

/// Steps of a sampler where nothing is said.
const DEFAULT_STEPS: usize = 25;
/// The same of a latent consistency model.
const DEFAULT_STEPS_LCM: usize = 4;

impl Method {
    /// What fits a scheduler: its own one-step rule for models whose only step is the last timestep, else 25 steps of
    /// the scheduler that it names (4 of LCM), or of DDIM if it is none of ours. A folder that names DDPM, which only
    /// says how noise is added, is taken for a one-step student.
    pub fn of_scheduler(scheduler: &SchedulerConfig) -> Self {
        if scheduler.class_name == "DDPMScheduler" {
            return Self::OneStep;
        }
        let kind = SamplerKind::of_class(&scheduler.class_name).unwrap_or(SamplerKind::Ddim);
        let steps = match (kind, scheduler.timestep_spacing) {
            (SamplerKind::Euler, TimestepSpacing::Trailing) => 1,
            (SamplerKind::Lcm, _) => DEFAULT_STEPS_LCM,
            _ => DEFAULT_STEPS,
        };
        Self::Sampler(kind, steps)
    }

    /// Calls of the network for a picture from noise, without guidance; guidance doubles them.
    pub fn n_calls(self) -> usize {
        match self {
            Self::OneStep => 1,
            Self::Sampler(SamplerKind::Pndm, steps) if steps > 1 => steps + 1,
            Self::Sampler(_, steps) => steps,
        }
    }
}

/// Pictures to begin with instead of noise.
#[derive(Clone, Debug)]
pub struct Start {
    /// `[batch, 3, height, width]`, RGB in −1…1, a picture for each prompt; sides are multiples of what a latent
    /// stands for (8 for Stable Diffusion).
    pub images: Tensor<4>,
    /// How much of them is lost in noise: 0 is nothing, 1 is everything. Samplers leave out as large a share of
    /// their steps as is kept; the one-step rule is applied at that share of the timesteps.
    pub strength: f64,
}

/// What to paint.
#[derive(Clone, Debug)]
pub struct Request {
    /// A prompt for each picture.
    pub prompts: Vec<String>,
    /// What to paint the opposite of, where `guidance` is not 1.
    pub negative_prompt: String,
    /// How.
    pub method: Method,
    /// Scale of classifier-free guidance; 1 for none, which one-step students need.
    pub guidance: f64,
    /// Height and width in pixels; none for the size that the model was trained on, or that of the pictures
    /// to begin with.
    pub size: Option<[usize; 2]>,
    /// Pictures to begin with; none for pure noise.
    pub start: Option<Start>,
}

impl Request {
    /// One picture for each prompt, in one step, without guidance.
    pub fn new<S: Into<String>>(prompts: impl IntoIterator<Item = S>) -> Self {
        Self {
            prompts: prompts.into_iter().map(Into::into).collect(),
            negative_prompt: String::new(),
            method: Method::OneStep,
            guidance: 1.0,
            size: None,
            start: None,
        }
    }
}

/// What was painted, and all that led to it.
#[derive(Clone, Debug)]
pub struct Painting {
    /// `[batch, 3, height, width]`, RGB in about −1…1.
    pub images: Tensor<4>,
    /// `[batch, channels, height, width]`, scaled, f32.
    pub latents: Tensor<4>,
    /// `[batch, length]`
    pub tokens: Tensor<2, Int>,
    /// `[batch, length, width]`
    pub context: Tensor<3>,
}

/// Where a painting stands, after each call of the network.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Calls so far, from 1.
    pub call: usize,
    /// Calls in all; guidance's second is not counted.
    pub n_calls: usize,
    /// The clean latents that the network expects now, `[batch, channels, height, width]`: decoded, a preview.
    pub expected: Tensor<4>,
}
