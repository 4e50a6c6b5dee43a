//! The noise schedules of latent diffusion and what is computed from them.
//!
//! Everything here works on tensors and knows no network: [`NoiseSchedule`] holds the tables,
//! [`guide`] combines two predictions, a [`Sampler`] steps from noise to latents. Use it alone
//! when you have a network of your own that predicts noise.
//!
//! Tables are computed and kept in f64. A step of a sampler is `x ← a·x + b·p` (and `+ c·p'` of
//! steps before it, for some), where p is what the network says or the clean latents that follow from it, with
//! numbers worked out in f64 and applied in f32.

mod config;
mod sampler;
mod schedule;

pub use config::{BetaSchedule, ConfigError, PredictionType, SchedulerConfig, TimestepSpacing};
pub use sampler::{Sampler, SamplerKind, Step};
pub use schedule::{NoiseSchedule, guide};
