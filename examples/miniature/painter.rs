//! Generation and scoring of images with a denoiser of the miniature.

use std::path::Path;

use anyhow::Result;
use examples_common::{grid, pictures, write_png};
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swiftbrush_pipeline::{Given, Method, Request, TextToImage, noise};

use crate::scorer::{Score, score};
use crate::world::{HeldOut, Scene};

/// Draws scenes of a class for the training stages; the protocol has its own (`protocol::captions`).
pub(crate) fn captions(seed: u64, count: usize, class: HeldOut) -> Vec<Scene> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5ce0e);
    (0..count).map(|_| Scene::random(&mut rng, class)).collect()
}

/// Scores of a set of images.
pub(crate) struct Tally(Vec<Score>);

impl Tally {
    pub(crate) fn new(pictures: &[RgbImage], scenes: &[Scene]) -> Self {
        let pairs = pictures.iter().zip(scenes);
        Self(
            pairs
                .map(|(picture, scene)| score(picture, scene))
                .collect(),
        )
    }

    pub(crate) fn share(&self, right: impl Fn(Score) -> bool) -> f64 {
        self.0.iter().filter(|score| right(**score)).count() as f64 / self.0.len().max(1) as f64
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ground, color) = (self.share(|s| s.ground), self.share(|s| s.color));
        let (shape, relation) = (self.share(|s| s.shape), self.share(|s| s.relation));
        let all = self.share(Score::all);
        write!(
            f,
            "ground {ground:.3}, colour {color:.3}, shape {shape:.3}, relation {relation:.3}, all {all:.3}"
        )
    }
}

/// A denoiser with a sampling method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painter<'a> {
    pub(crate) pipeline: &'a TextToImage,
    pub(crate) method: Method,
    pub(crate) guidance: f64,
}

impl Painter<'_> {
    /// Network calls per image.
    pub(crate) fn n_calls(&self) -> usize {
        let per_step = if self.guidance > 1.0 { 2 } else { 1 };
        self.method.n_calls() * per_step
    }

    /// Generates images for captions in batches of 64; the noise of each batch has its own seed, starting from
    /// `first_seed`.
    pub(crate) fn paint(&self, captions: &[String], first_seed: u64) -> Result<Vec<RgbImage>> {
        let mut painted = Vec::new();
        for (seed, captions) in (first_seed..).zip(captions.chunks(64)) {
            let request = Request::new(captions.iter().cloned())
                .with_method(self.method)
                .with_guidance(self.guidance);
            let shape = self.pipeline.latent_shape(captions.len());
            let noise = noise(shape, seed, self.pipeline.device());
            let painting = self.pipeline.generate(&request, &mut Given::from(noise))?;
            painted.extend(pictures(painting.images));
        }
        Ok(painted)
    }

    /// Generates and scores images of scenes.
    pub(crate) fn tally(&self, scenes: &[Scene]) -> Result<Tally> {
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        Ok(Tally::new(&self.paint(&captions, 0)?, scenes))
    }

    /// Generates and scores images of 256 scenes and writes them to `folder` as one sheet.
    pub(crate) fn sheet(&self, seed: u64, folder: &Path, step: u64) -> Result<Tally> {
        let scenes = captions(seed, 256, HeldOut::None);
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        let pictures = self.paint(&captions, 0)?;
        write_png(&grid(&pictures, 16), &folder.join(format!("{step:06}.png")))?;
        Ok(Tally::new(&pictures, &scenes))
    }

    /// Mean root-mean-square difference between two images of one caption, with values in 0…1.
    pub(crate) fn diversity(&self, scenes: &[Scene]) -> Result<f64> {
        const SEEDS: usize = 8;
        let captions: Vec<_> = scenes.iter().map(Scene::caption).collect();
        let captions: Vec<_> = captions
            .iter()
            .flat_map(|c| vec![c.clone(); SEEDS])
            .collect();
        let pictures = self.paint(&captions, 1000)?;
        let distances = pictures.chunks(SEEDS).flat_map(|pictures| {
            (0..SEEDS).flat_map(move |a| {
                (0..a).map(move |b| distance(pictures[a].as_raw(), pictures[b].as_raw()))
            })
        });
        let distances: Vec<_> = distances.collect();
        Ok(distances.iter().sum::<f64>() / distances.len() as f64)
    }
}

fn distance(a: &[u8], b: &[u8]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt() / 255.0
}
