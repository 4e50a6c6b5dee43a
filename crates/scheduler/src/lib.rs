//! Noise schedules of latent diffusion, and the samplers built on them.
//!
//! Everything here works on tensors and is independent of the network: [`NoiseSchedule`] holds the tables of α and σ,
//! [`guide`] combines two predictions, and a [`Sampler`] steps from noise to latents. The crate can be used on its own
//! with any network that predicts noise, velocity or clean latents.
//!
//! Tables are computed and stored in f64. A sampler step is `x ← a·x + b·p` (plus `c·p'` of previous steps for some
//! samplers), where p is the network's output or the clean latents derived from it; the factors are computed in f64 and
//! applied in f32.

mod class;
mod config;
mod error;
mod kind;
mod sampler;
mod schedule;
mod step;
mod timesteps;

pub use config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
pub use error::ConfigError;
pub use kind::SamplerKind;
pub use sampler::Sampler;
pub use schedule::{NoiseSchedule, guide};
pub use step::{History, Step};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
