//! Looks at a run: what its student generates for fixed prompts, and how far apart its teachers are.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Error as FileError, write_atomically};

use crate::Error;
use crate::losses::{Teachers, predicted_noise};

/// Settings of the watcher, which never changes the weights of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchRecipe {
    /// Steps between two reports; there is also one before the first step.
    pub every: u64,
    /// Prompts to evaluate [default: the first eight of the run].
    pub prompts: Vec<String>,
    /// Number of images per prompt, at least 2.
    pub images: usize,
    /// Number of bands of equal width that the timesteps of the recipe are divided into.
    pub bands: usize,
    /// Diversity below which there is an alarm, as a share of that in the first report.
    pub min_diversity: f64,
    /// CLIP score below which there is an alarm, as a share of that in the first report.
    pub min_score: f64,
    /// Stops the run at an alarm.
    pub stop: bool,
}

impl Default for WatchRecipe {
    /// The bounds are our choice, because none are published. CLIP scores of all students and teachers of the paper lie
    /// within 15 % of each other (.28 to .33), and those of unrelated images near half of that, so three quarters are
    /// beyond any difference between working students.
    fn default() -> Self {
        Self {
            every: 500,
            prompts: Vec::new(),
            images: 4,
            bands: 4,
            min_diversity: 0.5,
            min_score: 0.75,
            stop: false,
        }
    }
}

impl WatchRecipe {
    /// The bands of timesteps `first..=last`, as first and last timestep.
    pub(crate) fn bands(&self, first: usize, last: usize) -> Vec<[usize; 2]> {
        let start = |band: usize| first + band * (last + 1 - first) / self.bands;
        let bands = (0..self.bands).map(|band| [start(band), start(band + 1) - 1]);
        bands.collect()
    }

    /// The values out of range, by name and with what is expected.
    pub(crate) fn check(&self, timesteps: usize) -> Result<(), String> {
        let shares = [
            ("min_diversity", self.min_diversity),
            ("min_score", self.min_score),
        ];
        for (name, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("watch.{name} = {value}: expected 0 to 1"));
            }
        }
        for (name, value, least, most) in [
            ("every", self.every as usize, 1, usize::MAX),
            ("images", self.images, 2, usize::MAX),
            ("bands", self.bands, 1, timesteps),
        ] {
            if value < least {
                return Err(format!("watch.{name} = {value}: expected at least {least}"));
            }
            if value > most {
                return Err(format!(
                    "watch.{name} = {value}: expected at most {most}, the number of timesteps"
                ));
            }
        }
        Ok(())
    }
}

/// A report of the watcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WatchReport {
    /// Number of steps done.
    pub step: u64,
    /// Mean cosine of CLIP's embeddings of images and prompts, if the networks include a CLIP.
    pub clip_score: Option<f64>,
    /// Mean over the prompts of the distance between two images of a prompt ([`pairwise_distance`]).
    pub diversity: f64,
    /// Distance of the teachers by timesteps.
    pub teacher_distance: Vec<Band>,
    /// Alarms.
    pub alarms: Vec<Alarm>,
}

/// A band of timesteps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Band {
    /// First and last timestep.
    pub timesteps: [usize; 2],
    /// [`teacher_distance`] in the middle of the band, averaged over the prompts.
    pub distance: f64,
}

/// A value below its bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Alarm {
    /// `diversity` or `CLIP score`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The bound.
    pub bound: f64,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, value, bound } = self;
        write!(f, "the {name} is {value:.3}, below the bound of {bound:.3}")
    }
}

impl WatchReport {
    /// The alarms of a report, given the first report; a NaN is an alarm, too.
    pub(crate) fn alarms_since(&self, first: &Self, recipe: &WatchRecipe) -> Vec<Alarm> {
        let score = self.clip_score.zip(first.clip_score);
        let score = score.map(|(value, first)| ("CLIP score", value, first * recipe.min_score));
        let bound = first.diversity * recipe.min_diversity;
        let values = [Some(("diversity", self.diversity, bound)), score];
        let is_below = |value: f64, bound: f64| value < bound || value.is_nan();
        let alarms = values.into_iter().flatten();
        alarms
            .filter(|&(_, value, bound)| is_below(value, bound))
            .map(|(name, value, bound)| Alarm {
                name: name.to_owned(),
                value,
                bound,
            })
            .collect()
    }
}

/// Latents of the first image of each prompt: `[prompts, channels, height, width]`, scaled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Strip {
    /// The student's.
    pub student: Tensor<4>,
    /// The teacher's estimate of them, x̂₀, after noise was added; without guidance.
    pub teacher: Tensor<4>,
    /// The fake teacher's estimate of them.
    pub fake: Tensor<4>,
    /// Timestep of the noise, in the middle of those of the recipe.
    pub timestep: usize,
}

/// Mean distance between two latents of a batch: the root of the mean squared difference of their elements. 0 if all are the
/// same, and √2 for independent unit normal noise.
///
/// # Shapes
///
/// - latents: `[batch, channels, height, width]`, a batch of at least 2
/// - returns: `[1]`
pub fn pairwise_distance(latents: Tensor<4>) -> Tensor<1> {
    let batch = latents.dims()[0];
    let flat = latents.flatten::<2>(1, 3);
    let difference = flat.clone().unsqueeze_dim::<3>(0) - flat.unsqueeze_dim::<3>(1);
    let distances = difference.powi_scalar(2).mean_dim(2).sqrt();
    distances.sum() / (batch * (batch - 1)) as f64
}

