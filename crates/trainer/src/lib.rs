//! SwiftBrush v2: distils a diffusion model into a one-step student, using only prompts.
//!
//! A [`Distiller`] holds the student, the fake teacher that tracks it, and their optimisers; its
//! [`step`](Distiller::step) is the algorithm (arXiv 2408.14176, §3 and §4). A [`Run`] adds snapshots, a log and
//! previews on disk. [`losses`] are pure functions that need neither; a [`Reward`] adds your own loss, a
//! [`PromptSource`] your own source of prompts, and an [`Observer`] receives the steps, previews, watcher reports and
//! snapshots of a run.
//!
//! A [`PreferenceTuner`] is a second algorithm: it tunes a finished student by the ranks that a [`Judge`] gives to its
//! samples (DrPO), so the reward needs no gradient.
//!
//! A run can be killed at any moment: random numbers depend only on seed and step, and a [`Snapshot`]
//! holds everything else, so a resumed run ends with the same weights as one that was never killed, bit
//! for bit on the CPU backend.
//!
//! Differences from the published code of SwiftBrush v1: ᾱ_T is the schedule's own, x̂₀ is divided in
//! f32, a non-finite step stops the run (or is skipped and logged) instead of being zeroed, and gradients
//! are clipped over all parameters together.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod adamw;
mod ahead;
mod communicator;
mod denoiser;
mod distiller;
mod drift;
mod ema;
mod error;
mod event_file;
mod fingerprint;
mod frozen;
mod gradients;
mod latent_set;
mod log;
pub mod losses;
mod lpips;
mod memory;
mod micro_batch;
mod networks;
mod observer;
mod parameters;
mod preference;
mod prompts;
mod random;
mod recipe;
mod regression;
mod report;
mod reward;
mod reward_model;
mod run;
mod scratch;
mod shards;
mod snapshot;
mod snapshots;
mod storage;
mod student;
mod tensor_board;
mod threads;
mod trained;
pub mod watch;

pub use adamw::{AdamW, AdamWConfig, MomentStorage};
#[cfg(feature = "mpi")]
pub use communicator::MpiCommunicator;
pub use communicator::{Communicator, LocalCommunicator};
pub use denoiser::{Denoiser, WithCheckpoints};
pub use distiller::Distiller;
pub use drift::{DriftTargets, drift_field, drift_loss};
pub use ema::{AverageStorage, Ema};
pub use error::Error;
pub use event_file::EventWriter;
pub use fingerprint::{Change, Fingerprint};
pub use gradients::NamedGradients;
pub use latent_set::{LatentBatch, LatentKind, LatentSet, LatentSetWriter};
pub use log::Timing;
pub use lpips::{Lpips, LpipsNetworks};
pub use memory::{MemoryPart, MemoryPlan};
pub use networks::Networks;
pub use observer::{Observer, Observers};
pub use preference::{FeatureMap, Judge, PreferenceRecipe, PreferenceReport, PreferenceTuner};
pub use prompts::{PromptCounts, PromptFile, PromptSource, Prompts};
pub use random::{Purpose, Random};
pub use recipe::{ClipRecipe, GuidanceScale, NullPrompts, Precision, Recipe};
pub use regression::{RegressionLoss, RegressionRecipe};
pub use report::Report;
pub use reward::{ClipNetworks, ClipReward, Reward};
pub use reward_model::{RewardModel, RewardNetworks, RewardRecipe};
pub use run::{Event, Run};
pub use snapshot::Snapshot;
pub use snapshots::{snapshot_path, snapshot_steps};
pub use storage::FrozenStorage;
pub use student::Student;
pub use tensor_board::TensorBoard;
pub use threads::Threads;
pub use watch::{Alarm, Band, Strip, WatchRecipe, WatchReport};
