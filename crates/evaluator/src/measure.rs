use std::collections::BTreeMap;

use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use swiftbrush_metrics::{
    Features, Gaussian, Groups, Moments, density_coverage, diversity, frechet_distance,
    frechet_infinity, gaussian_mmd, half_sample_errors, inception_score, kernel_distance, nearest,
    precision_recall, standard_error, subset,
};

use crate::extract::score_key;
use crate::{Error, FeatureSets, Measure, Networks, Protocol};

/// The seed of all random draws: subsets, resamples and shuffles.
const SEED: u64 = 0;

/// The set that generated images are compared with.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// Features of its images.
    pub features: FeatureSets,
    /// Means and covariances by network, if there are no features.
    pub statistics: BTreeMap<String, Gaussian>,
}

/// Results of a protocol's measures.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Values in the order of the protocol.
    pub values: Vec<Value>,
    /// Caveats to report with the values.
    pub notes: Vec<String>,
    /// The score of each image and its prompt, from the first measure that has one.
    pub scores: Option<Vec<f64>>,
    /// The nearest reference image of each generated image and its distance, if the protocol measures it.
    pub nearest: Vec<(usize, f64)>,
}

/// A value with its name and error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Name of the measure.
    pub name: String,
    /// Name of the feature network.
    pub network: String,
    /// The value.
    pub value: f64,
    /// Standard error due to the choice of prompts and images; a 95 % interval is ± 1.96 standard errors.
    pub standard_error: Option<f64>,
}

impl Networks {
    /// Computes a protocol's measures.
    ///
    /// - per_prompt: consecutive images of each prompt, which are resampled together
    /// - resamples: number of resamples for standard errors of distances and overlaps; fewer than two compute none
    ///
    /// # Errors
    ///
    /// If an input of a measure is missing, or sets cannot be compared.
    pub fn measure(
        &self,
        protocol: &Protocol,
        generated: &FeatureSets,
        reference: &Reference,
        per_prompt: usize,
        resamples: usize,
        device: &Device,
    ) -> Result<Measured, Error> {
        let mut measured = Measured::default();
        for measure in &protocol.measures {
            let sets = Sets {
                measure,
                generated,
                reference,
                per_prompt,
                resamples,
            };
            match measure {
                Measure::InceptionScore { network, splits } => {
                    let logits = self.logits(protocol, network, sets.generated()?, device)?;
                    let score = sets.inception_score(&logits, *splits)?;
                    measured.values.push(score);
                }
                Measure::ClipScore { scale, .. } => {
                    let scores = sets.scores(*scale)?;
                    measured.values.push(sets.mean(&scores, per_prompt)?);
                    measured.scores.get_or_insert(scores);
                }
                Measure::NearestNeighbour { .. } => {
                    measured.nearest = nearest(sets.generated()?, sets.reference()?)?;
                    let distances = measured.nearest.iter().map(|(_, distance)| *distance);
                    let distances: Vec<_> = distances.collect();
                    measured.values.push(sets.mean(&distances, per_prompt)?);
                }
                Measure::FrechetDistance { .. } => {
                    measured.values.push(sets.frechet_distance()?);
                    measured.notes.extend(sets.singular()?);
                }
                _ => measured.values.extend(sets.values()?),
            }
        }
        Ok(measured)
    }
}

/// A measure and the sets it compares.
struct Sets<'a> {
    measure: &'a Measure,
    generated: &'a FeatureSets,
    reference: &'a Reference,
    per_prompt: usize,
    resamples: usize,
}

