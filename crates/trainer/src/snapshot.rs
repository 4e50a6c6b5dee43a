//! All of a run's state at one step, in one file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{Device, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Archive, Error, LazyTensor, write_tensors};

use crate::{AdamW, AdamWConfig, Ema};

/// Tensors in named groups, and the counters that belong to them; written as one safetensors file, so
/// that all of it is of the same step.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    counters: Counters,
    tensors: BTreeMap<String, TensorData>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Counters(BTreeMap<String, u64>);

/// Key of the counters in the file's metadata.
const COUNTERS: &str = "counters";

impl Snapshot {
    /// An empty snapshot of a step.
    pub fn new(step: u64) -> Self {
        let mut snapshot = Self::default();
        snapshot.set_counter("step", step);
        snapshot
    }

    /// The step at which it was taken.
    pub fn step(&self) -> u64 {
        self.counter("step")
    }

    /// A counter, 0 when it was never set.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.0.get(name).copied().unwrap_or(0)
    }

    /// Sets a counter.
    pub fn set_counter(&mut self, name: &str, value: u64) {
        self.counters.0.insert(name.to_owned(), value);
    }

    /// Adds a group of tensors.
    pub fn insert(&mut self, group: &str, tensors: BTreeMap<String, TensorData>) {
        self.tensors.extend(
            tensors
                .into_iter()
                .map(|(name, data)| (format!("{group}/{name}"), data)),
        );
    }

    /// The tensors of a group.
    pub fn group(&self, group: &str) -> BTreeMap<String, TensorData> {
        let prefix = format!("{group}/");
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, data)| Some((name.strip_prefix(&prefix)?.to_owned(), data.clone())))
            .collect()
    }

    /// Adds an optimiser.
    pub fn insert_adamw(&mut self, group: &str, optimizer: &AdamW) {
        self.set_counter(group, optimizer.n_steps());
        self.insert(group, optimizer.state());
    }

    /// An optimiser that was added.
    pub fn adamw(&self, group: &str, config: AdamWConfig, device: &Device) -> AdamW {
        AdamW::restore(config, self.counter(group), &self.group(group), device)
    }

    /// Adds an average.
    pub fn insert_ema(&mut self, group: &str, ema: &Ema) {
        self.set_counter(group, ema.n_updates());
        self.insert(group, ema.state());
    }

    /// An average that was added.
    pub fn ema(&self, group: &str, decay: f64, device: &Device) -> Ema {
        Ema::restore(decay, self.counter(group), self.group(group), device)
    }

    /// Writes the snapshot; the file that was there stands until the new one is whole and on disk.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let counters = serde_json::to_string(&self.counters).expect("counters are plain numbers");
        let metadata = HashMap::from([(COUNTERS.to_owned(), counters)]);
        let tensors = self.tensors.iter();
        let tensors = tensors
            .map(|(name, data)| LazyTensor::ready(name, data.clone()))
            .collect();
        write_tensors(path, tensors, metadata)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is damaged, or is no snapshot.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let metadata = archive.metadata();
        let text = metadata.get(COUNTERS).map_or("", String::as_str);
        let counters = serde_json::from_str(text).map_err(|cause| Error::Json {
            path: path.to_owned(),
            cause,
        })?;
        let names = archive.names().into_iter();
        let tensors = names.map(|name| Ok((name.clone(), archive.read(&name)?)));
        Ok(Self {
            counters,
            tensors: tensors.collect::<Result<_, Error>>()?,
        })
    }
}
