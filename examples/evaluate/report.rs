//! Results as a table, and a contact sheet of the best and worst pictures.

use std::fmt::Write;

use anyhow::Result;
use image::{Rgb, RgbImage, imageops};
use swiftbrush_checkpoint::write_atomically;
use swiftbrush_evaluator::{Evaluation, FeatureSets, Measured, Reference};
use swiftbrush_images::{Filter, centre_square, resize};
use swiftbrush_metrics::nearest;

use crate::pictures::Pictures;
use crate::{Args, Plan};

/// Side of a picture on the sheet, in pixels.
const TILE: u32 = 96;
/// Number of pictures per row of the sheet.
const COLUMNS: usize = 12;
/// Gap between the best and worst pictures, in pixels.
const GAP: u32 = 8;

/// A Markdown table with one row per name: values ± 1.96 standard errors for a single result; mean, minimum and maximum for several.
pub(crate) fn table(results: &[Evaluation]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for result in results {
        if !names.contains(&result.subject.as_str()) {
            names.push(&result.subject);
        }
    }
    let Some(first) = results.first() else {
        return String::new();
    };
    let protocol = &first.protocol;
    let mut text = format!(
        "protocol {} {}, {} pictures",
        protocol.name, protocol.version, first.pictures
    );
    if let Some(count) = first.reference_pictures {
        let _ = write!(text, ", {count} reference pictures");
    }
    let heads = first
        .values
        .iter()
        .map(|value| format!(" {} ({}) |", value.name, value.network));
    let rules = first.values.iter().map(|_| "---|");
    let _ = writeln!(
        text,
        "\n\n| |{}\n|---|{}",
        heads.collect::<String>(),
        rules.collect::<String>()
    );
    for name in names {
        let of_name: Vec<_> = results
            .iter()
            .filter(|result| result.subject == name)
            .collect();
        let _ = write!(text, "| {name} |");
        for column in 0..first.values.len() {
            let values: Vec<_> = of_name
                .iter()
                .filter_map(|result| result.values.get(column))
                .collect();
            let _ = match values.as_slice() {
                [value] => match value.standard_error {
                    Some(error) => {
                        let (value, error) = (short(value.value), short(1.96 * error));
                        write!(text, " {value} ± {error} |")
                    }
                    None => write!(text, " {} |", short(value.value)),
                },
                values => {
                    let numbers = || values.iter().map(|value| value.value);
                    let mean = numbers().sum::<f64>() / values.len().max(1) as f64;
                    let least = numbers().fold(f64::INFINITY, f64::min);
                    let greatest = numbers().fold(f64::NEG_INFINITY, f64::max);
                    let [mean, least, greatest] = [mean, least, greatest].map(short);
                    write!(text, " {mean} [{least}, {greatest}] |")
                }
            };
        }
        text.push('\n');
    }
    text
}

/// Formats a number with four significant digits.
fn short(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let decimals = (3.0 - number.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{number:.decimals$}")
}

/// Writes `sheet.png`, with the best pictures above the worst, and their list `sheet.txt`, by the score of picture and prompt or
/// else by the distance to the nearest reference picture.
pub(crate) fn sheet(
    args: &Args,
    plan: &Plan,
    pictures: &Pictures,
    features: &FeatureSets,
    reference: &Reference,
    measured: &Measured,
) -> Result<()> {
    let scores = match &measured.scores {
        Some(scores) => scores.clone(),
        None => {
            let networks = plan.protocol.networks().into_iter();
            let mut pairs = networks
                .filter_map(|name| Some((features.get(name)?, reference.features.get(name)?)));
            let Some((of, among)) = pairs.next() else {
                return Ok(());
            };
            let near = nearest(of, among)?;
            near.into_iter().map(|(_, distance)| -distance).collect()
        }
    };
    let count = args.sheet.min(scores.len() / 2);
    if count == 0 {
        return Ok(());
    }
    let mut order: Vec<_> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (best, worst) = (&order[..count], &order[order.len() - count..]);
    let rows = count.div_ceil(COLUMNS) as u32;
    let columns = count.min(COLUMNS) as u32;
    let ground = Rgb([255; 3]);
    let mut sheet = RgbImage::from_pixel(columns * TILE, 2 * rows * TILE + GAP, ground);
    let mut text = String::new();
    for (which, numbers, top) in [("best", best, 0), ("worst", worst, rows * TILE + GAP)] {
        let mut place = 0;
        // In batches of the same size as in the run, which fit into memory.
        for numbers in numbers.chunks(args.batch) {
            for (subject, number) in pictures.get(numbers)?.into_iter().zip(numbers) {
                let tile = resize(&centre_square(&subject.image), TILE, TILE, Filter::Lanczos);
                let (x, y) = (place % columns * TILE, top + place / columns * TILE);
                imageops::replace(&mut sheet, &tile, x.into(), y.into());
                let prompt = pictures.prompts().map_or("", |prompts| &prompts[*number]);
                let _ = writeln!(text, "{which}\t{number}\t{:.6}\t{prompt}", scores[*number]);
                place += 1;
            }
        }
    }
    write_atomically(args.output.join("sheet.txt"), |file| {
        file.write_all(text.as_bytes())
    })?;
    examples_common::write_png(&sheet, &args.output.join("sheet.png"))
}
