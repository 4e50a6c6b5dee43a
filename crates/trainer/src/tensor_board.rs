use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use swiftbrush_checkpoint::Error as FileError;

use crate::log::now;
use crate::{Error, Event, EventWriter, Observer, Report, Timing, WatchReport};

/// An observer that writes an event file for TensorBoard: losses, gradient norms, learning rate, time and memory of
/// each step, and the scores of each watcher report.
///
/// The step of a value is the number of steps done. Each process writes a file of its own; values that a killed process wrote
/// after its last snapshot are dropped by TensorBoard.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    writer: EventWriter<File>,
}

impl TensorBoard {
    /// Creates an event file in a folder, which is created if necessary; `n_steps` is the number of steps that the run has
    /// done ([`Distiller::n_steps`](crate::Distiller::n_steps)).
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn create(folder: impl AsRef<Path>, n_steps: u64) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let time = now();
        let name = format!(
            "events.out.tfevents.{:010}.{}.{}.v2",
            time as u64,
            (time.fract() * 1e6) as u64,
            std::process::id()
        );
        let path = folder.join(name);
        let create = || {
            std::fs::create_dir_all(folder)?;
            let mut writer = EventWriter::new(File::create_new(&path)?, time)?;
            writer.start(time, n_steps + 1)?;
            Ok(writer)
        };
        let writer = create().map_err(|cause| FileError::write(&path, cause))?;
        Ok(Self { path, writer })
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn step(&mut self, report: &Report, timing: &Timing) -> io::Result<()> {
        let losses = report.losses.iter();
        let mut scalars: Vec<_> = losses
            .map(|(name, loss)| (format!("loss/{name}"), *loss))
            .collect();
        let bytes = timing.resident_bytes.map(|bytes| bytes as f64);
        let others = [
            ("gradient_norm/student", Some(report.student_norm)),
            ("gradient_norm/fake", Some(report.fake_norm)),
            ("learning_rate", Some(report.learning_rate)),
            ("seconds_per_step", Some(timing.seconds)),
            ("images_per_second", Some(timing.images_per_second)),
            ("resident_bytes", bytes),
            ("is_skipped", Some(f64::from(u8::from(report.is_skipped)))),
        ];
        let others = others.into_iter();
        scalars.extend(others.filter_map(|(tag, value)| Some((tag.to_owned(), value?))));
        self.write(timing.time, report.step + 1, &scalars)
    }

    fn watched(&mut self, report: &WatchReport) -> io::Result<()> {
        let mut scalars = vec![("watch/diversity".to_owned(), report.diversity)];
        scalars.extend(
            report
                .clip_score
                .map(|score| ("watch/clip_score".to_owned(), score)),
        );
        for band in &report.teacher_distance {
            let [first, last] = band.timesteps;
            let tag = format!("watch/teacher_distance/{first:03}-{last:03}");
            scalars.push((tag, band.distance));
        }
        self.write(now(), report.step, &scalars)
    }

    fn write(&mut self, time: f64, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        let scalars: Vec<_> = scalars
            .iter()
            .map(|(tag, value)| (tag.as_str(), *value))
            .collect();
        self.writer.scalars(time, step, &scalars)
    }
}

impl Observer for TensorBoard {
    fn observe(&mut self, event: &Event) -> Result<ControlFlow<()>, Error> {
        let written = match event {
            Event::Step { report, timing } => self.step(report, timing),
            Event::Watched { report, .. } => self.watched(report),
            _ => Ok(()),
        };
        written.map_err(|cause| FileError::write(&self.path, cause))?;
        Ok(ControlFlow::Continue(()))
    }
}
