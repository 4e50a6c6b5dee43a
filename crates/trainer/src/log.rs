//! `log.jsonl`, one line of JSON for each step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use swiftbrush_checkpoint::{Error as FileError, write_atomically};

use crate::{Error, Report};

/// Time and memory of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timing {
    /// The end of the step, in seconds since 1970.
    pub time: f64,
    /// Duration of the step in seconds.
    pub seconds: f64,
    /// Images generated per second.
    pub images_per_second: f64,
    /// Resident memory of the process in bytes, if the system reports it.
    pub resident_bytes: Option<u64>,
}

impl Timing {
    pub(crate) fn of_step(duration: Duration, images: usize) -> Self {
        let seconds = duration.as_secs_f64();
        Self {
            time: now(),
            seconds,
            images_per_second: images as f64 / seconds.max(f64::MIN_POSITIVE),
            resident_bytes: resident_bytes(),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0.0, |time| time.as_secs_f64())
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(flatten)]
    timing: Timing,
}

impl Log {
    /// Opens the log and removes the lines written by a killed run after its last snapshot.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self, Error> {
        let path = folder.join("log.jsonl");
        let io = |cause| FileError::write(&path, cause);
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(io)?;
            let kept: String = text
                .lines()
                .take(step as usize)
                .flat_map(|line| [line, "\n"])
                .collect();
            write_atomically(&path, |file| file.write_all(kept.as_bytes()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io)?;
        Ok(Self { path, file })
    }

    pub(crate) fn write(&mut self, report: &Report, timing: Timing) -> Result<(), Error> {
        let line = Line { report, timing };
        let line = serde_json::to_string(&line).expect("a report is plain numbers");
        let written = writeln!(self.file, "{line}");
        Ok(written.map_err(|cause| FileError::write(&self.path, cause))?)
    }
}
