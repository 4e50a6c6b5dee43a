//! Edits to carry out: images of the student that match their captions, and the captions with one thing changed.

use anyhow::Result;
use examples_common::pictures;
use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiftbrush_pipeline::{Request, Rng, Seeds, TextToImage};

use crate::data::SIDE;
use crate::edits::BATCH;
use crate::scorer::{Score, read};
use crate::world::{COLORS, HeldOut, Layout, Object, Placement, SHAPES, Scene};

/// The attribute that an edit changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Colour of an object.
    Color,
    /// Shape of an object.
    Shape,
    /// Colour of the background.
    Ground,
    /// Order or direction of two objects.
    Relation,
}

/// All kinds, in the order of tables.
pub(crate) const KINDS: [Kind; 4] = [Kind::Color, Kind::Shape, Kind::Ground, Kind::Relation];

impl Kind {
    /// Returns true if an image has the attribute that was to change.
    pub(crate) fn is_reached(self, score: Score) -> bool {
        match self {
            Self::Color => score.color,
            Self::Shape => score.shape,
            Self::Ground => score.ground,
            Self::Relation => score.relation && score.color && score.shape,
        }
    }

    /// A scene with one thing changed, and the object that changed; none if the change gives no scene of the world.
    fn change(self, scene: &Scene, rng: &mut ChaCha8Rng) -> Option<(Scene, Option<usize>)> {
        let which = rng.random_range(0..scene.objects().len());
        let (color, shape) = (
            rng.random_range(0..COLORS.len()),
            rng.random_range(0..SHAPES.len()),
        );
        let changed = match self {
            Self::Color => scene.with_object(which, |object| object.color = color),
            Self::Shape => scene.with_object(which, |object| object.shape = shape),
            Self::Ground => Scene {
                ground: color,
                ..*scene
            },
            Self::Relation => Scene {
                layout: other_layout(scene.layout, rng)?,
                ..*scene
            },
        };
        let object = matches!(self, Self::Color | Self::Shape).then_some(which);
        let is_one = changed != *scene && changed.is_valid() && HeldOut::None.contains(&changed);
        is_one.then_some((changed, object))
    }
}

/// One of the three other arrangements of two objects.
fn other_layout(layout: Layout, rng: &mut ChaCha8Rng) -> Option<Layout> {
    let (first, second): (Object, Object) = match layout {
        Layout::One(_) => return None,
        Layout::Above(first, second) | Layout::LeftOf(first, second) => (first, second),
    };
    let layouts = [
        Layout::Above(first, second),
        Layout::Above(second, first),
        Layout::LeftOf(first, second),
        Layout::LeftOf(second, first),
    ];
    let others: Vec<_> = layouts
        .into_iter()
        .filter(|other| *other != layout)
        .collect();
    Some(others[rng.random_range(0..others.len())])
}

/// An image to edit.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Content of the image.
    pub(crate) source: Scene,
    /// Content to reach.
    pub(crate) target: Scene,
    /// Index of the object that changes.
    object: Option<usize>,
    /// Seed of the image's noise.
    pub(crate) seed: u64,
    pub(crate) picture: RgbImage,
    placements: Vec<Placement>,
}

impl Task {
    /// A mask of the object that changes, in bytes; all white if no single object changes.
    pub(crate) fn mask(&self) -> Vec<u8> {
        let Some(object) = self.object else {
            return vec![255; SIDE * SIDE];
        };
        let side = SIDE as u32;
        let inside = |at: u32| is_near(&self.placements[object], at % side, at / side);
        (0..side * side)
            .map(|at| if inside(at) { 255 } else { 0 })
            .collect()
    }

    /// Mean squared error of bytes that the edit should keep: outside the object that changes; where the background
    /// does, the objects' own pixels; none if objects move.
    pub(crate) fn error_outside(&self, picture: &RgbImage) -> Option<f64> {
        let is_ground_edit = self.source.ground != self.target.ground;
        if self.object.is_none() && !is_ground_edit {
            return None;
        }
        let (mut total, mut count) = (0.0, 0);
        for (x, y, before) in self.picture.enumerate_pixels() {
            let is_kept = match self.object {
                Some(object) => !is_near(&self.placements[object], x, y),
                None => self.is_far_from_ground(before.0),
            };
            if is_kept {
                let after = picture.get_pixel(x, y);
                for (a, b) in before.0.into_iter().zip(after.0) {
                    total += (f64::from(a) - f64::from(b)).powi(2);
                }
                count += 3;
            }
        }
        (count > 0).then(|| total / f64::from(count))
    }

