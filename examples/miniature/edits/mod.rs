//! Scores edits of the student's own images: ChordEdit and simpler methods.

mod tasks;
mod ways;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use examples_common::{grid, write_png};
use image::RgbImage;
use swiftbrush_pipeline::edit::{Options, Refinement};
use swiftbrush_pipeline::{Model, TextToImage};
use swiftbrush_trainer::Threads;

use crate::edits::tasks::{KINDS, Kind, Task, tasks};
use crate::edits::ways::{Way, chosen};
use crate::model::Workshop;
use crate::protocol::{Interval, Paired};
use crate::scorer::{Score, score};
use crate::training::{PARTS, progress_bar};

/// Images in a batch.
const BATCH: usize = 64;
/// Seeds of the edits that tables report, and of those that options are chosen on.
const SEEDS: [u64; 2] = [0x0ed1_7000, 0x0c40_5e00];

/// Scores edits of each kind with every method.
#[derive(Clone, Debug, Args)]
pub(crate) struct Command {
    /// Number of edits of each kind
    #[arg(long, default_value_t = 1024)]
    count: usize,
    /// Compares options on a separate set of edits, to choose the options
    #[arg(long)]
    choose: bool,
    /// Folder of the model [default: the miniature that ships]
    #[arg(long)]
    model: Option<PathBuf>,
    /// PNG file of some edits, one per row: the picture, then the result of every method
    #[arg(long)]
    sheet: Option<PathBuf>,
}

/// Pairs of rows whose differences are printed.
const COMPARED: [(usize, usize); 9] = [
    (0, 4),
    (1, 5),
    (0, 8),
    (1, 8),
    (1, 9),
    (10, 4),
    (10, 5),
    (10, 8),
    (10, 9),
];

/// Results of one method on the edits of one kind.
struct Results {
    /// True for each edit that reached its target and kept everything else.
    right: Vec<bool>,
    /// Share that has the edited attribute, whatever else changed.
    reached: f64,
    /// Mean squared error of bytes outside the edited object, by edit; empty if nothing is outside.
    errors: Vec<f64>,
}

impl Results {
    fn new(tasks: &[Task], kind: Kind, pictures: &[RgbImage]) -> Self {
        let scores: Vec<Score> = tasks
            .iter()
            .zip(pictures)
            .map(|(task, picture)| score(picture, &task.target))
            .collect();
        let reached = scores.iter().filter(|score| kind.is_reached(**score));
        let pairs = tasks.iter().zip(pictures);
        Self {
            right: scores.iter().map(|score| score.all()).collect(),
            reached: reached.count() as f64 / scores.len() as f64,
            errors: pairs
                .filter_map(|(task, picture)| task.error_outside(picture))
                .collect(),
        }
    }

    /// PSNR of the mean squared error, with the half-width of its interval.
    fn psnr(&self) -> String {
        let count = self.errors.len() as f64;
        let mean = self.errors.iter().sum::<f64>() / count;
        if self.errors.is_empty() {
            return "–".to_owned();
        }
        if mean == 0.0 {
            return "exact".to_owned();
        }
        let squares: f64 = self.errors.iter().map(|error| (error - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0) / count).sqrt();
        let decibels = 10.0 / std::f64::consts::LN_10;
        let interval = Interval {
            mean: decibels * (255.0f64.powi(2) / mean).ln(),
            half: 1.959_964 * decibels * deviation / mean,
        };
        format!("{interval:.1}")
    }
}

impl Command {
    pub(crate) fn run(&self, workshop: &Workshop) -> Result<()> {
        let folder = self.model.clone().unwrap_or(examples_common::miniature());
        let pipeline = TextToImage::from_model(&Model::open(folder)?, None, &workshop.device)?;
        let [report, choose] = SEEDS.map(|seed| seed ^ workshop.seed);
        match self.choose {
            true => choose_options(&pipeline, choose, self.count),
            false => self.report(&pipeline, report),
        }
    }

    fn report(&self, pipeline: &TextToImage, seed: u64) -> Result<()> {
        let sets = all_tasks(pipeline, seed, self.count)?;
        let ways = Way::all();
        let mut results: Vec<Vec<Results>> = Vec::new();
        let mut rows = Vec::new();
        for way in &ways {
            let mut row = Vec::new();
            for (kind, tasks) in KINDS.into_iter().zip(&sets) {
                let pictures = paint(pipeline, way, kind, tasks)?;
                row.push(Results::new(tasks, kind, &pictures));
                rows.push(pictures.into_iter().take(SHOWN).collect::<Vec<_>>());
            }
            print_row(&way.name, way.n_samples(), &row);
            results.push(row);
        }
        for (first, second) in COMPARED {
            compare(
                [&ways[first], &ways[second]],
                [&results[first], &results[second]],
            )?;
        }
        match &self.sheet {
            Some(path) => write_sheet(path, &sets, &rows),
            None => Ok(()),
        }
    }
}

