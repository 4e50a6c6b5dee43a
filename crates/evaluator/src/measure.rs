use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use swiftbrush_metrics::{
    Features, Gaussian, Moments, density_coverage, diversity, frechet_distance, frechet_infinity,
    gaussian_mmd, inception_score, kernel_distance, nearest, precision_recall, standard_error,
    subset,
};

use crate::networks::rows;
use crate::{Error, FeatureNetwork, Measure, Protocol};

/// What all that is drawn by chance follows from: subsets, resamples, order.
const SEED: u64 = 0;
/// Pictures whose logits are taken at once.
const ROWS: usize = 1024;

/// Networks by the names that protocols call them by.
#[derive(Default)]
pub struct Networks(BTreeMap<String, Box<dyn FeatureNetwork>>);

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What networks have seen in pictures, a row for each, by network; and scores of pictures and their prompts, by measure.
pub type Seen = BTreeMap<String, Features>;

impl Networks {
    /// The same with one more, or another in its place.
    pub fn with(mut self, name: &str, network: Box<dyn FeatureNetwork>) -> Self {
        self.0.insert(name.to_owned(), network);
        self
    }

    fn get(&self, protocol: &Protocol, name: &str) -> Result<&dyn FeatureNetwork, Error> {
        let network = self.0.get(name);
        network
            .map(AsRef::as_ref)
            .ok_or_else(|| Error::MissingNetwork {
                protocol: protocol.name.clone(),
                network: name.to_owned(),
            })
    }

    /// Looks at pictures, which are as [`Preparation`](crate::Preparation) has left them, and at their prompts, if there
    /// are any.
    ///
    /// # Errors
    ///
    /// If a network is missing, cannot read though it would have to, or makes a NaN.
    ///
    /// # Panics
    ///
    /// If there are not as many prompts as pictures.
    pub fn look(
        &self,
        protocol: &Protocol,
        pictures: &[RgbImage],
        prompts: Option<&[String]>,
    ) -> Result<Seen, Error> {
        let mut seen = Seen::new();
        for name in protocol.networks() {
            let network = self.get(protocol, name)?;
            let tensor = network.features(pictures);
            for measure in &protocol.measures {
                let (
                    Measure::ClipScore {
                        network: of,
                        prefix,
                        ..
                    },
                    Some(prompts),
                ) = (measure, prompts)
                else {
                    continue;
                };
                if of != name {
                    continue;
                }
                assert_eq!(prompts.len(), pictures.len(), "a prompt for each picture");
                let prompts: Vec<_> = prompts
                    .iter()
                    .map(|prompt| format!("{prefix}{prompt}"))
                    .collect();
                let texts = network.texts(&prompts).ok_or_else(|| Error::Unable {
                    network: name.to_owned(),
                    what: "cannot read prompts",
                })?;
                let cosines = (tensor.clone() * texts).sum_dim(1);
                seen.insert(score_key(measure), rows(cosines)?);
            }
            seen.insert(name.to_owned(), rows(tensor)?);
        }
        Ok(seen)
    }

