//! The shapes world: scenes, captions and the renderer.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Palette: names and sRGB bytes.
pub(crate) const COLORS: [(&str, [u8; 3]); 10] = [
    ("red", [0xE5, 0x39, 0x35]),
    ("blue", [0x1E, 0x6F, 0xE0]),
    ("green", [0x35, 0xA8, 0x45]),
    ("yellow", [0xFD, 0xD8, 0x35]),
    ("purple", [0x8E, 0x44, 0xAD]),
    ("orange", [0xFB, 0x8C, 0x00]),
    ("pink", [0xF4, 0x8F, 0xB1]),
    ("gray", [0x9E, 0x9E, 0x9E]),
    ("white", [0xFF, 0xFF, 0xFF]),
    ("black", [0x22, 0x22, 0x22]),
];

/// Shape names.
pub(crate) const SHAPES: [&str; 6] = ["circle", "square", "triangle", "star", "heart", "ring"];

/// Held-out pairs of colour and shape, whose images are never used for training.
///
/// Captions with the first half are used to distil the `taught` students; see [`HeldOut`].
pub(crate) const HELD_OUT: [(&str, &str); 6] = [
    ("purple", "star"),
    ("green", "heart"),
    ("orange", "square"),
    ("pink", "triangle"),
    ("blue", "ring"),
    ("yellow", "circle"),
];

/// A coloured shape; indices into [`COLORS`] and [`SHAPES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) color: usize,
    pub(crate) shape: usize,
}

impl Object {
    /// The index of this pair in [`HELD_OUT`].
    fn held_out_index(self) -> Option<usize> {
        let pair = (COLORS[self.color].0, SHAPES[self.shape]);
        HELD_OUT.iter().position(|held_out| *held_out == pair)
    }

    pub(crate) fn is_held_out(self) -> bool {
        self.held_out_index().is_some()
    }

    fn name(self) -> String {
        let color = COLORS[self.color].0;
        let article = if color == "orange" { "an" } else { "a" };
        format!("{article} {color} {}", SHAPES[self.shape])
    }

    fn of_name(name: &str) -> Option<Self> {
        let (color, shape) = name.split_once(' ')?.1.split_once(' ')?;
        Some(Self {
            color: color_of_name(color)?,
            shape: SHAPES.iter().position(|known| *known == shape)?,
        })
    }
}

fn color_of_name(name: &str) -> Option<usize> {
    COLORS.iter().position(|(known, _)| *known == name)
}

/// Objects of a scene and their relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    One(Object),
    Above(Object, Object),
    LeftOf(Object, Object),
}

/// Content of a caption: objects on a ground.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    pub(crate) ground: usize,
    pub(crate) layout: Layout,
}

/// Classes of scenes by the held-out pairs in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HeldOut {
    /// No held-out pair: the training distribution.
    None,
    /// At least one held-out pair.
    Any,
    /// At least one pair of the first half of [`HELD_OUT`], none of the second.
    First,
    /// At least one pair of the second half of [`HELD_OUT`], none of the first.
    Second,
}

impl HeldOut {
    pub(crate) fn contains(self, scene: &Scene) -> bool {
        let objects = scene.objects();
        let indices: Vec<_> = objects.iter().filter_map(|o| o.held_out_index()).collect();
        let is_first = |index: &usize| *index < HELD_OUT.len() / 2;
        match self {
            Self::None => indices.is_empty(),
            Self::Any => !indices.is_empty(),
            Self::First => !indices.is_empty() && indices.iter().all(is_first),
            Self::Second => !indices.is_empty() && !indices.iter().any(is_first),
        }
    }
}

/// Placement of an object: centre and side of its bounding square, in units of the image's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placement {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) size: f64,
}

