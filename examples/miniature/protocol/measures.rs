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
    /// Outcome per caption: everything right. A string of zeros and ones in files, which are committed.
    #[serde(with = "digits")]
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

mod digits {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[bool], to: S) -> Result<S::Ok, S::Error> {
        let digit = |&value| if value { '1' } else { '0' };
        to.collect_str(&values.iter().map(digit).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<bool>, D::Error> {
        let text = String::deserialize(from)?;
        let value = |digit| match digit {
            '0' => Ok(false),
            '1' => Ok(true),
            other => Err(D::Error::custom(format!(
                "expected 0 or 1, found {other:?}"
            ))),
        };
        text.chars().map(value).collect()
    }
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

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::data::SIDE;
    use crate::protocol::statistics::Interval;
    use crate::world::HeldOut;

    const COUNT: usize = 900;

    /// Scenes, their reference and a source of random numbers.
    fn setting() -> (Vec<Scene>, Reference, ChaCha8Rng) {
        let mut rng = ChaCha8Rng::seed_from_u64(21);
        let scenes: Vec<_> = (0..COUNT)
            .map(|_| Scene::random(&mut rng, HeldOut::None))
            .collect();
        let truth = drawn(&scenes, &mut rng);
        let device = Device::default();
        let classifier = Classifier::open(&device).unwrap();
        let reference = Reference::of(scenes.clone(), &truth, classifier, &device).unwrap();
        (scenes, reference, rng)
    }

    fn drawn(scenes: &[Scene], rng: &mut ChaCha8Rng) -> Vec<Vec<u8>> {
        scenes.iter().map(|scene| scene.draw(SIDE, rng)).collect()
    }

    fn with_noise(images: &[Vec<u8>], range: i32, rng: &mut ChaCha8Rng) -> Vec<Vec<u8>> {
        let mut noisy = |byte: &u8| {
            let value = i32::from(*byte) + rng.random_range(-range..=range);
            value.clamp(0, 255) as u8
        };
        let image = |image: &Vec<u8>| image.iter().map(&mut noisy).collect();
        images.iter().map(image).collect()
    }

    /// Mean over squares of three pixels, inside the image.
    fn blurred(images: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let blur = |image: &Vec<u8>| {
            let value = |at: usize| {
                let (row, column, channel) = (at / 3 / SIDE, at / 3 % SIDE, at % 3);
                let around = |center: usize| {
                    let last = (center + 1).min(SIDE - 1);
                    center.saturating_sub(1)..=last
                };
                let places = around(row).flat_map(|r| around(column).map(move |c| (r, c)));
                let values = places.map(|(r, c)| u32::from(image[(r * SIDE + c) * 3 + channel]));
                let (count, sum) = values.fold((0, 0), |(n, sum), value| (n + 1, sum + value));
                (sum / count) as u8
            };
            (0..image.len()).map(value).collect()
        };
        images.iter().map(blur).collect()
    }

    #[test]
    fn other_ground_truth_is_the_floor_of_every_distance() {
        let (scenes, reference, mut rng) = setting();
        let other = drawn(&scenes, &mut rng);
        let floor = reference.measure(&other).unwrap();
        assert!(Interval::of_share(&floor.right).mean > 0.99);
        assert!(floor.placements.recall > 0.85 && floor.placements.precision > 0.85);
        let slight = reference
            .measure(&with_noise(&other, 40, &mut rng))
            .unwrap();
        let strong = reference
            .measure(&with_noise(&other, 120, &mut rng))
            .unwrap();
        let blurred = reference.measure(&blurred(&other)).unwrap();
        let distances = [&floor, &slight, &strong].map(|m| m.classifier.frechet);
        assert!(distances.is_sorted(), "{distances:?}");
        assert!(floor.classifier.frechet < blurred.classifier.frechet);
        let shares = [&floor, &slight, &strong].map(|m| Interval::of_share(&m.right).mean);
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert!(blurred.shape < floor.shape);
    }

    #[test]
    fn images_of_other_captions_are_wrong_and_nothing_else() {
        let (scenes, reference, mut rng) = setting();
        let images = drawn(&scenes, &mut rng);
        let floor = reference.measure(&images).unwrap();
        let mut rotated = images;
        rotated.rotate_left(1);
        let wrong = reference.measure(&rotated).unwrap();
        assert!(Interval::of_share(&wrong.right).mean < 0.02);
        assert!(wrong.placements.frechet > 10.0 * floor.placements.frechet);
        // The distribution over all captions is the same.
        assert!(wrong.classifier.frechet < 1.5 * floor.classifier.frechet);
    }

    #[test]
    fn one_placement_per_caption_costs_recall_and_not_precision() {
        let (scenes, reference, mut rng) = setting();
        let varied = drawn(&scenes, &mut rng);
        let center = |scene: &Scene| {
            // The mean of the placements of this layout.
            let mut placements = scene.place(&mut rng);
            for at in &mut placements {
                let is_alone = scene.objects().len() == 1;
                if is_alone {
                    (at.x, at.y, at.size) = (0.5, 0.5, 0.6);
                } else {
                    at.x = if (at.x - 0.5).abs() <= 0.1 { 0.5 } else { at.x };
                    at.y = if (at.y - 0.5).abs() <= 0.1 { 0.5 } else { at.y };
                }
            }
            scene.render(SIDE, &placements)
        };
        let centered: Vec<_> = scenes.iter().map(center).collect();
        let half = |(at, (a, b)): (usize, (&Vec<u8>, &Vec<u8>))| {
            if at % 2 == 0 { a.clone() } else { b.clone() }
        };
        let mixed: Vec<_> = varied.iter().zip(&centered).enumerate().map(half).collect();
        let [floor, mixed, centered] =
            [varied, mixed, centered].map(|images| reference.measure(&images).unwrap());
        let recalls = [&floor, &mixed, &centered].map(|m| m.placements.recall);
        assert!(recalls[2] < 0.2 && recalls[1] > 0.5, "{recalls:?}");
        let distances = [&floor, &mixed, &centered].map(|m| m.placements.frechet);
        assert!(distances.is_sorted(), "{distances:?}");
        assert!(centered.placements.precision > 0.8);
        assert!(Interval::of_share(&centered.right).mean > 0.98);
    }

    #[test]
    fn a_wrong_number_of_images_is_an_error() {
        let (scenes, reference, mut rng) = setting();
        let images = drawn(&scenes[1..], &mut rng);
        assert!(reference.measure(&images).is_err());
    }
}
