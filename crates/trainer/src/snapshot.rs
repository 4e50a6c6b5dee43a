//! The state of a run at one step, in one file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Archive, Error, LazyTensor, write_tensors};
use swiftbrush_kernels::release_mapped_weights;

use crate::parameters::{ReadTensor, parameters};
use crate::{AdamW, AdamWConfig, Ema};

/// Named groups of tensors with counters and texts, written to one safetensors file, so that everything
/// in it belongs to the same step.
///
/// Tensors of modules and optimisers are handles; their values are read one at a time while the file is
/// written. Updates after the snapshot was taken do not affect it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// use burn::tensor::TensorData;
/// use swiftbrush_trainer::Snapshot;
///
/// let mut snapshot = Snapshot::new(12);
/// snapshot.insert("model", [("weight".to_owned(), TensorData::from([1.0f32, 2.0]))].into());
/// let path = folder.path().join("snapshot.safetensors");
/// snapshot.save(&path)?;
/// let snapshot = Snapshot::open(&path)?;
/// assert_eq!(snapshot.step(), 12);
/// assert_eq!(snapshot.group("model")["weight"], TensorData::from([1.0f32, 2.0]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    header: Header,
    tensors: BTreeMap<String, Entry>,
}

/// A single entry of the file's metadata, because safetensors writes entries in no fixed order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Header {
    #[serde(flatten)]
    counters: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    texts: BTreeMap<String, String>,
}

/// A tensor whose values are read when they are written to the file.
#[derive(Clone)]
pub(crate) struct Entry {
    shape: Vec<usize>,
    dtype: DType,
    read: ReadTensor,
}

impl Entry {
    pub(crate) fn new(
        shape: impl Into<Vec<usize>>,
        dtype: DType,
        read: impl Fn() -> TensorData + Send + Sync + 'static,
    ) -> Self {
        Self {
            shape: shape.into(),
            dtype,
            read: Arc::new(read),
        }
    }

    /// A tensor of a mapped file, copied whenever it is read: a training that used it in place would keep the pages of the
    /// whole file beside the weights that it makes of them.
    fn of_file(data: TensorData) -> Self {
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        Self::new(shape.clone(), dtype, move || {
            let copy = data.as_bytes().to_vec();
            release_mapped_weights();
            TensorData::from_bytes_vec(copy, shape.clone(), dtype)
        })
    }

    pub(crate) fn read(&self) -> TensorData {
        (self.read)()
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

impl From<&Tensor<1>> for Entry {
    fn from(tensor: &Tensor<1>) -> Self {
        let tensor = tensor.clone();
        Self::new(tensor.dims(), tensor.dtype(), move || {
            swiftbrush_checkpoint::read(tensor.clone())
        })
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.shape, self.dtype)
    }
}

impl From<TensorData> for Entry {
    fn from(data: TensorData) -> Self {
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        Self::new(shape, dtype, move || data.clone())
    }
}

/// The key of the header in the file's metadata.
const HEADER: &str = "counters";

impl Snapshot {
    /// Creates an empty snapshot at a step.
    pub fn new(step: u64) -> Self {
        let mut snapshot = Self::default();
        snapshot.set_counter("step", step);
        snapshot
    }

    /// The step at which it was taken.
    pub fn step(&self) -> u64 {
        self.counter("step")
    }

    /// A counter, 0 if it was never set.
    pub fn counter(&self, name: &str) -> u64 {
        self.header.counters.get(name).copied().unwrap_or(0)
    }

    /// Sets a counter.
    pub fn set_counter(&mut self, name: &str, value: u64) {
        self.header.counters.insert(name.to_owned(), value);
    }

    /// A text, if it was set.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.header.texts.get(name).map(String::as_str)
    }

    /// Sets a text.
    pub fn set_text(&mut self, name: &str, text: String) {
        self.header.texts.insert(name.to_owned(), text);
    }