impl Placement {
    /// Returns whether a pixel of an image with `side` pixels touches the bounding square.
    pub(crate) fn contains(&self, column: usize, row: usize, side: usize) -> bool {
        let reach = self.size / 2.0 + 0.5 / side as f64;
        let is_near = |pixel: usize, centre: f64| {
            ((pixel as f64 + 0.5) / side as f64 - centre).abs() <= reach
        };
        is_near(column, self.x) && is_near(row, self.y)
    }
}

impl Scene {
    /// Draws a scene uniformly from one class.
    pub(crate) fn random(rng: &mut ChaCha8Rng, class: HeldOut) -> Self {
        loop {
            let scene = Self::any(rng);
            if class.contains(&scene) {
                return scene;
            }
        }
    }

    fn any(rng: &mut ChaCha8Rng) -> Self {
        let ground = rng.random_range(0..COLORS.len());
        let mut object = || loop {
            let color = rng.random_range(0..COLORS.len());
            let shape = rng.random_range(0..SHAPES.len());
            if color != ground {
                return Object { color, shape };
            }
        };
        let (first, mut second) = (object(), object());
        while second == first {
            second = object();
        }
        let layout = match rng.random_range(0..3) {
            0 => Layout::One(first),
            1 => Layout::Above(first, second),
            _ => Layout::LeftOf(first, second),
        };
        Self { ground, layout }
    }

    /// Returns whether the scene is valid: no object has the colour of the ground, and no two are alike.
    pub(crate) fn is_valid(&self) -> bool {
        let objects = self.objects();
        let is_visible = |object: &Object| object.color != self.ground;
        objects.iter().all(is_visible) && objects.get(1) != objects.first()
    }

    /// The scene with one of its objects changed.
    pub(crate) fn with_object(&self, which: usize, change: impl Fn(&mut Object)) -> Self {
        let mut scene = *self;
        let objects: &mut [&mut Object] = match &mut scene.layout {
            Layout::One(object) => &mut [object],
            Layout::Above(first, second) | Layout::LeftOf(first, second) => &mut [first, second],
        };
        change(objects[which]);
        scene
    }

    pub(crate) fn objects(&self) -> Vec<Object> {
        match self.layout {
            Layout::One(object) => vec![object],
            Layout::Above(first, second) | Layout::LeftOf(first, second) => vec![first, second],
        }
    }

    pub(crate) fn caption(&self) -> String {
        let ground = COLORS[self.ground].0;
        let article = if ground == "orange" { "an" } else { "a" };
        let objects = match self.layout {
            Layout::One(object) => object.name(),
            Layout::Above(first, second) => format!("{} above {}", first.name(), second.name()),
            Layout::LeftOf(first, second) => {
                format!("{} to the left of {}", first.name(), second.name())
            }
        };
        format!("{objects} on {article} {ground} background")
    }

    /// The scene with this caption, or `None` if no scene has it.
    pub(crate) fn of_caption(caption: &str) -> Option<Self> {
        let (objects, ground) = caption.strip_suffix(" background")?.split_once(" on ")?;
        let two = |relation| {
            let (first, second) = objects.split_once(relation)?;
            Some((Object::of_name(first)?, Object::of_name(second)?))
        };
        let layout = match (two(" above "), two(" to the left of ")) {
            (Some((first, second)), _) => Layout::Above(first, second),
            (_, Some((first, second))) => Layout::LeftOf(first, second),
            _ => Layout::One(Object::of_name(objects)?),
        };
        let ground = color_of_name(ground.split_once(' ')?.1)?;
        let scene = Self { ground, layout };
        // The articles, too.
        (scene.is_valid() && scene.caption() == caption).then_some(scene)
    }

