use serde::Serialize;

use crate::losses::Losses;

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The step, from 0.
    pub step: u64,
    /// Losses averaged over the micro-batches; those of the student are 0 if it was not updated.
    pub losses: Losses<f64>,
    /// Norm of the student's gradient before clipping; 0 if it was not updated.
    pub student_norm: f64,
    /// Norm of the fake teacher's gradient before clipping.
    pub fake_norm: f64,
    /// Learning rate of the student's update; 0 if it was not updated.
    pub learning_rate: f64,
    /// True if a loss or a gradient was not finite and nothing was updated.
    pub is_skipped: bool,
}

impl Report {
    /// The first loss or gradient that is not finite.
    pub(crate) fn not_finite(&self) -> Option<(String, f64)> {
        let losses = self.losses.iter();
        let losses = losses.map(|(name, value)| (format!("{name} loss"), *value));
        let norms = [
            ("student's gradient", self.student_norm),
            ("fake teacher's gradient", self.fake_norm),
        ];
        let norms = norms.map(|(name, value)| (name.to_owned(), value));
        losses.chain(norms).find(|(_, value)| !value.is_finite())
    }
}