    /// Returns true for a colour nearer to that of an object than to the background's.
    fn is_far_from_ground(&self, pixel: [u8; 3]) -> bool {
        let distance = |color: usize| -> f64 {
            let pairs = pixel.into_iter().zip(COLORS[color].1);
            pairs
                .map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2))
                .sum()
        };
        let objects = self.source.objects().into_iter();
        let nearest = objects
            .map(|object| distance(object.color))
            .fold(f64::INFINITY, f64::min);
        nearest < distance(self.source.ground)
    }
}

/// Returns true for pixels in the square of an object, with a margin of one pixel.
fn is_near(placement: &Placement, x: u32, y: u32) -> bool {
    let size = placement.size + 2.0 / SIDE as f64;
    let wider = Placement { size, ..*placement };
    wider.contains(x as usize, y as usize, SIDE)
}

/// Draws `count` edits of a kind: scenes and results of the training distribution, and images of the student that have
/// everything right.
pub(crate) fn tasks(
    pipeline: &TextToImage,
    kind: Kind,
    seed: u64,
    count: usize,
) -> Result<Vec<Task>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(kind as u64);
    let mut found = Vec::new();
    let mut seeds = (seed << 32 | (kind as u64) << 24)..;
    while found.len() < count {
        let mut drawn = Vec::new();
        while drawn.len() < BATCH {
            let scene = Scene::random(&mut rng, HeldOut::None);
            if let Some((target, object)) = kind.change(&scene, &mut rng) {
                drawn.push((scene, target, object));
            }
        }
        let captions = drawn.iter().map(|(source, ..)| source.caption());
        let seeds: Vec<u64> = seeds.by_ref().take(BATCH).collect();
        let noise = &mut Seeds::new(Rng::Native, seeds.iter().copied());
        let painted = pipeline.generate(&Request::new(captions), noise)?;
        let painted = pictures(painted.images).into_iter();
        for (((source, target, object), picture), seed) in drawn.into_iter().zip(painted).zip(seeds)
        {
            let reading = read(picture.as_raw(), &source);
            if reading.score.all() {
                let placements = reading.placements;
                found.push(Task {
                    source,
                    target,
                    object,
                    seed,
                    picture,
                    placements,
                });
            }
        }
    }
    found.truncate(count);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_change_what_their_kind_says_and_nothing_else() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for kind in KINDS {
            let mut count = 0;
            while count < 100 {
                let scene = Scene::random(&mut rng, HeldOut::None);
                let Some((changed, object)) = kind.change(&scene, &mut rng) else {
                    continue;
                };
                count += 1;
                let (before, after) = (scene.objects(), changed.objects());
                let colors =
                    |objects: &[Object]| objects.iter().map(|o| o.color).collect::<Vec<_>>();
                let shapes =
                    |objects: &[Object]| objects.iter().map(|o| o.shape).collect::<Vec<_>>();
                assert_eq!(scene.ground != changed.ground, kind == Kind::Ground);
                assert_eq!(object.is_some(), matches!(kind, Kind::Color | Kind::Shape));
                if kind == Kind::Relation {
                    assert_ne!(scene.layout, changed.layout);
                    continue;
                }
                assert_eq!(colors(&before) != colors(&after), kind == Kind::Color);
                assert_eq!(shapes(&before) != shapes(&after), kind == Kind::Shape);
            }
        }
    }

    #[test]
    fn errors_count_outside_the_object_alone() {
        let object = |color| Object { color, shape: 1 };
        let scene = |color| Scene {
            ground: 8,
            layout: Layout::One(object(color)),
        };
        let placement = Placement {
            x: 0.5,
            y: 0.5,
            size: 0.5,
        };
        let placements = vec![placement];
        let side = SIDE as u32;
        let (source, target) = (scene(0), scene(1));
        let draw = |scene: &Scene| RgbImage::from_raw(side, side, scene.render(SIDE, &placements));
        let picture = draw(&source).expect("three bytes a pixel");
        let mut edited = draw(&target).expect("three bytes a pixel");
        let (object, seed) = (Some(0), 0);
        let placements = placements.clone();
        let task = Task {
            source,
            target,
            object,
            seed,
            picture,
            placements,
        };
        assert_eq!(task.error_outside(&edited), Some(0.0));
        edited.get_pixel_mut(0, 0).0[0] ^= 16;
        let kept = task.mask().iter().filter(|&&byte| byte == 0).count();
        assert_eq!(task.error_outside(&edited), Some(256.0 / (3 * kept) as f64));
    }
}