    /// Draws the placements of the objects, in the order of [`objects`](Self::objects).
    pub(crate) fn place(&self, rng: &mut ChaCha8Rng) -> Vec<Placement> {
        /// Side of each of two objects.
        const SIZE: f64 = 0.42;
        const MARGIN: f64 = 1.0 / 16.0;
        let at = |x, y, size| Placement { x, y, size };
        let mut jitter = || 0.5 + rng.random_range(-0.10..=0.10);
        match self.layout {
            Layout::One(_) => {
                let size: f64 = rng.random_range(0.40..=0.80);
                let mut place = || {
                    let (low, high) = (MARGIN + size / 2.0, 1.0 - MARGIN - size / 2.0);
                    low + (high - low) * rng.random::<f64>()
                };
                let (x, y) = (place(), place());
                vec![at(x, y, size)]
            }
            Layout::Above(..) => vec![at(jitter(), 0.25, SIZE), at(jitter(), 0.75, SIZE)],
            Layout::LeftOf(..) => vec![at(0.25, jitter(), SIZE), at(0.75, jitter(), SIZE)],
        }
    }

    /// Renders the objects at the given placements: `side × side` RGB bytes in row-major order.
    pub(crate) fn render(&self, side: usize, placements: &[Placement]) -> Vec<u8> {
        let mut canvas = Canvas::new(side, COLORS[self.ground].1);
        let s = side as f64;
        for (object, at) in self.objects().into_iter().zip(placements) {
            canvas.draw(object, at.x * s, at.y * s, at.size * s);
        }
        canvas.into_bytes()
    }

    /// Renders the scene at random placements.
    pub(crate) fn draw(&self, side: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
        self.render(side, &self.place(rng))
    }
}

/// The words of the captions.
pub(crate) fn words() -> Vec<&'static str> {
    let colors = COLORS.iter().map(|(name, _)| *name);
    let rest = [
        "a",
        "an",
        "on",
        "background",
        "above",
        "to",
        "the",
        "left",
        "of",
    ];
    rest.into_iter().chain(colors).chain(SHAPES).collect()
}

/// Coverage samples per pixel and axis.
const SAMPLES: usize = 4;

struct Canvas {
    side: usize,
    pixels: Vec<[f64; 3]>,
}

impl Canvas {
    fn new(side: usize, ground: [u8; 3]) -> Self {
        Self {
            side,
            pixels: vec![ground.map(f64::from); side * side],
        }
    }

    /// Draws a shape into the square of side `size` centred at (`x`, `y`), in pixels.
    fn draw(&mut self, object: Object, x: f64, y: f64, size: f64) {
        let outline = Outline::new(object.shape);
        let color = COLORS[object.color].1.map(f64::from);
        let span = |centre: f64| {
            let low = (centre - size / 2.0).floor().max(0.0) as usize;
            let high = (centre + size / 2.0).ceil().min(self.side as f64) as usize;
            low..high
        };
        for row in span(y) {
            for column in span(x) {
                let covered = coverage(|dx, dy| {
                    let (u, v) = (
                        (column as f64 + dx - x) / size,
                        (row as f64 + dy - y) / size,
                    );
                    outline.contains(u, v)
                });
                let pixel = &mut self.pixels[row * self.side + column];
                for (pixel, color) in pixel.iter_mut().zip(color) {
                    *pixel += (color - *pixel) * covered;
                }
            }
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        self.pixels
            .into_iter()
            .flatten()
            .map(|value| value.round() as u8)
            .collect()
    }
}

/// Share of a pixel's sample points inside the shape.
fn coverage(inside: impl Fn(f64, f64) -> bool) -> f64 {
    let at = |i: usize| (i as f64 + 0.5) / SAMPLES as f64;
    let hits = (0..SAMPLES * SAMPLES)
        .filter(|i| inside(at(i % SAMPLES), at(i / SAMPLES)))
        .count();
    hits as f64 / (SAMPLES * SAMPLES) as f64
}

/// Outline of a shape in its bounding square, −½…½ on both axes, y downwards.
pub(crate) enum Outline {
    Disc { outer: f64, hole: f64 },
    Box { half: f64 },
    Polygon(Vec<(f64, f64)>),
}

impl Outline {
    pub(crate) fn new(shape: usize) -> Self {
        match SHAPES[shape] {
            "circle" => Self::Disc {
                outer: 0.46,
                hole: 0.0,
            },
            "ring" => Self::Disc {
                outer: 0.46,
                hole: 0.23,
            },
            "square" => Self::Box { half: 0.42 },
            "triangle" => Self::Polygon(vec![(0.0, -0.43), (0.46, 0.43), (-0.46, 0.43)]),
            "star" => Self::Polygon(star()),
            _ => Self::Polygon(heart()),
        }
    }