    /// Computes what a protocol asks for.
    ///
    /// - resamples: of the generated pictures, for the standard errors of distances; with less than two there are none
    /// - per_prompt: pictures of a prompt, which follow one another
    ///
    /// # Errors
    ///
    /// If something that a measure needs is missing, or cannot be compared.
    pub fn measure(
        &self,
        protocol: &Protocol,
        generated: &Seen,
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
                resamples,
            };
            let mut push = |name: String, value: f64, standard_error: Option<f64>| {
                measured.values.push(Value {
                    name,
                    network: measure.network().to_owned(),
                    value,
                    standard_error,
                });
            };
            let name = measure.to_string();
            match measure {
                Measure::FrechetDistance { .. } => {
                    let (features, gaussian) = (sets.generated()?, sets.gaussian()?);
                    let width = features.width();
                    let distance = |features: &Features| {
                        frechet_distance(&gaussian, &Moments::of(features).gaussian()?)
                    };
                    push(
                        name.clone(),
                        distance(features)?,
                        sets.error(|rows| distance(&features.select(rows)))?,
                    );
                    let fewer = [
                        ("generated", Some(features.len())),
                        ("reference", sets.reference.pictures(measure)),
                    ];
                    for (which, count) in fewer {
                        if let Some(count) = count.filter(|count| *count <= width) {
                            measured.notes.push(format!(
                                "{name}: {count} {which} pictures for {width} features leave the covariance singular; the distance is far from that of more"
                            ));
                        }
                    }
                }
                Measure::FrechetInfinity {
                    smallest, points, ..
                } => {
                    let value = frechet_infinity(
                        &sets.gaussian()?,
                        sets.generated()?,
                        *smallest,
                        *points,
                        SEED,
                    )?;
                    push(name, value, None);
                }
                Measure::KernelDistance { subsets, size, .. } => {
                    let (generated, reference) = (sets.generated()?, sets.features()?);
                    let size = generated.len().min(reference.len()).min(*size);
                    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
                    let subsets: Vec<_> = (0..*subsets)
                        .map(|_| {
                            let first = subset(reference.len(), size, &mut rng);
                            (first, subset(generated.len(), size, &mut rng))
                        })
                        .collect();
                    let (mean, deviation) = kernel_distance(reference, generated, &subsets)?;
                    // The deviation is that of sets of `size`; of sets of all there are it is less by the root of their number.
                    // Where a subset is all of them, it says nothing.
                    let error = deviation * (size as f64 / generated.len() as f64).sqrt();
                    push(name, mean, (size < generated.len()).then_some(error));
                }
                Measure::PrecisionRecall { k, .. } => {
                    let found = precision_recall(sets.features()?, sets.generated()?, *k)?;
                    push(
                        "precision".to_owned(),
                        found.precision,
                        Some(of_share(found.precision, sets.generated()?)),
                    );
                    push(
                        "recall".to_owned(),
                        found.recall,
                        Some(of_share(found.recall, sets.features()?)),
                    );
                }
                Measure::DensityCoverage { k, .. } => {
                    let found = density_coverage(sets.features()?, sets.generated()?, *k)?;
                    push("density".to_owned(), found.density, None);
                    push(
                        "coverage".to_owned(),
                        found.coverage,
                        Some(of_share(found.coverage, sets.features()?)),
                    );
                }
                Measure::InceptionScore { network, splits } => {
                    let features = sets.generated()?;
                    let network = self.get(protocol, network)?;
                    let logits =
                        logits(network, features, device)?.ok_or_else(|| Error::Unable {
                            network: measure.network().to_owned(),
                            what: "knows no classes",
                        })?;
                    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
                    let shuffled = logits.select(&subset(logits.len(), logits.len(), &mut rng));
                    let (mean, deviation) = inception_score(&shuffled, *splits)?;
                    push(name, mean, Some(deviation / (*splits as f64).sqrt()));
                }
                Measure::ClipScore { scale, .. } => {
                    let cosines = generated
                        .get(&score_key(measure))
                        .ok_or_else(|| sets.lacks("prompts"))?;
                    let scores: Vec<_> = cosines
                        .values()
                        .iter()
                        .map(|cosine| scale * f64::from(*cosine))
                        .collect();
                    let (mean, error) = mean(&scores);
                    push(name, mean, error);
                    measured.scores.get_or_insert(scores);
                }
                Measure::GaussianDistance { sigma, scale, .. } => {
                    let (features, reference) = (sets.generated()?, sets.features()?);
                    let value = gaussian_mmd(reference, features, *sigma)?;
                    let error =
                        sets.error(|rows| gaussian_mmd(reference, &features.select(rows), *sigma))?;
                    push(name, scale * value, error.map(|error| scale * error));
                }
                Measure::Diversity { .. } => {
                    let (mean, error) = mean(&diversity(sets.generated()?, per_prompt)?);
                    push(name, mean, error);
                }
                Measure::NearestNeighbour { .. } => {
                    let found = nearest(sets.generated()?, sets.features()?)?;
                    let distances: Vec<_> = found.iter().map(|(_, distance)| *distance).collect();
                    let (mean, error) = mean(&distances);
                    push(name, mean, error);
                    measured.nearest = found;
                }
            }
        }
        Ok(measured)
    }
}

