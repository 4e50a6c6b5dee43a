use std::path::PathBuf;

use crate::fingerprint::Change;
use crate::watch::Alarm;

/// Errors that prevent a run from starting or stop it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] swiftbrush_checkpoint::Error),
    /// Ranks cannot reach each other.
    #[error("communication with the other ranks failed: {0}")]
    Communicator(#[from] std::io::Error),
    /// The thread that reads prompts cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Adapters match no layer of a network.
    #[error(transparent)]
    Adapter(#[from] swiftbrush_lora::Error),
    /// A model cannot be loaded.
    #[error(transparent)]
    Pipeline(#[from] swiftbrush_pipeline::Error),
    /// A recipe cannot be read, or a setting is invalid for the networks.
    #[error("{path}: {reason}")]
    Recipe {
        /// The file, or `recipe` for a value.
        path: PathBuf,
        /// The setting, what was expected and what was found.
        reason: String,
    },
    /// The prompt file is not text, or is empty.
    #[error(transparent)]
    Text(#[from] swiftbrush_checkpoint::TextError),
    /// A prompt file has an unsupported format or a line without a caption, or can no longer be read.
    #[error("{path}: {reason}")]
    Prompts {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A network cannot be used for training, or does not match the others.
    #[error("{network}: {reason}")]
    Network {
        /// The field of [`Networks`](crate::Networks).
        network: &'static str,
        /// The expected value, the value found, and what to do.
        reason: String,
    },
    /// The recipe has a CLIP loss, but the networks have no CLIP and decoder.
    #[error(
        "the recipe has a CLIP loss, which needs a CLIP and a tiny decoder: \
         add them to the networks, or remove [clip] from the recipe"
    )]
    NoClip,
    /// The recipe has a published reward, but the networks do not.
    #[error("the recipe has [rewards.{0}]: add its networks, or remove the table from the recipe")]
    NoReward(&'static str),
    /// The recipe has a regression with LPIPS, but the networks have none.
    #[error(
        "the recipe has a regression with loss = \"lpips\": add the networks of LPIPS, or set another loss"
    )]
    NoLpips,
    /// Latents cannot be read or written, or do not fit the run.
    #[error("{path}: {reason}")]
    Latents {
        /// The file or folder.
        path: PathBuf,
        /// The expected value, the value found, and what to do.
        reason: String,
    },
    /// The recipe has a regression loss without data.
    #[error(
        "the recipe has [{0}], which needs latents: add them to the distiller, or remove [{0}] from the recipe"
    )]
    NoLatents(&'static str),
    /// Two rewards have the same name, or one has the name of another loss.
    #[error("the reward name {0:?} is already used by another loss")]
    RewardName(String),
    /// A snapshot cannot be resumed.
    #[error("{path}: {reason}")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A snapshot belongs to a run with other settings or inputs.
    #[error(
        "{path} was saved by a run with other settings or inputs:\n{}\n\
         resume with those of the snapshot, or accept the changes by name",
        .changes.iter().map(|change| format!("  {change}")).collect::<Vec<_>>().join("\n")
    )]
    Changed {
        /// The snapshot.
        path: PathBuf,
        /// Every difference that was not accepted.
        changes: Vec<Change>,
    },
    /// A change was accepted under a name that no setting or input has.
    #[error("unknown setting or input {0:?}; expected one of {known}", known = .1.join(", "))]
    UnknownChange(String, Vec<String>),
    /// Another process is training in the folder.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A loss or a gradient became NaN or infinite, and no more steps may be skipped.
    #[error(
        "the {what} became {value} at step {step}; the last snapshot is intact: \
         resume with max_bad_steps = {allow} to skip the step, or start again with a lower \
         learning_rate or max_grad_norm"
    )]
    NotFinite {
        /// The loss or gradient.
        what: String,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// The number of skipped steps that would let the run continue.
        allow: u64,
    },
    /// The watcher raised an alarm, and the recipe says that it stops the run.
    #[error(
        "{alarm} at step {step}; earlier snapshots are intact: export the last one before the collapse, start again with a \
         lower learning_rate, or resume with watch.stop = false"
    )]
    Collapsed {
        /// The first alarm.
        alarm: Alarm,
        /// Number of steps done.
        step: u64,
    },
    /// A score, a loss or a gradient of preference tuning is a NaN or an infinity.
    #[error(
        "the {what} is {value} at step {step}; nothing was updated: check the judge and the features, or lower learning_rate"
    )]
    Preference {
        /// The score, loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
    },
}
