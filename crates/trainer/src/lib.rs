//! SwiftBrush v2: distils a diffusion model into a student that paints in one step, from prompts alone.
//!
//! A [`Distiller`] is the student, the fake teacher that follows it and their optimisers; its
//! [`step`](Distiller::step) is the algorithm (arXiv 2408.14176, §3 and §4). [`run`] puts it on disk:
//! snapshots that replace one another only when whole, a log, pictures to look at. The losses of
//! [`losses`] can be had without either.
//!
//! A run can be killed at any moment: what is random follows from the seed and the step, and a
//! [`Snapshot`] holds all the rest, so that the resumed run ends with the weights of one that was never
//! stopped, bit for bit on the CPU backend.
//!
//! Where this differs from the published code of SwiftBrush v1: ᾱ_T is the schedule's own, x̂₀ is divided
//! in f32, a step that is not finite stops the run instead of being zeroed, and gradients are clipped
//! over all parameters together.

mod adamw;
mod distiller;
mod ema;
mod error;
mod gradients;
pub mod losses;
mod prompts;
mod random;
mod recipe;
mod run;
mod snapshot;
mod threads;

pub use adamw::{AdamW, AdamWConfig};
pub use distiller::{ClipNetworks, Distiller, Networks, Report};
pub use ema::Ema;
pub use error::Error;
pub use gradients::NamedGradients;
pub use prompts::Prompts;
pub use random::{Purpose, Random};
pub use recipe::{ClipRecipe, Precision, Recipe};
pub use run::{Event, resume, run, snapshot_path};
pub use snapshot::Snapshot;
pub use threads::Threads;
