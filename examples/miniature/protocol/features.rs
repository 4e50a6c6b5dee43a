//! Features of the exact attributes of images: the placements measured by the scorer.

use anyhow::{Result, ensure};
use swiftbrush_metrics::{Features, Moments, PrecisionRecall, frechet_distance, precision_recall};

use crate::scorer::Reading;
use crate::world::{Layout, Scene};

/// Neighbours that define the radii of precision and recall.
const K: usize = 3;

/// Agreement of two sets of images of the same captions.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Agreement {
    pub(crate) frechet: f64,
    /// Share of generated images among the true ones.
    pub(crate) precision: f64,
    /// Share of true images among the generated ones.
    pub(crate) recall: f64,
}

impl Agreement {
    /// Compares the features of generated images with those of true ones.
    pub(crate) fn new(truth: &Features, generated: &Features) -> Result<Self> {
        let PrecisionRecall { precision, recall } = precision_recall(truth, generated, K)?;
        Ok(Self {
            frechet: frechet(truth, generated)?,
            precision,
            recall,
        })
    }

    /// Compares the placements of objects, in percent of the image's side.
    ///
    /// The Fréchet distance is that of the placements *given the layout of the caption*, averaged over the layouts: the
    /// variance between layouts would hide the variance within them. Neighbourhoods need no such treatment, because
    /// placements of different layouts are far apart.
    pub(crate) fn of_placements(
        scenes: &[Scene],
        truth: &[Reading],
        generated: &[Reading],
    ) -> Result<Self> {
        let (truth, generated) = (placements(scenes, truth)?, placements(scenes, generated)?);
        let PrecisionRecall { precision, recall } = precision_recall(&truth, &generated, K)?;
        let mut distances = Vec::new();
        for layout in 0..LAYOUTS {
            let of_layout = |index: &usize| layout_index(&scenes[*index]) == layout;
            let rows: Vec<_> = (0..scenes.len()).filter(of_layout).collect();
            ensure!(rows.len() > K, "expected captions of every layout");
            distances.push(frechet(&truth.select(&rows), &generated.select(&rows))?);
        }
        Ok(Self {
            frechet: distances.iter().sum::<f64>() / LAYOUTS as f64,
            precision,
            recall,
        })
    }
}

const LAYOUTS: usize = 3;

fn layout_index(scene: &Scene) -> usize {
    match scene.layout {
        Layout::One(_) => 0,
        Layout::Above(..) => 1,
        Layout::LeftOf(..) => 2,
    }
}

fn frechet(first: &Features, second: &Features) -> Result<f64> {
    let gaussian = |features: &Features| Moments::of(features).gaussian();
    Ok(frechet_distance(&gaussian(first)?, &gaussian(second)?)?)
}

/// Centre and size of the first object, then of the second, in percent of the side. A missing object is at the
/// corner with size zero, far from every true placement.
fn placements(scenes: &[Scene], readings: &[Reading]) -> Result<Features> {
    const WIDTH: usize = 6;
    ensure!(
        scenes.len() == readings.len(),
        "expected {} images, found {}",
        scenes.len(),
        readings.len()
    );
    let row = |reading: &Reading| {
        let mut row = [0.0; WIDTH];
        for (row, at) in row.chunks_mut(3).zip(&reading.placements) {
            row.copy_from_slice(&[at.x, at.y, at.size].map(|value| (100.0 * value) as f32));
        }
        row
    };
    Ok(Features::new(
        WIDTH,
        readings.iter().flat_map(row).collect(),
    )?)
}
