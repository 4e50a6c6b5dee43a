//! Progress of a run: a bar on a terminal, and occasional lines elsewhere.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use swiftbrush_trainer::{Distiller, Error, Event, Observer, Report, Timing, WatchReport};

/// Time between two lines without a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

pub(crate) struct Progress {
    steps: u64,
    /// Steps of this process and the time that they took.
    done: (u64, f64),
    output: Output,
}

enum Output {
    Bar(ProgressBar),
    /// The time of the last line.
    Lines(Option<Instant>),
}

impl Progress {
    pub(crate) fn new(distiller: &Distiller) -> Self {
        let steps = distiller.recipe().steps;
        let output = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(steps).with_position(distiller.n_steps());
            let template = "{bar:40} {pos}/{len} {msg} {eta} left";
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or(ProgressStyle::default_bar()));
            bar.reset_eta();
            Output::Bar(bar)
        } else {
            Output::Lines(None)
        };
        Self {
            steps,
            done: (0, 0.0),
            output,
        }
    }

    fn step(&mut self, report: &Report, timing: &Timing) {
        self.done.0 += 1;
        self.done.1 += timing.seconds;
        let text = described(report, timing);
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_position(report.step + 1);
                bar.set_message(text);
            }
            Output::Lines(last) => {
                if last.is_none_or(|last| last.elapsed() >= BETWEEN_LINES) {
                    *last = Some(Instant::now());
                    let left = self.steps - report.step - 1;
                    let hours = left as f64 * self.done.1 / self.done.0 as f64 / 3600.0;
                    let step = report.step + 1;
                    eprintln!("step {step} of {}: {text}, {hours:.1} h left", self.steps);
                }
            }
        }
    }

    fn look(&self, report: &WatchReport) {
        let text = look(report);
        match &self.output {
            Output::Bar(bar) => bar.println(text),
            Output::Lines(_) => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.finish();
        }
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
        match event {
            Event::Step { report, timing } => self.step(report, timing),
            Event::Watched { report, .. } => self.look(report),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Scores of a watcher report in one line.
fn look(report: &WatchReport) -> String {
    let mut parts = vec![format!("diversity {:.3}", report.diversity)];
    parts.extend(
        report
            .clip_score
            .map(|score| format!("CLIP score {score:.3}")),
    );
    let distances = report.teacher_distance.iter();
    let distances: Vec<_> = distances
        .map(|band| format!("{:.2e}", band.distance))
        .collect();
    parts.push(format!("teacher distance {}", distances.join(" ")));
    format!("after step {}: {}", report.step, parts.join(", "))
}

/// Losses, rate and memory in one line.
fn described(report: &Report, timing: &Timing) -> String {
    let losses = report.losses.iter();
    let mut parts: Vec<_> = losses
        .map(|(name, loss)| format!("{name} {loss:.3e}"))
        .collect();
    parts.push(format!("{:.2} images/s", timing.images_per_second));
    if let Some(bytes) = timing.resident_bytes {
        parts.push(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    }
    if report.is_skipped {
        parts.push("skipped: not finite".to_owned());
    }
    parts.join(", ")
}
