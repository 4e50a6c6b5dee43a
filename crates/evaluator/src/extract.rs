use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use swiftbrush_metrics::Features;

use crate::networks::to_features;
use crate::{Error, FeatureNetwork, Measure, Protocol};

/// Number of rows whose logits are computed at once.
const ROWS: usize = 1024;

/// Feature networks, by their names in protocols.
#[derive(Default)]
pub struct Networks(BTreeMap<String, Box<dyn FeatureNetwork>>);

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Features of a set of images by network, one row per image, and scores of images and their prompts by measure.
pub type FeatureSets = BTreeMap<String, Features>;

impl Networks {
    /// Adds a network, or replaces the one with the same name.
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

    /// Computes the features of generated images after their [`Preparation`](crate::Preparation), and their CLIP scores if there
    /// are prompts, one for each image.
    ///
    /// # Errors
    ///
    /// If a network is missing, cannot encode the prompts, or produces a NaN.
    ///
    /// # Panics
    ///
    /// If the numbers of prompts and images differ.
    #[track_caller]
    pub fn extract(
        &self,
        protocol: &Protocol,
        images: &[RgbImage],
        prompts: Option<&[String]>,
    ) -> Result<FeatureSets, Error> {
        let mut sets = FeatureSets::new();
        for name in protocol.networks() {
            let network = self.get(protocol, name)?;
            let features = network.features(images);
            let measures = protocol.measures.iter();
            for measure in measures.filter(|measure| measure.network() == name) {
                if let (Measure::ClipScore { prefix, .. }, Some(prompts)) = (measure, prompts) {
                    assert_eq!(
                        prompts.len(),
                        images.len(),
                        "expected a prompt for each image"
                    );
                    let cosines = cosines(network, name, &features, prefix, prompts)?;
                    sets.insert(score_key(measure), cosines);
                }
            }
            sets.insert(name.to_owned(), to_features(features)?);
        }
        Ok(sets)
    }

    /// Computes the features of reference images, using only the networks needed for comparisons.
    ///
    /// # Errors
    ///
    /// If a network is missing or produces a NaN.
    pub fn extract_reference(
        &self,
        protocol: &Protocol,
        images: &[RgbImage],
    ) -> Result<FeatureSets, Error> {
        let networks = protocol.reference_networks().into_iter();
        let extract = |name: &str| {
            let features = self.get(protocol, name)?.features(images);
            Ok((name.to_owned(), to_features(features)?))
        };
        networks.map(extract).collect()
    }

    /// Logits of generated images from a classifying network.
    pub(crate) fn logits(
        &self,
        protocol: &Protocol,
        name: &str,
        features: &Features,
        device: &Device,
    ) -> Result<Features, Error> {
        let network = self.get(protocol, name)?;
        let unable = || Error::Unable {
            network: name.to_owned(),
            task: "classify images, which the inception score needs",
        };
        let width = features.width();
        let mut values = Vec::new();
        let mut classes = None;
        for block in features.values().chunks(ROWS * width) {
            let shape = [block.len() / width, width];
            let block = Tensor::<2>::from_data(TensorData::new(block.to_vec(), shape), device);
            let logits = network.logits(block).ok_or_else(unable)?;
            classes = Some(logits.dims()[1]);
            values.extend(logits.into_data().iter::<f32>());
        }
        Ok(Features::new(classes.ok_or_else(unable)?, values)?)
    }
}

fn cosines(
    network: &dyn FeatureNetwork,
    name: &str,
    features: &Tensor<2>,
    prefix: &str,
    prompts: &[String],
) -> Result<Features, Error> {
    let prompts: Vec<_> = prompts
        .iter()
        .map(|prompt| format!("{prefix}{prompt}"))
        .collect();
    let texts = network.texts(&prompts).ok_or_else(|| Error::Unable {
        network: name.to_owned(),
        task: "encode prompts, which the CLIP score needs",
    })?;
    to_features((features.clone() * texts).sum_dim(1))
}

/// Key of a measure's scores in [`FeatureSets`].
pub(crate) fn score_key(measure: &Measure) -> String {
    match measure {
        Measure::ClipScore {
            network, prefix, ..
        } => format!("score of {network} with {prefix:?}"),
        _ => measure.to_string(),
    }
}
