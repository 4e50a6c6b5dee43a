//! The protocol of docs/miniature.md: caption sets, ground truth, measures and their intervals.

mod captions;
mod classifier;
mod command;
mod features;
mod figure;
mod measures;
mod statistics;
mod system;

pub(crate) use captions::{Captions, Set};
pub(crate) use command::{Command, SEEN, SETS, is_measured, measure};
pub(crate) use statistics::{Interval, Paired};