fn all_tasks(pipeline: &TextToImage, seed: u64, count: usize) -> Result<Vec<Vec<Task>>> {
    let sets = KINDS
        .into_iter()
        .map(|kind| tasks(pipeline, kind, seed, count));
    sets.collect()
}

/// Edits in batches, one thread for each of several.
fn paint(pipeline: &TextToImage, way: &Way, kind: Kind, tasks: &[Task]) -> Result<Vec<RgbImage>> {
    let batches: Vec<_> = tasks.chunks(BATCH).collect();
    let bar = progress_bar(&way.name, tasks.len() as u64, 0);
    let painted = Threads::new(PARTS as usize).map(&batches, |tasks| {
        let pictures = way.paint(pipeline, kind, tasks);
        bar.inc(tasks.len() as u64);
        pictures
    });
    bar.finish_and_clear();
    let painted: Result<Vec<_>> = painted.into_iter().collect();
    Ok(painted?.into_iter().flatten().collect())
}

fn print_row(name: &str, samples: String, results: &[Results]) {
    let mut cells = vec![name.to_owned(), samples];
    for of_kind in results {
        cells.push(format!("{:.3}", Interval::of_share(&of_kind.right)));
    }
    let reached: Vec<_> = results
        .iter()
        .map(|of| format!("{:.2}", of.reached))
        .collect();
    cells.push(reached.join(" "));
    cells.extend(results[..3].iter().map(Results::psnr));
    println!("| {} |", cells.join(" | "));
}

/// Prints the paired differences of two methods, by kind and overall.
fn compare(ways: [&Way; 2], results: [&Vec<Results>; 2]) -> Result<()> {
    let mut cells = vec![format!("{} − {}", ways[0].name, ways[1].name)];
    let mut all = [Vec::new(), Vec::new()];
    for (first, second) in results[0].iter().zip(results[1]) {
        let difference = Paired::new(&first.right, &second.right)?.difference;
        cells.push(format!("{difference:+.3}"));
        all[0].extend(&first.right);
        all[1].extend(&second.right);
    }
    let difference = Paired::new(&all[0], &all[1])?.difference;
    cells.push(format!("{difference:+.3}"));
    println!("| {} |", cells.join(" | "));
    Ok(())
}

/// Edits of each kind in a sheet.
const SHOWN: usize = 6;

fn write_sheet(path: &Path, sets: &[Vec<Task>], rows: &[Vec<RgbImage>]) -> Result<()> {
    let mut pictures = Vec::new();
    let n_ways = rows.len() / sets.len();
    for (kind, tasks) in sets.iter().enumerate() {
        for (index, task) in tasks.iter().take(SHOWN).enumerate() {
            println!("{} -> {}", task.source.caption(), task.target.caption());
            pictures.push(task.picture.clone());
            let of_ways = (0..n_ways).map(|way| &rows[way * sets.len() + kind]);
            pictures.extend(of_ways.map(|row| row[index].clone()));
        }
    }
    write_png(&grid(&pictures, n_ways + 1), path)
}

/// Prints the share of right edits for many options, the best first.
fn choose_options(pipeline: &TextToImage, seed: u64, count: usize) -> Result<()> {
    let sets = all_tasks(pipeline, seed, count)?;
    let mut found = Vec::new();
    for way in candidates() {
        let mut shares = Vec::new();
        for (kind, tasks) in KINDS.into_iter().zip(&sets) {
            let pictures = paint(pipeline, &way, kind, tasks)?;
            let results = Results::new(tasks, kind, &pictures);
            shares.push(Interval::of_share(&results.right).mean);
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let shares: Vec<_> = shares.iter().map(|share| format!("{share:.3}")).collect();
        println!("{mean:.3} | {} | {}", shares.join(" "), way.name);
        found.push((mean, way.name));
    }
    let best = found.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    let (mean, name) = best.context("there are candidates")?;
    println!("best over all kinds: {name}, {mean:.3}");
    Ok(())
}

/// Methods to choose from.
fn candidates() -> Vec<Way> {
    let strengths = (3..=20).map(|step| f64::from(step) * 0.05);
    let mut ways: Vec<_> = strengths.map(Way::image_to_image).collect();
    let refined = |time, blend| Some(Refinement::default().with_time(time).with_blend(blend));
    for (time, delta) in [
        (0.9, 0.15),
        (0.9, 0.3),
        (0.95, 0.1),
        (1.0, 0.1),
        (1.0, 0.3),
        (0.9, 0.0),
        (0.75, 0.0),
        (0.6, 0.0),
        (0.5, 0.0),
        (1.0, 0.0),
    ] {
        for step in [0.7, 1.0, 1.4] {
            for refinement in [
                None,
                refined(0.1, 1.0),
                refined(0.3, 1.0),
                refined(0.5, 1.0),
                refined(0.3, 0.5),
            ] {
                let options = Options::default()
                    .with_times(time, delta)
                    .with_step(step)
                    .with_refinement(refinement);
                ways.push(Way::chord("", options));
            }
        }
    }
    ways.push(Way::chord("", chosen().with_noises(4)));
    ways
}
