//! Caption sets of the protocol and their ground truth.

use clap::ValueEnum;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::data::SIDE;
use crate::world::{HeldOut, Scene};

/// Seed of every set; the training stages use other seeds and stream 0.
const SEED: u64 = 0x5357_4232;

/// Disjoint caption sets, so that nothing is reported on the set it was chosen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Set {
    /// Set for choosing λ, the guidance, a recipe or a checkpoint.
    Choose,
    /// Set of the reported tables.
    Report,
    /// First confirmation set, of the students that shipped until 2026-11-28.
    ConfirmA,
    /// Second confirmation set of the same students.
    ConfirmB,
    /// First confirmation set, used once, for the shipped student.
    ConfirmC,
    /// Second confirmation set of the shipped student.
    ConfirmD,
}

impl Set {
    /// Number of captions of a class in the set.
    pub(crate) fn captions(self, class: HeldOut) -> usize {
        match (self, class) {
            (Self::Choose, _) => 2048,
            (Self::Report, HeldOut::None) => 8192,
            _ => 4096,
        }
    }
}

/// Independent draws within a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draw {
    Scenes,
    Truth,
    Floor,
    Noise,
}

/// Captions of one class in one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Captions {
    pub(crate) set: Set,
    pub(crate) class: HeldOut,
}

impl Captions {
    fn stream(self, draw: Draw) -> u64 {
        // Stream 0 is reserved for the training stages.
        1 + ((self.set as u64) << 16 | (self.class as u64) << 8 | draw as u64)
    }

    fn rng(self, draw: Draw) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        rng.set_stream(self.stream(draw));
        rng
    }

    /// Folder of everything measured on these captions.
    pub(crate) fn folder(self) -> String {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or(String::new(), |value| value.get_name().to_owned())
        };
        let (set, class) = (self.set.to_possible_value(), self.class.to_possible_value());
        format!("{}-{}", name(set), name(class))
    }

    /// The scenes.
    pub(crate) fn scenes(self) -> Vec<Scene> {
        let mut rng = self.rng(Draw::Scenes);
        let count = self.set.captions(self.class);
        (0..count)
            .map(|_| Scene::random(&mut rng, self.class))
            .collect()
    }

    /// One ground-truth image per scene, as RGB bytes.
    pub(crate) fn truth(self) -> Vec<Vec<u8>> {
        self.draw(Draw::Truth)
    }

    /// A second, independent ground-truth image per scene: the floor of every distance.
    pub(crate) fn floor(self) -> Vec<Vec<u8>> {
        self.draw(Draw::Floor)
    }

    fn draw(self, draw: Draw) -> Vec<Vec<u8>> {
        let mut rng = self.rng(draw);
        let scenes = self.scenes();
        scenes.iter().map(|s| s.draw(SIDE, &mut rng)).collect()
    }

    /// Seed of the initial noise of the batch at `index`, which is the same for every model, so that comparisons are also
    /// paired by noise.
    pub(crate) fn noise_seed(self, index: usize) -> u64 {
        (self.stream(Draw::Noise) << 24) + index as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_share_no_stream() {
        let mut streams = std::collections::BTreeSet::new();
        for set in Set::value_variants() {
            for class in HeldOut::value_variants() {
                let captions = Captions {
                    set: *set,
                    class: *class,
                };
                for draw in [Draw::Scenes, Draw::Truth, Draw::Floor, Draw::Noise] {
                    assert!(streams.insert(captions.stream(draw)));
                }
            }
        }
        assert!(!streams.contains(&0));
    }

    #[test]
    fn the_floor_shows_the_captions_of_the_truth_in_other_places() {
        let captions = Captions {
            set: Set::Choose,
            class: HeldOut::None,
        };
        let (scenes, truth, floor) = (captions.scenes(), captions.truth(), captions.floor());
        assert_eq!(truth.len(), scenes.len());
        assert_eq!(truth, captions.truth());
        let alike = truth.iter().zip(&floor).filter(|(a, b)| a == b);
        assert!(alike.count() < truth.len() / 100);
    }
}
