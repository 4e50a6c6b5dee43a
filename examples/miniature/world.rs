//! The shapes world: scenes, their captions, and their pictures.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The ten colours, as sRGB bytes.
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

/// The six shapes.
pub(crate) const SHAPES: [&str; 6] = ["circle", "square", "triangle", "star", "heart", "ring"];

/// Colour and shape of objects that nothing is ever trained on.
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
    pub(crate) fn is_held_out(self) -> bool {
        HELD_OUT.contains(&(COLORS[self.color].0, SHAPES[self.shape]))
    }

    fn name(self) -> String {
        let color = COLORS[self.color].0;
        let article = if color == "orange" { "an" } else { "a" };
        format!("{article} {color} {}", SHAPES[self.shape])
    }
}

/// What a caption says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    One(Object),
    Above(Object, Object),
    LeftOf(Object, Object),
}

/// Objects on a ground.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    pub(crate) ground: usize,
    pub(crate) layout: Layout,
}

impl Scene {
    /// A scene with no held-out pair, or with at least one.
    pub(crate) fn random(rng: &mut ChaCha8Rng, held_out: bool) -> Self {
        loop {
            let scene = Self::any(rng);
            let has_held_out = scene.objects().iter().any(|object| object.is_held_out());
            if has_held_out == held_out {
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

    /// Draws the scene at random places: RGB bytes, row by row.
    pub(crate) fn draw(&self, side: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let s = side as f64;
        let mut canvas = Canvas::new(side, COLORS[self.ground].1);
        let mut jitter = || rng.random_range(-0.10..=0.10) * s;
        match self.layout {
            Layout::One(object) => {
                let margin = s / 16.0;
                let size = rng.random_range(0.40..=0.80) * s;
                let size = size.min(s - 2.0 * margin);
                let mut place = || {
                    let (low, high) = (margin + size / 2.0, s - margin - size / 2.0);
                    low + (high - low) * rng.random::<f64>()
                };
                let (x, y) = (place(), place());
                canvas.draw(object, x, y, size);
            }
            Layout::Above(first, second) => {
                canvas.draw(first, s / 2.0 + jitter(), 0.25 * s, 0.42 * s);
                canvas.draw(second, s / 2.0 + jitter(), 0.75 * s, 0.42 * s);
            }
            Layout::LeftOf(first, second) => {
                canvas.draw(first, 0.25 * s, s / 2.0 + jitter(), 0.42 * s);
                canvas.draw(second, 0.75 * s, s / 2.0 + jitter(), 0.42 * s);
            }
        }
        canvas.into_bytes()
    }
}

/// Every word that a caption can hold.
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

/// Points per pixel and axis at which coverage is sampled.
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

    /// Paints a shape into the square of side `size` around (`x`, `y`).
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

/// Share of a pixel's sample points that lie inside.
fn coverage(inside: impl Fn(f64, f64) -> bool) -> f64 {
    let at = |i: usize| (i as f64 + 0.5) / SAMPLES as f64;
    let hits = (0..SAMPLES * SAMPLES)
        .filter(|i| inside(at(i % SAMPLES), at(i / SAMPLES)))
        .count();
    hits as f64 / (SAMPLES * SAMPLES) as f64
}

/// A shape in its bounding square, −½…½ on both axes, y downwards.
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

    /// Left, top, right and bottom of what is inside.
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