    /// Adds a group of tensors.
    pub fn insert(&mut self, group: &str, tensors: BTreeMap<String, TensorData>) {
        let entries = tensors.into_iter();
        self.extend(group, entries.map(|(name, data)| (name, data.into())));
    }

    /// Adds the trained parameters of a module, but not its frozen ones.
    pub fn insert_trained<M: Module>(&mut self, group: &str, module: &M) {
        let trained = parameters(module)
            .into_iter()
            .filter(|parameter| parameter.is_trained);
        let entries = trained.map(|parameter| {
            let entry = Entry {
                shape: parameter.shape,
                dtype: parameter.dtype,
                read: parameter.read,
            };
            (parameter.name, entry)
        });
        self.extend(group, entries);
    }

    fn extend(&mut self, group: &str, entries: impl Iterator<Item = (String, Entry)>) {
        self.tensors
            .extend(entries.map(|(name, entry)| (format!("{group}/{name}"), entry)));
    }

    /// Adds a tensor by its full name, `GROUP/NAME`.
    pub(crate) fn insert_entry(&mut self, name: String, entry: Entry) {
        self.tensors.insert(name, entry);
    }

    /// A tensor by its full name.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// The tensors of some groups by their full names.
    pub(crate) fn entries_of(&self, groups: &[&str]) -> impl Iterator<Item = (&str, &Entry)> {
        let tensors = self.tensors.iter();
        tensors.filter_map(|(name, entry)| {
            let (group, _) = name.split_once('/')?;
            groups.contains(&group).then_some((name.as_str(), entry))
        })
    }

    /// The tensors of a group, read to the host.
    pub fn group(&self, group: &str) -> BTreeMap<String, TensorData> {
        let prefix = format!("{group}/");
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, entry)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), entry.read()))
            })
            .collect()
    }

    /// Adds an optimiser.
    pub fn insert_adamw(&mut self, group: &str, optimizer: &AdamW) {
        self.set_counter(group, optimizer.n_steps());
        self.extend(group, optimizer.entries());
    }

    /// Restores an optimiser that was added.
    pub fn adamw(&self, group: &str, config: AdamWConfig, device: &Device) -> AdamW {
        AdamW::restore(config, self.counter(group), self.group(group), device)
    }

    /// Adds an average.
    pub fn insert_ema(&mut self, group: &str, ema: &Ema) {
        self.set_counter(group, ema.n_updates());
        self.extend(group, ema.entries());
    }

    /// Restores an average that was added.
    pub fn ema(&self, group: &str, decay: f64, device: &Device) -> Ema {
        Ema::restore(decay, self.counter(group), self.group(group), device)
    }

    /// Writes the snapshot atomically: the previous file is kept until the new one is complete and
    /// flushed to disk.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let header = serde_json::to_string(&self.header).expect("the header is plain data");
        let metadata = HashMap::from([(HEADER.to_owned(), header)]);
        let tensors = self.tensors.iter().map(|(name, entry)| {
            let shape = entry.shape.clone();
            LazyTensor::new(name, shape, entry.dtype, move || Ok(entry.read()))
        });
        write_tensors(path, tensors.collect(), metadata)
    }

    /// Opens a snapshot; its tensors stay in the file until they are used.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is damaged, or is not a snapshot.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let archive = Archive::open(path)?;
        let metadata = archive.metadata();
        let header = metadata.get(HEADER).ok_or_else(|| Error::Damaged {
            path: path.to_owned(),
            reason: format!("its metadata has no {HEADER}: it is not a training snapshot"),
        })?;
        let header = serde_json::from_str(header).map_err(|cause| Error::Json {
            path: path.to_owned(),
            cause,
        })?;
        let names = archive.names().into_iter();
        let tensors = names.map(|name| Ok((name.clone(), Entry::of_file(archive.read(&name)?))));
        Ok(Self {
            header,
            tensors: tensors.collect::<Result<_, Error>>()?,
        })
    }
}
