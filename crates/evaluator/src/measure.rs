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
                if let (Measure::ClipScore { prefix, .. }, Some(prompts)) = (measure, prompts)
                    && measure.network() == name
                {
                    assert_eq!(prompts.len(), pictures.len(), "a prompt for each picture");
                    let prompts = prompts.iter().map(|prompt| format!("{prefix}{prompt}"));
                    let texts = network.texts(&prompts.collect::<Vec<_>>());
                    let texts = texts.ok_or_else(|| Error::Unable {
                        network: name.to_owned(),
                        what: "cannot read prompts",
                    })?;
                    let cosines = (tensor.clone() * texts).sum_dim(1);
                    seen.insert(score_key(measure), rows(cosines)?);
                }
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
                per_prompt,
                resamples,
            };
            match measure {
                Measure::InceptionScore { network, splits } => {
                    let network = self.get(protocol, network)?;
                    let logits = logits(network, sets.generated()?, device)?;
                    let logits = logits.ok_or_else(|| Error::Unable {
                        network: measure.network().to_owned(),
                        what: "knows no classes",
                    })?;
                    measured
                        .values
                        .push(sets.inception_score(&logits, *splits)?);
                }
                Measure::ClipScore { scale, .. } => {
                    let scores = sets.scores(*scale)?;
                    measured.values.push(sets.mean(&scores));
                    measured.scores.get_or_insert(scores);
                }
                Measure::NearestNeighbour { .. } => {
                    measured.nearest = nearest(sets.generated()?, sets.features()?)?;
                    let distances = measured.nearest.iter().map(|(_, distance)| *distance);
                    let distances: Vec<_> = distances.collect();
                    measured.values.push(sets.mean(&distances));
                }
                Measure::FrechetDistance { .. } => {
                    measured.values.push(sets.frechet_distance()?);
                    measured.notes.extend(sets.too_few()?);
                }
                _ => measured.values.extend(sets.values()?),
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
    per_prompt: usize,
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
        let Reference { seen, statistics } = self.reference;
        match (seen.get(network), statistics.get(network)) {
            (Some(features), _) => Ok(Moments::of(features).gaussian()?),
            (None, Some(gaussian)) => Ok(gaussian.clone()),
            (None, None) => Err(self.lacks("a reference")),
        }
    }

    fn value(&self, name: &str, value: f64, standard_error: Option<f64>) -> Value {
        Value {
            name: name.to_owned(),
            network: self.measure.network().to_owned(),
            value,
            standard_error,
        }
    }

    /// A value with the measure's own name.
    fn named(&self, value: f64, standard_error: Option<f64>) -> Value {
        self.value(&self.measure.to_string(), value, standard_error)
    }

    /// Mean and standard error of what each picture or prompt has.
    fn mean(&self, values: &[f64]) -> Value {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
        self.named(mean, error)
    }

    /// By the bootstrap over the generated pictures.
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

    fn frechet_distance(&self) -> Result<Value, Error> {
        let (features, gaussian) = (self.generated()?, self.gaussian()?);
        let distance =
            |features: &Features| frechet_distance(&gaussian, &Moments::of(features).gaussian()?);
        let error = self.error(|rows| distance(&features.select(rows)))?;
        Ok(self.named(distance(features)?, error))
    }

    /// A note for each set that has no more pictures than features.
    fn too_few(&self) -> Result<Vec<String>, Error> {
        let (measure, width) = (self.measure, self.generated()?.width());
        let reference = self.reference.seen.get(measure.network());
        let counts = [
            ("generated", Some(self.generated()?.len())),
            ("reference", reference.map(Features::len)),
        ];
        let note = |(which, count): (&str, Option<usize>)| {
            let count = count.filter(|count| *count <= width)?;
            Some(format!(
                "{measure}: {count} {which} pictures for {width} features leave the covariance singular; the distance is far from that of more"
            ))
        };
        Ok(counts.into_iter().filter_map(note).collect())
    }

    /// Measures that are of features alone.
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
                let reference = self.features()?;
                let found = precision_recall(reference, generated, *k)?;
                vec![
                    self.share("precision", found.precision, generated),
                    self.share("recall", found.recall, reference),
                ]
            }
            Measure::DensityCoverage { k, .. } => {
                let reference = self.features()?;
                let found = density_coverage(reference, generated, *k)?;
                vec![
                    self.value("density", found.density, None),
                    self.share("coverage", found.coverage, reference),
                ]
            }
            Measure::GaussianDistance { sigma, scale, .. } => {
                let reference = self.features()?;
                let distance = |features: &Features| gaussian_mmd(reference, features, *sigma);
                let error = self.error(|rows| distance(&generated.select(rows)))?;
                let error = error.map(|error| scale * error);
                vec![self.named(scale * distance(generated)?, error)]
            }
            Measure::Diversity { .. } => vec![self.mean(&diversity(generated, self.per_prompt)?)],
            measure => unreachable!("{measure} is of more than features"),
        })
    }

    fn share(&self, name: &str, share: f64, of: &Features) -> Value {
        let error = (share * (1.0 - share) / of.len() as f64).sqrt();
        self.value(name, share, Some(error))
    }

    fn kernel_distance(&self, subsets: usize, size: usize) -> Result<Value, Error> {
        let (generated, reference) = (self.generated()?, self.features()?);
        let size = generated.len().min(reference.len()).min(size);
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mut draw = |from: &Features| subset(from.len(), size, &mut rng);
        let subsets = (0..subsets).map(|_| (draw(reference), draw(generated)));
        let subsets: Vec<_> = subsets.collect();
        let (mean, deviation) = kernel_distance(reference, generated, &subsets)?;
        // The deviation is that of sets of `size`; of sets of all there are it is less by the root of their number. Where
        // a subset is all of them, it says nothing.
        let error = deviation * (size as f64 / generated.len() as f64).sqrt();
        Ok(self.named(mean, (size < generated.len()).then_some(error)))
    }

    fn inception_score(&self, logits: &Features, splits: usize) -> Result<Value, Error> {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let shuffled = logits.select(&subset(logits.len(), logits.len(), &mut rng));
        let (mean, deviation) = inception_score(&shuffled, splits)?;
        Ok(self.named(mean, Some(deviation / (splits as f64).sqrt())))
    }

    fn scores(&self, scale: f64) -> Result<Vec<f64>, Error> {
        let cosines = self.generated.get(&score_key(self.measure));
        let cosines = cosines.ok_or_else(|| self.lacks("prompts"))?;
        let score = |cosine: &f32| scale * f64::from(*cosine);
        Ok(cosines.values().iter().map(score).collect())
    }
}
