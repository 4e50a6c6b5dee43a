use serde::{Deserialize, Serialize};

use crate::Error;

/// Maximum number of noise samples of an edit, each of which makes the call larger.
const MAX_NOISES: usize = 64;

/// The options of ChordEdit. Times are fractions of the timesteps: 0 is clean, 1 is noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Options {
    /// The noisier time, t.
    pub time: f64,
    /// Distance to the other time, δ, which carries the weight t/(t+δ). 0 compares at only one time, with half the
    /// samples.
    pub delta: f64,
    /// Factor of the field, λ: too low changes too little, too high spills beyond the edit.
    pub step: f64,
    /// Number of noise samples that the field is averaged over.
    pub noises: usize,
    /// A second call, from the moved latents; `None` for only the transport, which keeps more of the image.
    pub refinement: Option<Refinement>,
}

/// A step of the one-step model from slightly noised latents, which draws the fine detail of the target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Refinement {
    /// Time at which the moved latents are noised.
    pub time: f64,
    /// Share of the refined latents in the result; the rest are the moved latents.
    pub blend: f64,
}

impl Default for Options {
    /// t 0.90, δ 0.15, λ 1, one noise, with refinement: the published defaults.
    fn default() -> Self {
        Self {
            time: 0.90,
            delta: 0.15,
            step: 1.0,
            noises: 1,
            refinement: Some(Refinement::default()),
        }
    }
}

impl Default for Refinement {
    /// At 0.30, replacing the moved latents.
    fn default() -> Self {
        Self {
            time: 0.30,
            blend: 1.0,
        }
    }
}

impl Refinement {
    /// Sets the time at which the moved latents are noised.
    pub fn with_time(mut self, time: f64) -> Self {
        self.time = time;
        self
    }

    /// Sets the share of the refined latents in the result.
    pub fn with_blend(mut self, blend: f64) -> Self {
        self.blend = blend;
        self
    }
}

impl Options {
    /// The default at one time, 0.75, instead of two: half the samples, and close to the default, whose earlier time
    /// carries 6/7 of the weight.
    pub fn one_time() -> Self {
        Self {
            time: 0.75,
            delta: 0.0,
            ..Self::default()
        }
    }

    /// Sets the noisier time and the distance to the other one.
    pub fn with_times(mut self, time: f64, delta: f64) -> Self {
        (self.time, self.delta) = (time, delta);
        self
    }

    /// Sets the factor of the field.
    pub fn with_step(mut self, step: f64) -> Self {
        self.step = step;
        self
    }

    /// Sets the number of noise samples.
    pub fn with_noises(mut self, noises: usize) -> Self {
        self.noises = noises;
        self
    }

    /// Sets or removes the refinement.
    pub fn with_refinement(mut self, refinement: Option<Refinement>) -> Self {
        self.refinement = refinement;
        self
    }

    /// Number of samples in the call of the transport, for each image.
    pub fn n_samples(&self) -> usize {
        2 * self.noises * self.weights().len()
    }

    /// Number of calls: the transport and the refinement.
    pub fn n_calls(&self) -> usize {
        1 + usize::from(self.refinement.is_some())
    }

    /// The times of the transport and the weights of their fields.
    pub(super) fn weights(&self) -> Vec<(f64, f64)> {
        let (time, delta) = (self.time, self.delta);
        match delta {
            0.0 => vec![(time, 1.0)],
            _ => {
                let total = time + delta;
                vec![(time - delta, time / total), (time, delta / total)]
            }
        }
    }

    /// Checks that every value is in range.
    ///
    /// # Errors
    ///
    /// If one is not.
    pub fn check(&self) -> Result<(), Error> {
        let check = |holds: bool, name: &str, found: f64, expected: &str| match holds {
            true => Ok(()),
            false => Err(Error::Request(format!(
                "{name} {found} of an edit; expected {expected}"
            ))),
        };
        let is_time = |time: f64| time > 0.0 && time <= 1.0;
        let time = self.time;
        check(is_time(time), "time", time, "more than 0, up to 1")?;
        check(
            (0.0..time).contains(&self.delta),
            "delta",
            self.delta,
            &format!("0 or more, below the time {time}"),
        )?;
        check(
            self.step.is_finite() && self.step > 0.0,
            "step",
            self.step,
            "a number above 0",
        )?;
        check(
            (1..=MAX_NOISES).contains(&self.noises),
            "number of noises",
            self.noises as f64,
            &format!("1 to {MAX_NOISES}"),
        )?;
        let Some(Refinement { time, blend }) = self.refinement else {
            return Ok(());
        };
        check(
            is_time(time),
            "refinement time",
            time,
            "more than 0, up to 1",
        )?;
        check(
            (0.0..=1.0).contains(&blend),
            "refinement blend",
            blend,
            "0 to 1",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_weigh_the_earlier_time_six_to_one() {
        let options = Options::default();
        let [(early, first), (late, second)] = options.weights()[..] else {
            panic!("there are two times");
        };
        assert!((early - 0.75).abs() < 1e-12 && late == 0.90);
        assert!((first - 6.0 / 7.0).abs() < 1e-12 && (second - 1.0 / 7.0).abs() < 1e-12);
        assert_eq!((options.n_samples(), options.n_calls()), (4, 2));
        let cheap = Options::one_time().with_refinement(None);
        assert_eq!((cheap.n_samples(), cheap.n_calls()), (2, 1));
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        let refined = |refinement| Options::default().with_refinement(Some(refinement));
        let refinement = Refinement::default();
        for (options, part) in [
            (Options::default().with_times(1.2, 0.1), "time 1.2"),
            (Options::default().with_times(0.0, 0.0), "time 0"),
            (Options::default().with_times(f64::NAN, 0.0), "time NaN"),
            (Options::default().with_times(0.5, 0.5), "delta 0.5"),
            (Options::default().with_times(0.5, -0.1), "delta -0.1"),
            (Options::default().with_step(0.0), "step 0"),
            (Options::default().with_step(f64::INFINITY), "step inf"),
            (Options::default().with_noises(0), "number of noises 0"),
            (Options::default().with_noises(65), "1 to 64"),
            (refined(refinement.with_time(0.0)), "refinement time 0"),
            (refined(refinement.with_blend(1.1)), "refinement blend 1.1"),
        ] {
            let error = options.check().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        Options::default().check().expect("defaults are valid");
        Options::one_time().check().expect("defaults are valid");
    }
}
