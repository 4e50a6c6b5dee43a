//! Paired comparisons, intervals and the power of a comparison.

use anyhow::{Result, ensure};

/// 97.5 % quantile of the normal distribution.
const NORMAL: f64 = 1.959_964;
/// 80 % quantile of the normal distribution.
const POWER: f64 = 0.841_621;
/// 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom.
const STUDENT: [f64; 10] = [
    12.706_2, 4.302_7, 3.182_4, 2.776_4, 2.570_6, 2.446_9, 2.364_6, 2.306_0, 2.262_2, 2.228_1,
];

/// An estimate with the half-width of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    pub(crate) half: f64,
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let precision = f.precision().unwrap_or(4);
        write!(f, "{:.precision$} ± {:.precision$}", self.mean, self.half)
    }
}

impl Interval {
    /// Normal interval of a share of independent outcomes.
    pub(crate) fn of_share(outcomes: &[bool]) -> Self {
        let count = outcomes.len() as f64;
        let mean = share(outcomes);
        Self {
            mean,
            half: NORMAL * (mean * (1.0 - mean) / count).sqrt(),
        }
    }

    /// Student's t interval of the mean of independent runs.
    ///
    /// # Errors
    ///
    /// If there are fewer than two runs or more than eleven.
    pub(crate) fn of_runs(values: &[f64]) -> Result<Self> {
        let (least, most) = (2, STUDENT.len() + 1);
        ensure!(
            (least..=most).contains(&values.len()),
            "expected {least} to {most} runs, found {}",
            values.len()
        );
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (squares / (count - 1.0) / count).sqrt();
        Ok(Self {
            mean,
            half: STUDENT[values.len() - 2] * error,
        })
    }
}

fn share(outcomes: &[bool]) -> f64 {
    outcomes.iter().filter(|right| **right).count() as f64 / outcomes.len() as f64
}

/// Comparison of two models on the same captions.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Paired {
    /// The share right of the first minus that of the second.
    pub(crate) difference: Interval,
    /// McNemar's statistic, standard normal if both are equally good.
    pub(crate) z: f64,
    /// Share of captions that exactly one of them gets right.
    pub(crate) discordant: f64,
    /// Smallest difference that a comparison of this size detects with 80 % power at the 5 % level.
    pub(crate) detectable: f64,
}

impl Paired {
    /// Compares outcomes caption by caption.
    ///
    /// # Errors
    ///
    /// If the numbers of captions differ or are zero.
    pub(crate) fn new(first: &[bool], second: &[bool]) -> Result<Self> {
        ensure!(
            first.len() == second.len() && !first.is_empty(),
            "expected as many captions on both sides, found {} and {}",
            first.len(),
            second.len()
        );
        let only = |a: &[bool], b: &[bool]| {
            let pairs = a.iter().zip(b);
            pairs.filter(|(a, b)| **a && !**b).count() as f64
        };
        let (gained, lost) = (only(first, second), only(second, first));
        let count = first.len() as f64;
        let discordant = gained + lost;
        let mean = (gained - lost) / count;
        let variance = (discordant / count - mean.powi(2)) / count;
        Ok(Self {
            difference: Interval {
                mean,
                half: NORMAL * variance.sqrt(),
            },
            z: (gained - lost) / discordant.max(1.0).sqrt(),
            discordant: discordant / count,
            detectable: detectable(discordant / count, first.len()),
        })
    }
}

/// Smallest difference of two shares that a paired comparison detects with 80 % power at the 5 % level, given the share
/// of discordant captions.
pub(crate) fn detectable(discordant: f64, captions: usize) -> f64 {
    (NORMAL + POWER) * (discordant / captions as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_paired_difference_is_mcnemars() {
        // 2×2 table: 60 both right, 15 only the first, 5 only the second, 20 both wrong.
        let outcomes = |counts: [(usize, bool); 4]| -> Vec<bool> {
            let repeat = |(count, right)| std::iter::repeat_n(right, count);
            counts.into_iter().flat_map(repeat).collect()
        };
        let first = outcomes([(60, true), (15, true), (5, false), (20, false)]);
        let second = outcomes([(60, true), (15, false), (5, true), (20, false)]);
        let paired = Paired::new(&first, &second).unwrap();
        assert!((paired.difference.mean - 0.10).abs() < 1e-12);
        // √(0.20 − 0.10²) / 10 = 0.043589
        assert!((paired.difference.half - 1.959_964 * 0.043_589).abs() < 1e-6);
        assert!((paired.z - 10.0 / 20f64.sqrt()).abs() < 1e-12);
        assert_eq!(paired.discordant, 0.20);
        assert!(Paired::new(&first, &second[1..]).is_err());
    }

    #[test]
    fn runs_are_averaged_with_students_t() {
        // Mean 2, deviation 1, error 1/√3; two degrees of freedom.
        let interval = Interval::of_runs(&[1.0, 2.0, 3.0]).unwrap();
        assert!((interval.mean - 2.0).abs() < 1e-12);
        assert!((interval.half - 4.3027 / 3f64.sqrt()).abs() < 1e-6);
        assert!(Interval::of_runs(&[1.0]).is_err());
    }

    #[test]
    fn a_detectable_difference_is_found_four_times_in_five() {
        const CAPTIONS: usize = 8192;
        const DISCORDANT: f64 = 0.10;
        let difference = detectable(DISCORDANT, CAPTIONS);
        assert!((0.009..0.0105).contains(&difference), "{difference}");
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut found = |difference: f64| {
            let found = (0..400).filter(|_| {
                let (mut first, mut second) = (vec![true; CAPTIONS], vec![true; CAPTIONS]);
                for at in 0..CAPTIONS {
                    let draw: f64 = rng.random();
                    first[at] = draw >= (DISCORDANT - difference) / 2.0;
                    second[at] = draw < 1.0 - (DISCORDANT + difference) / 2.0;
                }
                let paired = Paired::new(&first, &second).unwrap();
                paired.difference.mean > paired.difference.half
            });
            found.count() as f64 / 400.0
        };
        let power = found(difference);
        assert!((0.73..0.87).contains(&power), "{power}");
        // Without a difference the interval lies above zero in 2.5 % of comparisons.
        let false_positives = found(0.0);
        assert!(false_positives < 0.06, "{false_positives}");
    }
}
