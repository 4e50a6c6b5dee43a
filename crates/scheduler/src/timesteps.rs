//! The timesteps that samplers visit, first to last.

use crate::{SchedulerConfig, TimestepSpacing};

/// Whole timesteps, rounded like numpy.
pub(crate) fn whole(config: &SchedulerConfig, n_steps: usize) -> Vec<usize> {
    let train = config.num_train_timesteps;
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = train / n_steps;
            (0..n_steps)
                .rev()
                .map(|i| (i * stride + config.steps_offset).min(train - 1))
                .collect()
        }
        TimestepSpacing::Linspace => {
            let last = (train - 1) as f64;
            let stride = if n_steps == 1 {
                0.0
            } else {
                last / (n_steps - 1) as f64
            };
            (0..n_steps)
                .rev()
                .map(|i| round_half_even(i as f64 * stride))
                .collect()
        }
        TimestepSpacing::Trailing => {
            let stride = train as f64 / n_steps as f64;
            (0..n_steps)
                .map(|i| round_half_even(train as f64 - i as f64 * stride) - 1)
                .collect()
        }
    }
}

/// Euler's timesteps, which are not rounded for linspace.
pub(crate) fn fractional(config: &SchedulerConfig, n_steps: usize) -> Vec<f64> {
    let last = (config.num_train_timesteps - 1) as f64;
    match (config.timestep_spacing, n_steps) {
        (TimestepSpacing::Linspace, 1) => vec![0.0],
        (TimestepSpacing::Linspace, n) => (0..n)
            .rev()
            .map(|i| last * i as f64 / (n - 1) as f64)
            .collect(),
        _ => whole(config, n_steps)
            .into_iter()
            .map(|timestep| timestep as f64)
            .collect(),
    }
}

/// DPM-Solver's timesteps: `n_steps + 1` of them, without the last one, where it ends.
pub(crate) fn of_solver(config: &SchedulerConfig, n_steps: usize) -> Vec<usize> {
    let train = config.num_train_timesteps;
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = train / (n_steps + 1);
            (1..=n_steps)
                .rev()
                .map(|i| (i * stride + config.steps_offset).min(train - 1))
                .collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (train - 1) as f64 / n_steps as f64;
            (1..=n_steps)
                .rev()
                .map(|i| round_half_even(i as f64 * stride))
                .collect()
        }
        TimestepSpacing::Trailing => whole(config, n_steps),
    }
}

/// numpy's `round`.
fn round_half_even(x: f64) -> usize {
    x.round_ties_even() as usize
}