    pub(crate) fn contains(&self, x: f64, y: f64) -> bool {
        match self {
            Self::Disc { outer, hole } => {
                let radius = x.hypot(y);
                radius <= *outer && radius >= *hole
            }
            Self::Box { half } => x.abs() <= *half && y.abs() <= *half,
            Self::Polygon(corners) => {
                let next = corners.iter().cycle().skip(1);
                let crossings = corners.iter().zip(next).filter(|&(&(x0, y0), &(x1, y1))| {
                    (y0 > y) != (y1 > y) && x < (x1 - x0) * (y - y0) / (y1 - y0) + x0
                });
                crossings.count() % 2 == 1
            }
        }
    }

    /// Left, top, right and bottom of the shape.
    pub(crate) fn bounds(&self) -> [f64; 4] {
        match self {
            Self::Disc { outer, .. } => [-outer, -outer, *outer, *outer],
            Self::Box { half } => [-half, -half, *half, *half],
            Self::Polygon(corners) => corners.iter().fold([1.0, 1.0, -1.0, -1.0], |b, &(x, y)| {
                [b[0].min(x), b[1].min(y), b[2].max(x), b[3].max(y)]
            }),
        }
    }
}

fn star() -> Vec<(f64, f64)> {
    let corner = |i: usize| {
        let radius = if i.is_multiple_of(2) { 0.48 } else { 0.20 };
        let angle = std::f64::consts::PI * (i as f64 / 5.0 - 0.5);
        (radius * angle.cos(), radius * angle.sin() + 0.03)
    };
    (0..10).map(corner).collect()
}

fn heart() -> Vec<(f64, f64)> {
    let corner = |i: usize| {
        let t = 2.0 * std::f64::consts::PI * i as f64 / 40.0;
        let x = 16.0 * t.sin().powi(3);
        let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
        (x / 35.0, (-y - 2.5) / 35.0)
    };
    (0..40).map(corner).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_scene_is_read_back_from_its_caption() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..300 {
            let scene = Scene::any(&mut rng);
            assert_eq!(Scene::of_caption(&scene.caption()), Some(scene));
        }
        for caption in [
            "",
            "a cat",
            "a red circle",
            "a red circle on a white background, oil on canvas",
            "an red circle on a white background",
            "a red cat on a white background",
            "a red circle on a mauve background",
            "a red circle below a blue star on a white background",
            "a red circle above a red circle on a white background",
            "a red circle on a red background",
        ] {
            assert_eq!(Scene::of_caption(caption), None, "{caption}");
        }
    }

    #[test]
    fn classes_of_scenes_hold_the_pairs_they_name() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let pairs = |scene: &Scene| -> Vec<usize> {
            let objects = scene.objects().into_iter();
            objects.filter_map(Object::held_out_index).collect()
        };
        for _ in 0..300 {
            assert!(pairs(&Scene::random(&mut rng, HeldOut::None)).is_empty());
            assert!(!pairs(&Scene::random(&mut rng, HeldOut::Any)).is_empty());
            let first = pairs(&Scene::random(&mut rng, HeldOut::First));
            assert!(!first.is_empty() && first.iter().all(|pair| *pair < 3));
            let second = pairs(&Scene::random(&mut rng, HeldOut::Second));
            assert!(!second.is_empty() && second.iter().all(|pair| *pair >= 3));
        }
    }
}
