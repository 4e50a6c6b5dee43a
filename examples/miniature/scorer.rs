//! Scoring of an image against its caption, without a network.

use std::sync::LazyLock;

use crate::world::{COLORS, Layout, Object, Outline, Placement, SHAPES, Scene};

/// Aspects of a caption that an image gets right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) ground: bool,
    pub(crate) color: bool,
    pub(crate) shape: bool,
    pub(crate) relation: bool,
}

impl Score {
    pub(crate) fn all(self) -> bool {
        self.ground && self.color && self.shape && self.relation
    }
}

/// The score of an image and the placements of its objects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) score: Score,
    /// One per object of the caption, in the caption's order; empty if the image has another number of
    /// objects.
    pub(crate) placements: Vec<Placement>,
}

/// Object found in an image.
#[derive(Clone, Copy, Debug)]
struct Found {
    color: usize,
    shape: usize,
    /// Centre of the bounding box in whole pixels, which determines the relation.
    x: f64,
    y: f64,
    placement: Placement,
}

/// Scores a square RGB image against a scene.
pub(crate) fn score(picture: &[u8], scene: &Scene) -> Score {
    read(picture, scene).score
}

/// Scores a square RGB image against a scene and measures its objects.
pub(crate) fn read(picture: &[u8], scene: &Scene) -> Reading {
    let picture = Picture::new(picture);
    let ground = picture.ground();
    let wanted = scene.objects();
    let mut found = picture.objects(ground, wanted.len());
    if found.len() != wanted.len() {
        let score = Score {
            ground: ground == scene.ground,
            ..Score::default()
        };
        let placements = Vec::new();
        return Reading { score, placements };
    }
    // Two objects are matched by their order along the relation's axis.
    let relation = match scene.layout {
        Layout::One(_) => true,
        Layout::Above(..) => {
            found.sort_by(|a, b| a.y.total_cmp(&b.y));
            (found[0].y - found[1].y).abs() > (found[0].x - found[1].x).abs()
        }
        Layout::LeftOf(..) => {
            found.sort_by(|a, b| a.x.total_cmp(&b.x));
            (found[0].x - found[1].x).abs() > (found[0].y - found[1].y).abs()
        }
    };
    let pairs = || found.iter().zip(&wanted);
    Reading {
        score: Score {
            ground: ground == scene.ground,
            color: pairs().all(|(found, wanted)| found.color == wanted.color),
            shape: pairs().all(|(found, wanted)| found.shape == wanted.shape),
            relation,
        },
        placements: found.iter().map(|found| found.placement).collect(),
    }
}

/// The colour of the ground of a square RGB image and its objects, largest first, at most `count`.
pub(crate) fn objects(picture: &[u8], count: usize) -> (usize, Vec<Object>) {
    let picture = Picture::new(picture);
    let ground = picture.ground();
    let object = |found: Found| Object {
        color: found.color,
        shape: found.shape,
    };
    let found = picture.objects(ground, count).into_iter();
    (ground, found.map(object).collect())
}

/// Area and centre of mass of each shape in its bounding square, −½…½ on both axes.
static MASSES: LazyLock<Vec<[f64; 3]>> = LazyLock::new(|| {
    const POINTS: usize = 256;
    let mass = |shape| {
        let outline = Outline::new(shape);
        let at = |i: usize| (i as f64 + 0.5) / POINTS as f64 - 0.5;
        let all = (0..POINTS * POINTS).map(|i| (at(i % POINTS), at(i / POINTS)));
        let inside: Vec<_> = all.filter(|&(x, y)| outline.contains(x, y)).collect();
        let count = inside.len() as f64;
        let x = inside.iter().map(|point| point.0).sum::<f64>() / count;
        let y = inside.iter().map(|point| point.1).sum::<f64>() / count;
        [count / (POINTS * POINTS) as f64, x, y]
    };
    (0..SHAPES.len()).map(mass).collect()
});

struct Picture {
    side: usize,
    pixels: Vec<[f64; 3]>,
}

impl Picture {
    fn new(bytes: &[u8]) -> Self {
        let side = (bytes.len() / 3).isqrt();
        let pixels = bytes
            .chunks(3)
            .map(|rgb| [rgb[0], rgb[1], rgb[2]].map(f64::from))
            .collect();
        Self { side, pixels }
    }

