//! Measures of a set of images against their captions and against the ground truth of the same captions.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::protocol::captions::Captions;
use crate::protocol::classifier::Classifier;
use crate::protocol::features::Agreement;
use crate::scorer::{Reading, Score, read};
use crate::world::Scene;

/// Measures of one system on one caption set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measures {
    /// Outcome per caption: everything right.
    pub(crate) right: Vec<bool>,
    pub(crate) ground: f64,
    pub(crate) color: f64,
    pub(crate) shape: f64,
    pub(crate) relation: f64,
    /// Agreement of placements with the ground truth.
    pub(crate) placements: Agreement,
    /// Agreement of the classifier's features with those of the ground truth.
    pub(crate) classifier: Agreement,
}

/// Ground truth of a caption set, ready for comparisons.
pub(crate) struct Reference {
    scenes: Vec<Scene>,
    readings: Vec<Reading>,
    features: swiftbrush_metrics::Features,
    classifier: Classifier,
    device: Device,
}

impl Reference {
    pub(crate) fn new(captions: Captions, classifier: Classifier, device: &Device) -> Result<Self> {
        Self::of(captions.scenes(), &captions.truth(), classifier, device)
    }

    fn of(
        scenes: Vec<Scene>,
        truth: &[Vec<u8>],
        classifier: Classifier,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            readings: readings(truth, &scenes),
            features: classifier.features(truth, device)?,
            scenes,
            classifier,
            device: device.clone(),
        })
    }

    /// Measures one image per caption.
    pub(crate) fn measure(&self, images: &[Vec<u8>]) -> Result<Measures> {
        ensure!(
            images.len() == self.scenes.len(),
            "expected {} images, found {}",
            self.scenes.len(),
            images.len()
        );
        let readings = readings(images, &self.scenes);
        let features = self.classifier.features(images, &self.device)?;
        let share = |right: &dyn Fn(Score) -> bool| {
            let right = readings.iter().filter(|reading| right(reading.score));
            right.count() as f64 / readings.len() as f64
        };
        Ok(Measures {
            right: readings.iter().map(|reading| reading.score.all()).collect(),
            ground: share(&|score| score.ground),
            color: share(&|score| score.color),
            shape: share(&|score| score.shape),
            relation: share(&|score| score.relation),
            placements: Agreement::of_placements(&self.scenes, &self.readings, &readings)?,
            classifier: Agreement::new(&self.features, &features)?,
        })
    }
}

fn readings(images: &[Vec<u8>], scenes: &[Scene]) -> Vec<Reading> {
    let pairs = images.iter().zip(scenes);
    pairs.map(|(image, scene)| read(image, scene)).collect()
}
