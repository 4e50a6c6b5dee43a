//! trainer

mod adamw;
mod ema;
mod gradients;
mod random;
mod snapshot;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use gradients::NamedGradients;
pub use random::{Purpose, Random};
pub use snapshot::Snapshot;