impl Sets<'_> {
    fn lacks(&self, needed: &str) -> Error {
        Error::Missing {
            measure: self.measure.to_string(),
            needed: needed.to_owned(),
        }
    }

    fn generated(&self) -> Result<&Features, Error> {
        let features = self.generated.get(self.measure.network());
        features.ok_or_else(|| self.lacks("features of the generated images"))
    }

    fn reference(&self) -> Result<&Features, Error> {
        let features = self.reference.features.get(self.measure.network());
        features.ok_or_else(|| {
            self.lacks("the images of the reference; means and covariances are not enough")
        })
    }

    fn gaussian(&self) -> Result<Gaussian, Error> {
        let network = self.measure.network();
        let Reference {
            features,
            statistics,
        } = self.reference;
        match (features.get(network), statistics.get(network)) {
            (Some(features), _) => Ok(Moments::of(features).gaussian()?),
            (None, Some(gaussian)) => Ok(gaussian.clone()),
            (None, None) => Err(self.lacks("a reference")),
        }
    }

    /// Generated images by prompt.
    fn prompts(&self) -> Result<Groups, Error> {
        Ok(Groups::new(self.generated()?.len(), self.per_prompt)?)
    }

    fn value(&self, name: &str, value: f64, standard_error: Option<f64>) -> Value {
        Value {
            name: name.to_owned(),
            network: self.measure.network().to_owned(),
            value,
            standard_error,
        }
    }

    /// A value with the name of the measure.
    fn named(&self, value: f64, standard_error: Option<f64>) -> Value {
        self.value(&self.measure.to_string(), value, standard_error)
    }

    /// The mean of values in groups of `per_group`, and its standard error over groups.
    fn mean(&self, values: &[f64], per_group: usize) -> Result<Value, Error> {
        Groups::new(values.len(), per_group)?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let groups: Vec<_> = values.chunks(per_group).map(mean).collect();
        let (count, mean) = (groups.len() as f64, mean(&groups));
        let squares: f64 = groups.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (groups.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
        Ok(self.named(mean, error))
    }

    /// Bootstrap over prompts.
    fn bootstrap(
        &self,
        statistic: impl FnMut(&[usize]) -> Result<f64, swiftbrush_metrics::Error>,
    ) -> Result<Option<f64>, Error> {
        if self.resamples < 2 {
            return Ok(None);
        }
        let error = standard_error(self.prompts()?, self.resamples, SEED, statistic)?;
        Ok(Some(error))
    }

    fn frechet_distance(&self) -> Result<Value, Error> {
        let (features, gaussian) = (self.generated()?, self.gaussian()?);
        let distance =
            |features: &Features| frechet_distance(&gaussian, &Moments::of(features).gaussian()?);
        let error = self.bootstrap(|rows| distance(&features.select(rows)))?;
        Ok(self.named(distance(features)?, error))
    }

    /// Adds a note for each set with no more images than features.
    fn singular(&self) -> Result<Vec<String>, Error> {
        let (measure, width) = (self.measure, self.generated()?.width());
        let reference = self.reference.features.get(measure.network());
        let counts = [
            ("generated", Some(self.generated()?.len())),
            ("reference", reference.map(Features::len)),
        ];
        let note = |(which, count): (&str, Option<usize>)| {
            let count = count.filter(|count| *count <= width)?;
            Some(format!(
                "{measure}: {count} {which} pictures for {width} features give a singular covariance; the distance is far from that of larger sets"
            ))
        };
        Ok(counts.into_iter().filter_map(note).collect())
    }

    /// Computes measures that need only features.
    fn values(&self) -> Result<Vec<Value>, Error> {
        let generated = self.generated()?;
        Ok(match self.measure {
            Measure::FrechetInfinity {
                smallest, points, ..
            } => {
                let gaussian = self.gaussian()?;
                let value = frechet_infinity(&gaussian, generated, *smallest, *points, SEED)?;
                vec![self.named(value, None)]
            }
            Measure::KernelDistance { subsets, size, .. } => {
                vec![self.kernel_distance(*subsets, *size)?]
            }
            Measure::PrecisionRecall { k, .. } => {
                self.overlap(*k, ["precision", "recall"], |real, generated| {
                    let found = precision_recall(real, generated, *k)?;
                    Ok([found.precision, found.recall])
                })?
            }
            Measure::DensityCoverage { k, .. } => {
                self.overlap(*k, ["density", "coverage"], |real, generated| {
                    let found = density_coverage(real, generated, *k)?;
                    Ok([found.density, found.coverage])
                })?
            }
            Measure::GaussianDistance { sigma, scale, .. } => {
                let reference = self.reference()?;
                let distance = |features: &Features| gaussian_mmd(reference, features, *sigma);
                let error = self.bootstrap(|rows| distance(&generated.select(rows)))?;
                let error = error.map(|error| scale * error);
                vec![self.named(scale * distance(generated)?, error)]
            }
            Measure::Diversity { .. } => {
                vec![self.mean(&diversity(generated, self.per_prompt)?, 1)?]
            }
            measure => unreachable!("{measure} needs more than features"),
        })
    }

    /// Computes statistics of `k` nearest neighbours, with errors over halves of both sets if these are large enough.
    fn overlap(
        &self,
        k: usize,
        names: [&str; 2],
        statistics: impl Fn(&Features, &Features) -> Result<[f64; 2], swiftbrush_metrics::Error>,
    ) -> Result<Vec<Value>, Error> {
        let (reference, generated) = (self.reference()?, self.generated()?);
        let (real, prompts) = (Groups::single(reference.len()), self.prompts()?);
        let half = (reference.len() / 2).min(prompts.count() / 2 * self.per_prompt);
        let errors = (self.resamples >= 2 && half > k).then(|| {
            half_sample_errors(real, prompts, self.resamples, SEED, |a, b| {
                statistics(&reference.select(a), &generated.select(b))
            })
        });
        let errors = errors.transpose()?;
        let values = names.into_iter().zip(statistics(reference, generated)?);
        let value = |(index, (name, value)): (usize, _)| {
            self.value(name, value, errors.map(|errors| errors[index]))
        };
        Ok(values.enumerate().map(value).collect())
    }

    fn kernel_distance(&self, subsets: usize, size: usize) -> Result<Value, Error> {
        let (generated, reference) = (self.generated()?, self.reference()?);
        let size = generated.len().min(reference.len()).min(size);
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mut draw = |from: &Features| subset(from.len(), size, &mut rng);
        let rows: Vec<_> = (0..subsets)
            .map(|_| (draw(reference), draw(generated)))
            .collect();
        let (mean, mut deviation) = kernel_distance(reference, generated, &rows)?;
        let whole_prompts = size / self.per_prompt;
        if self.per_prompt > 1 && whole_prompts * self.per_prompt > 1 {
            // Subsets of whole prompts vary more.
            let prompts = self.prompts()?;
            let by_prompt = rows
                .into_iter()
                .map(|(reference, _)| (reference, prompts.subset(whole_prompts, &mut rng)));
            deviation = kernel_distance(reference, generated, &by_prompt.collect::<Vec<_>>())?.1;
        }
        // This is the deviation for sets of `size`; for the whole set it is smaller by the square root of the ratio of the sizes.
        // If each subset is the whole set, it means nothing.
        let error = deviation * (size as f64 / generated.len() as f64).sqrt();
        Ok(self.named(mean, (size < generated.len()).then_some(error)))
    }

    fn inception_score(&self, logits: &Features, splits: usize) -> Result<Value, Error> {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let shuffled = logits.select(&subset(logits.len(), logits.len(), &mut rng));
        let (mean, mut deviation) = inception_score(&shuffled, splits)?;
        if self.per_prompt > 1 {
            let prompts = self.prompts()?;
            let by_prompt = logits.select(&prompts.subset(prompts.count(), &mut rng));
            deviation = inception_score(&by_prompt, splits)?.1;
        }
        Ok(self.named(mean, Some(deviation / (splits as f64).sqrt())))
    }

    fn scores(&self, scale: f64) -> Result<Vec<f64>, Error> {
        let cosines = self.generated.get(&score_key(self.measure));
        let cosines = cosines.ok_or_else(|| self.lacks("prompts"))?;
        let score = |cosine: &f32| scale * f64::from(*cosine);
        Ok(cosines.values().iter().map(score).collect())
    }
}