fn score_key(measure: &Measure) -> String {
    match measure {
        Measure::ClipScore {
            network, prefix, ..
        } => format!("score of {network} with {prefix:?}"),
        _ => measure.to_string(),
    }
}

fn logits(
    network: &dyn FeatureNetwork,
    features: &Features,
    device: &Device,
) -> Result<Option<Features>, Error> {
    let mut all: Option<Features> = None;
    for block in features.values().chunks(ROWS * features.width()) {
        let shape = [block.len() / features.width(), features.width()];
        let block = Tensor::<2>::from_data(TensorData::new(block.to_vec(), shape), device);
        let Some(block) = network.logits(block) else {
            return Ok(None);
        };
        let block = rows(block)?;
        match &mut all {
            None => all = Some(block),
            Some(all) => all.append(&block)?,
        }
    }
    Ok(all)
}

/// What generated pictures are compared with.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// What networks have seen in its pictures.
    pub seen: Seen,
    /// Means and covariances by network, where there are no features.
    pub statistics: BTreeMap<String, Gaussian>,
}

impl Reference {
    fn pictures(&self, measure: &Measure) -> Option<usize> {
        self.seen.get(measure.network()).map(Features::len)
    }
}

/// What was computed.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The numbers, in the order of the protocol.
    pub values: Vec<Value>,
    /// What has to be said beside them.
    pub notes: Vec<String>,
    /// The score of each picture and its prompt, of the first measure that gives one.
    pub scores: Option<Vec<f64>>,
    /// The nearest picture of the reference for each, and its distance, if the protocol asks for it.
    pub nearest: Vec<(usize, f64)>,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// What it is.
    pub name: String,
    /// Whose features it is of.
    pub network: String,
    /// The number.
    pub value: f64,
    /// Its standard error, as far as that is from the choice of pictures; an interval is ± 1.96 of it.
    pub standard_error: Option<f64>,
}

/// What a measure is of.
struct Sets<'a> {
    measure: &'a Measure,
    generated: &'a Seen,
    reference: &'a Reference,
    resamples: usize,
}

impl Sets<'_> {
    fn lacks(&self, what: &str) -> Error {
        Error::Missing {
            measure: self.measure.to_string(),
            what: what.to_owned(),
        }
    }

    fn generated(&self) -> Result<&Features, Error> {
        let features = self.generated.get(self.measure.network());
        features.ok_or_else(|| self.lacks("generated pictures"))
    }

    fn features(&self) -> Result<&Features, Error> {
        let features = self.reference.seen.get(self.measure.network());
        features.ok_or_else(|| {
            self.lacks("the pictures of the reference: means and covariances alone do not tell it")
        })
    }

    fn gaussian(&self) -> Result<Gaussian, Error> {
        let network = self.measure.network();
        match (
            self.reference.seen.get(network),
            self.reference.statistics.get(network),
        ) {
            (Some(features), _) => Ok(Moments::of(features).gaussian()?),
            (None, Some(gaussian)) => Ok(gaussian.clone()),
            (None, None) => Err(self.lacks("a reference")),
        }
    }

    fn error(
        &self,
        statistic: impl FnMut(&[usize]) -> Result<f64, swiftbrush_metrics::Error>,
    ) -> Result<Option<f64>, Error> {
        if self.resamples < 2 {
            return Ok(None);
        }
        let count = self.generated()?.len();
        Ok(Some(standard_error(
            count,
            self.resamples,
            SEED,
            statistic,
        )?))
    }
}

/// The standard error of a share of so many.
fn of_share(share: f64, of: &Features) -> f64 {
    (share * (1.0 - share) / of.len() as f64).sqrt()
}

/// Mean and standard error.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
    (mean, error)
}