    /// The colour nearest to the median of the border.
    fn ground(&self) -> usize {
        let edge = self.side - 1;
        let border = (0..self.side * self.side).filter(|i| {
            let (row, column) = (i / self.side, i % self.side);
            row == 0 || column == 0 || row == edge || column == edge
        });
        nearest_color(self.median(border))
    }

    fn median(&self, places: impl Iterator<Item = usize>) -> [f64; 3] {
        let places: Vec<_> = places.collect();
        std::array::from_fn(|channel| {
            let mut values: Vec<_> = places.iter().map(|&i| self.pixels[i][channel]).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        })
    }

    /// Describes the largest connected regions that differ from the ground, at most `count`.
    fn objects(&self, ground: usize, count: usize) -> Vec<Found> {
        let ground = COLORS[ground].1.map(f64::from);
        let limit = nearest_pair() / 2.0;
        let mask: Vec<_> = self
            .pixels
            .iter()
            .map(|&pixel| distance(pixel, ground) > limit)
            .collect();
        let mut regions = self.regions(&mask);
        regions.retain(|region| region.len() * 100 >= self.pixels.len());
        regions.sort_by_key(|region| std::cmp::Reverse(region.len()));
        regions.truncate(count);
        let describe = |region: &Vec<usize>| self.describe(region, ground);
        regions.iter().map(describe).collect()
    }

    fn regions(&self, mask: &[bool]) -> Vec<Vec<usize>> {
        let mut left = mask.to_vec();
        let mut regions = Vec::new();
        for start in 0..left.len() {
            if !left[start] {
                continue;
            }
            let (mut region, mut open) = (Vec::new(), vec![start]);
            left[start] = false;
            while let Some(place) = open.pop() {
                region.push(place);
                for next in self.neighbours(place) {
                    if std::mem::take(&mut left[next]) {
                        open.push(next);
                    }
                }
            }
            regions.push(region);
        }
        regions
    }

    fn neighbours(&self, place: usize) -> impl Iterator<Item = usize> {
        let side = self.side;
        let (row, column) = (place / side, place % side);
        let up = (row > 0).then(|| place - side);
        let down = (row + 1 < side).then(|| place + side);
        let left = (column > 0).then(|| place - 1);
        let right = (column + 1 < side).then(|| place + 1);
        [up, down, left, right].into_iter().flatten()
    }

    fn describe(&self, region: &[usize], ground: [f64; 3]) -> Found {
        let mut inside = vec![false; self.pixels.len()];
        region.iter().for_each(|&place| inside[place] = true);
        let is_core = |place: &usize| {
            let mut neighbours = self.neighbours(*place);
            neighbours.all(|next| inside[next])
        };
        let core: Vec<_> = region.iter().copied().filter(is_core).collect();
        let core = if core.is_empty() {
            region.to_vec()
        } else {
            core
        };

        let rows = region.iter().map(|place| place / self.side);
        let columns = region.iter().map(|place| place % self.side);
        let span = |values: &mut dyn Iterator<Item = usize>| {
            values.fold((usize::MAX, 0), |(low, high), value| {
                (low.min(value), high.max(value + 1))
            })
        };
        let (rows, columns) = (span(&mut rows.into_iter()), span(&mut columns.into_iter()));
        let shape = (0..SHAPES.len()).max_by(|&a, &b| {
            let overlap = |shape| self.overlap(&inside, rows, columns, shape);
            overlap(a).total_cmp(&overlap(b))
        });
        let shape = shape.expect("there are shapes");
        let color = self.median(core.into_iter());
        Found {
            color: nearest_color(color),
            shape,
            placement: self.placement(region, ground, color, shape),
            x: (columns.0 + columns.1) as f64 / 2.0,
            y: (rows.0 + rows.1) as f64 / 2.0,
        }
    }