/// Mean squared difference of the noise that the two teachers predict at a timestep, without guidance.
///
/// # Shapes
///
/// - latents, renoise: `[batch, channels, height, width]`, without autodiff
/// - context: `[batch, length, width]`
/// - returns: `[1]`
pub fn teacher_distance(
    teachers: Teachers<'_>,
    latents: Tensor<4>,
    renoise: Tensor<4>,
    timestep: usize,
    context: Tensor<3>,
) -> Tensor<1> {
    let schedule = teachers.schedule;
    let timesteps = vec![timestep; latents.dims()[0]];
    let noisy = schedule.add_noise(latents, renoise, &timesteps);
    let [teacher, fake] = [teachers.teacher, teachers.fake].map(|network| {
        predicted_noise(
            network,
            schedule,
            noisy.clone(),
            &timesteps,
            context.clone(),
        )
    });
    (teacher - fake).powi_scalar(2).mean()
}

/// `watch.jsonl`, one line of JSON for each report.
pub(crate) struct WatchLog {
    path: PathBuf,
    file: File,
    first: Option<WatchReport>,
}

impl std::fmt::Debug for WatchLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl WatchLog {
    /// Opens the log and removes what a killed run wrote after its last snapshot.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self, Error> {
        let path = folder.join("watch.jsonl");
        let io = |cause| FileError::write(&path, cause);
        let mut first = None;
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(io)?;
            let reports = text.lines().map_while(|line| {
                let report: WatchReport = serde_json::from_str(line).ok()?;
                (report.step <= step).then_some((line, report))
            });
            let reports: Vec<_> = reports.collect();
            write_atomically(&path, |file| {
                reports
                    .iter()
                    .try_for_each(|(line, _)| writeln!(file, "{line}"))
            })?;
            first = reports.into_iter().next().map(|(_, report)| report);
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(io)?;
        Ok(Self { path, file, first })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Adds alarms to a report.
    pub(crate) fn judge(&self, report: &mut WatchReport, recipe: &WatchRecipe) {
        let first = self.first.as_ref().unwrap_or(report);
        report.alarms = report.alarms_since(first, recipe);
    }

    /// Writes a report.
    pub(crate) fn write(&mut self, report: &WatchReport) -> Result<(), Error> {
        self.first.get_or_insert_with(|| report.clone());
        let line = serde_json::to_string(&report).expect("a report is plain numbers");
        let written = writeln!(self.file, "{line}");
        Ok(written.map_err(|cause| FileError::write(&self.path, cause))?)
    }
}

/// The mean of some scalars of a report.
pub(crate) fn mean(values: Vec<Tensor<1>>) -> Tensor<1> {
    Tensor::cat(values, 0).mean()
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, values};

    use super::*;

    fn report(diversity: f64, clip_score: Option<f64>) -> WatchReport {
        WatchReport {
            step: 3,
            clip_score,
            diversity,
            teacher_distance: Vec::new(),
            alarms: Vec::new(),
        }
    }

    #[test]
    fn a_value_below_its_share_of_the_first_one_is_an_alarm() {
        let recipe = WatchRecipe::default();
        let first = report(1.0, Some(0.3));
        let names = |diversity, score| {
            let alarms = report(diversity, score).alarms_since(&first, &recipe);
            alarms
                .into_iter()
                .map(|alarm| alarm.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(0.5, Some(0.225)), [""; 0]);
        assert_eq!(names(0.49, Some(0.3)), ["diversity"]);
        assert_eq!(names(2.0, Some(0.22)), ["CLIP score"]);
        assert_eq!(names(f64::NAN, Some(f64::NAN)), ["diversity", "CLIP score"]);
        assert_eq!(names(1.0, None), [""; 0]);
        let text = report(0.4, None).alarms_since(&first, &recipe)[0].to_string();
        assert_eq!(text, "the diversity is 0.400, below the bound of 0.500");
    }

    #[test]
    fn bands_cover_the_timesteps_without_gaps() {
        let mut recipe = WatchRecipe::default();
        assert_eq!(
            recipe.bands(20, 980),
            [[20, 259], [260, 499], [500, 739], [740, 980]]
        );
        recipe.bands = 3;
        assert_eq!(recipe.bands(0, 4), [[0, 0], [1, 2], [3, 4]]);
    }

    /// Distances 1, 2 and √((0 + 1)/2): elements (0, 0), (1, 1), (2, 2) and a second coordinate that differs.
    #[test]
    fn the_distance_is_the_mean_over_all_pairs() {
        let latents =
            Tensor::<4>::from_data([[[[0.0, 0.0]]], [[[1.0, 1.0]]], [[[2.0, 2.0]]]], &device());
        assert_eq!(values(pairwise_distance(latents)), [4.0 / 3.0]);
        let latents = Tensor::<4>::from_data([[[[0.0, 0.0]]], [[[0.0, 1.0]]]], &device());
        assert_eq!(values(pairwise_distance(latents)), [0.5f32.sqrt()]);
    }

    #[test]
    fn the_log_keeps_the_first_look_and_those_up_to_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = WatchRecipe::default();
        let mut log = WatchLog::open(folder.path(), 0).unwrap();
        assert!(log.is_empty());
        for step in [0, 2, 4] {
            let mut look = report(1.0 / (step + 1) as f64, None);
            look.step = step;
            log.judge(&mut look, &recipe);
            log.write(&look).unwrap();
            assert_eq!(look.alarms.len(), usize::from(step > 1));
        }
        let path = folder.path().join("watch.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.clone() + "{\"step\": 5").unwrap();
        let log = WatchLog::open(folder.path(), 2).unwrap();
        assert_eq!(log.first.unwrap().diversity, 1.0);
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            kept.lines().collect::<Vec<_>>(),
            text.lines().take(2).collect::<Vec<_>>()
        );
    }
}
