//! The figure of docs/miniature.md: accuracy over the Fréchet distance, as SVG.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::protocol::statistics::Interval;

/// Point of the figure: label, Fréchet distance, accuracy.
pub(crate) type Point = (String, f64, Interval);

/// Points of the figure.
pub(crate) struct Curve {
    /// The teacher at several guidances, joined by a line.
    pub(crate) teacher: Vec<Point>,
    pub(crate) students: Vec<Point>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right and bottom margins.
const MARGINS: [f64; 4] = [70.0, 20.0, 30.0, 55.0];
const TEACHER: &str = "#1e6fe0";
const STUDENT: &str = "#e53935";

/// Linear axis with round ticks.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// An axis with four to ten ticks around the values.
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let span = (high - low).max(1e-6);
        let power = 10f64.powf((span / 4.0).log10().floor());
        let step = [5.0, 2.0, 1.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| span / step >= 3.0);
        let step = step.unwrap_or(power);
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            step,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|at| self.low + at as f64 * self.step)
    }

    /// Position of a value, 0…1.
    fn at(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn label(&self, value: f64) -> String {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{value:.decimals$}")
    }
}

/// Draws the figure.
///
/// # Errors
///
/// If the curve has no points, or a value is not finite.
pub(crate) fn draw(curve: &Curve) -> Result<String> {
    let all = || curve.teacher.iter().chain(&curve.students);
    ensure!(!curve.teacher.is_empty(), "expected points of the teacher");
    let is_finite = |(_, x, y): &Point| x.is_finite() && y.mean.is_finite() && y.half.is_finite();
    ensure!(all().all(is_finite), "expected finite values");
    let ends = all().flat_map(|(_, _, y)| [y.mean - y.half, y.mean + y.half]);
    let (x, y) = (Axis::around(all().map(|point| point.1)), Axis::around(ends));
    let [left, top, right, bottom] = MARGINS;
    let px = |value| left + x.at(value) * (WIDTH - left - right);
    let py = |value| HEIGHT - bottom - y.at(value) * (HEIGHT - top - bottom);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for tick in x.ticks() {
        let (at, end) = (px(tick), HEIGHT - bottom);
        writeln!(
            svg,
            "<path d=\"M{at:.1} {top}V{end}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            end + 18.0,
            x.label(tick)
        )?;
    }
    for tick in y.ticks() {
        let (at, end) = (py(tick), WIDTH - right);
        writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            y.label(tick)
        )?;
    }
    let middle = (left + WIDTH - right) / 2.0;
    writeln!(
        svg,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">Fréchet distance to the ground truth of the same captions</text>",
        HEIGHT - 12.0
    )?;
    let middle = (top + HEIGHT - bottom) / 2.0;
    writeln!(
        svg,
        "<text transform=\"translate(18 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">share of captions with everything right</text>"
    )?;

    let line: Vec<_> = curve
        .teacher
        .iter()
        .map(|(_, x, y)| format!("{:.1},{:.1}", px(*x), py(y.mean)))
        .collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{TEACHER}\" stroke-width=\"1.5\"/>",
        line.join(" ")
    )?;
    for (points, color) in [(&curve.teacher, TEACHER), (&curve.students, STUDENT)] {
        for (_, x, y) in points {
            let (cx, cy) = (px(*x), py(y.mean));
            let (high, low) = (py(y.mean + y.half), py(y.mean - y.half));
            writeln!(
                svg,
                "<path d=\"M{cx:.1} {high:.1}V{low:.1}\" stroke=\"{color}\"/><circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{color}\"/>"
            )?;
        }
    }
    for (index, (label, x, y)) in curve.teacher.iter().enumerate() {
        let (x, y) = (px(*x), py(y.mean - y.half) + 15.0);
        let name = if index == 0 { "guidance " } else { "" };
        let label = escaped(label);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"{TEACHER}\">{name}{label}</text>"
        )?;
    }
    let points = curve.students.iter();
    let points: Vec<_> = points.map(|(_, x, y)| (px(*x), py(y.mean))).collect();
    for ((label, ..), (place, y)) in curve
        .students
        .iter()
        .zip(points.iter().zip(baselines(&points)))
    {
        let (x, anchor) = match place.0 > (left + WIDTH - right) / 2.0 {
            true => (place.0 - 8.0, "end"),
            false => (place.0 + 8.0, "start"),
        };
        let label = escaped(label);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{STUDENT}\">{label}</text>"
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Baselines of labels beside points, from top to bottom at least a line apart where points are less than a label apart.
fn baselines(points: &[(f64, f64)]) -> Vec<f64> {
    const LINE: f64 = 15.0;
    const LABEL: f64 = 160.0;
    let mut order: Vec<_> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].1.total_cmp(&points[b].1));
    let mut found = vec![f64::NEG_INFINITY; points.len()];
    for (rank, &index) in order.iter().enumerate() {
        let (x, y) = points[index];
        let above = order[..rank].iter().copied();
        let near = above.filter(|&other| (points[other].0 - x).abs() < LABEL);
        let lowest = near.map(|other| found[other] + LINE);
        found[index] = lowest.fold(y + 4.0, f64::max);
    }
    found
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, distance: f64, mean: f64) -> Point {
        (label.to_owned(), distance, Interval { mean, half: 0.005 })
    }

    #[test]
    fn points_are_plotted_at_their_values() {
        let curve = Curve {
            teacher: vec![point("1", 10.0, 0.80), point("3", 20.0, 0.92)],
            students: vec![point("a<b", 15.0, 0.95)],
        };
        let svg = draw(&curve).unwrap();
        let centres: Vec<(f64, f64)> = svg
            .split("<circle cx=\"")
            .skip(1)
            .map(|rest| {
                let mut numbers = rest.split('"');
                let x = numbers.next().unwrap().parse().unwrap();
                (x, numbers.nth(1).unwrap().parse().unwrap())
            })
            .collect();
        let [weak, strong, student] = centres[..] else {
            panic!("{centres:?}")
        };
        assert!((student.0 - (weak.0 + strong.0) / 2.0).abs() < 0.2);
        assert!(student.1 < strong.1 && strong.1 < weak.1, "up is better");
        let slope = (weak.1 - strong.1) / 0.12;
        assert!(((strong.1 - student.1) / 0.03 - slope).abs() < 0.02 * slope);
        assert!(svg.contains("guidance 1<") && svg.contains(">3<") && svg.contains("a&lt;b"));
    }

    #[test]
    fn labels_of_near_points_are_a_line_apart() {
        let found = baselines(&[(10.0, 50.0), (12.0, 48.0), (400.0, 49.0), (11.0, 100.0)]);
        assert_eq!(found, [67.0, 52.0, 53.0, 104.0]);
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::around([0.913, 0.957].into_iter());
        let ticks: Vec<_> = axis.ticks().map(|tick| axis.label(tick)).collect();
        assert_eq!(ticks, ["0.91", "0.92", "0.93", "0.94", "0.95", "0.96"]);
    }

    #[test]
    fn a_curve_without_points_is_an_error() {
        let curve = Curve {
            teacher: vec![],
            students: vec![],
        };
        assert!(draw(&curve).is_err());
    }
}