    /// Measures a shape to a fraction of a pixel: the coverage of each pixel in and next to the region follows from its
    /// colour, the size from the covered area, and the centre from the centre of mass.
    fn placement(
        &self,
        region: &[usize],
        ground: [f64; 3],
        color: [f64; 3],
        shape: usize,
    ) -> Placement {
        let mut places = region.to_vec();
        places.extend(region.iter().flat_map(|&place| self.neighbours(place)));
        places.sort_unstable();
        places.dedup();
        let length = distance(color, ground).powi(2).max(1.0);
        let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
        for place in places {
            let along =
                (0..3).map(|c| (self.pixels[place][c] - ground[c]) * (color[c] - ground[c]));
            let covered = (along.sum::<f64>() / length).clamp(0.0, 1.0);
            area += covered;
            x += covered * ((place % self.side) as f64 + 0.5);
            y += covered * ((place / self.side) as f64 + 0.5);
        }
        let side = self.side as f64;
        let [unit, dx, dy] = MASSES[shape];
        let size = (area / unit).sqrt() / side;
        let area = area.max(f64::MIN_POSITIVE);
        Placement {
            x: x / area / side - dx * size,
            y: y / area / side - dy * size,
            size,
        }
    }

    /// Intersection over union of a region with a shape drawn into its bounding box.
    fn overlap(
        &self,
        inside: &[bool],
        rows: (usize, usize),
        columns: (usize, usize),
        shape: usize,
    ) -> f64 {
        let outline = Outline::new(shape);
        let [left, top, right, bottom] = outline.bounds();
        let (mut both, mut either) = (0, 0);
        for row in rows.0..rows.1 {
            for column in columns.0..columns.1 {
                let along = |at: usize, span: (usize, usize)| {
                    (at as f64 + 0.5 - span.0 as f64) / (span.1 - span.0) as f64
                };
                let x = left + (right - left) * along(column, columns);
                let y = top + (bottom - top) * along(row, rows);
                let (drawn, there) = (outline.contains(x, y), inside[row * self.side + column]);
                both += usize::from(drawn && there);
                either += usize::from(drawn || there);
            }
        }
        both as f64 / either.max(1) as f64
    }
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn nearest_color(color: [f64; 3]) -> usize {
    let distance = |index: &usize| distance(color, COLORS[*index].1.map(f64::from));
    (0..COLORS.len())
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .expect("there are colours")
}

/// Distance of the two most similar palette colours.
fn nearest_pair() -> f64 {
    let color = |i: usize| COLORS[i].1.map(f64::from);
    let pairs = (0..COLORS.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
    pairs
        .map(|(a, b)| distance(color(a), color(b)))
        .fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::world::HeldOut;

    #[test]
    fn rendered_images_score_as_right() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut right = 0;
        let total = 1000;
        for i in 0..total {
            let class = [HeldOut::None, HeldOut::Any][i % 2];
            let scene = Scene::random(&mut rng, class);
            let score = score(&scene.draw(32, &mut rng), &scene);
            right += usize::from(score.all());
        }
        assert!(right * 100 >= total * 99, "only {right} of {total}");
    }

    #[test]
    fn an_image_of_another_scene_scores_as_wrong() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for _ in 0..200 {
            let (scene, other) = (
                Scene::random(&mut rng, HeldOut::None),
                Scene::random(&mut rng, HeldOut::None),
            );
            let picture = other.draw(32, &mut rng);
            assert_eq!(
                score(&picture, &scene).all(),
                scene == other,
                "{scene:?} {other:?}"
            );
        }
    }

    #[test]
    fn placements_are_read_to_a_fraction_of_a_pixel() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut squares = [0.0; 3];
        let mut count = 0.0;
        for _ in 0..1000 {
            let scene = Scene::random(&mut rng, HeldOut::None);
            let placements = scene.place(&mut rng);
            let reading = read(&scene.render(32, &placements), &scene);
            if !reading.score.all() {
                continue;
            }
            for (found, drawn) in reading.placements.iter().zip(&placements) {
                let errors = [
                    found.x - drawn.x,
                    found.y - drawn.y,
                    found.size - drawn.size,
                ];
                let square = |(square, error): (&mut f64, f64)| *square += error.powi(2);
                squares.iter_mut().zip(errors).for_each(square);
                count += 1.0;
            }
        }
        let deviations = squares.map(|square| (square / count).sqrt() * 32.0);
        assert!(
            deviations.iter().all(|pixels| *pixels < 0.25),
            "{deviations:.3?}"
        );
    }
}
