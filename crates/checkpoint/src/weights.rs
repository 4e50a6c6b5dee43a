use std::collections::BTreeMap;
#[cfg(feature = "hub")]
use std::collections::BTreeSet;
use std::collections::btree_map::Entry as Slot;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{BoolStore, DType, TensorData};
use pytorch_reader::PytorchReader;
use serde::Deserialize;

use crate::archive::{Archive, MAX_HEADER};
use crate::error::Error;
use crate::model::read_json;

/// What is in the name of an index of shards, before its variant if it has one.
const INDEX: &str = ".index.";

/// Tensors by name, out of one file or several, read one at a time when they are asked for.
///
/// Files are safetensors, shards of it under an index, or what `torch.save` wrote (`.ckpt`, `.pt`, `.bin`).
/// Names can be changed and tensors cut, transposed and reshaped before anything is read, which is how
/// a checkpoint in another layout becomes one of ours.
#[derive(Clone)]
pub struct Weights {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Entry {
    source: Source,
    shape: Vec<usize>,
    dtype: DType,
    edits: Vec<Edit>,
}

#[derive(Clone)]
enum Source {
    Safetensors(Arc<Archive>, String),
    Pytorch(pytorch_reader::Tensor),
}

/// What is done to a tensor after it is read.
#[derive(Clone, Debug)]
enum Edit {
    Rows(Range<usize>),
    Transpose,
    Reshape(Vec<usize>),
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tensors of {}",
            self.entries.len(),
            self.path.display()
        )
    }
}

impl From<Archive> for Weights {
    fn from(archive: Archive) -> Self {
        let path = archive.path().to_owned();
        let metadata = archive.metadata().into_iter().collect();
        Self {
            entries: entries_of(archive),
            path,
            metadata,
        }
    }
}

impl Weights {
    /// Opens a file; which kind it is, its first bytes say. Nothing in it is executed: of what pickles can
    /// say, only tensors and containers are understood.
    ///
    /// # Errors
    ///
    /// If the file, or one that its index names, cannot be read or is damaged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let is_index = |name: &str| name.contains(INDEX) && name.ends_with(".json");
        if path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_index)
        {
            return Self::open_index(path);
        }
        if is_pytorch(&path)? {
            return Self::open_pytorch(path);
        }
        Ok(Archive::open(path)?.into())
    }

    /// Which shard each tensor is in.
    fn read_index(path: &Path) -> Result<BTreeMap<String, String>, Error> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = read_json(path)?;
        // A shard lies beside its index: an index from elsewhere must not lead out of the folder.
        let is_beside = |name: &str| Path::new(name).file_name() == Some(OsStr::new(name));
        match index.weight_map.values().find(|name| !is_beside(name)) {
            None => Ok(index.weight_map),
            Some(name) => Err(Error::Damaged {
                path: path.to_owned(),
                reason: format!("{name:?} is not the name of a shard"),
            }),
        }
    }

    /// The names of the shards that an index lists.
    #[cfg(feature = "hub")]
    pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
        Ok(Self::read_index(index)?.into_values().collect())
    }

    fn open_index(path: PathBuf) -> Result<Self, Error> {
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let index = Self::read_index(&path)?;
        let mut shards = BTreeMap::new();
        for name in index.values() {
            if let Slot::Vacant(slot) = shards.entry(name.clone()) {
                slot.insert(Self::open(path.with_file_name(name))?);
            }
        }
        let mut entries = BTreeMap::new();
        for (name, shard) in index {
            let entry = shards[&shard].entries.get(&name);
            let entry = entry.ok_or_else(|| damaged(format!("{shard} has no tensor {name}")))?;
            entries.insert(name, entry.clone());
        }
        for (shard, weights) in &shards {
            if let Some(name) = weights.names().find(|name| !entries.contains_key(*name)) {
                return Err(damaged(format!("it does not list {name} of {shard}")));
            }
        }
        Ok(Self {
            path,
            entries,
            metadata: BTreeMap::new(),
        })
    }

    fn open_pytorch(path: PathBuf) -> Result<Self, Error> {
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let reader = PytorchReader::new(&path).map_err(|error| damaged(error.to_string()))?;
        let mut tensors: BTreeMap<_, _> = reader.into_tensors().into_iter().collect();
        // Training programs keep the weights beside their own state.
        const NESTED: &str = "state_dict.";
        if tensors.keys().any(|name| name.starts_with(NESTED)) {
            tensors = tensors
                .into_iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix(NESTED)?.to_owned(), tensor)))
                .collect();
        }
        let entries = tensors.into_iter().map(|(name, tensor)| {
            let entry = Entry {
                shape: tensor.shape().to_vec(),
                dtype: pytorch_dtype(tensor.dtype()),
                source: Source::Pytorch(tensor),
                edits: Vec::new(),
            };
            (name, entry)
        });
        Ok(Self {
            entries: entries.collect(),
            path,
            metadata: BTreeMap::new(),
        })
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that the tensors are in.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self
            .entries
            .values()
            .map(|entry| match &entry.source {
                Source::Safetensors(archive, _) => archive.path().to_owned(),
                Source::Pytorch(..) => self.path.clone(),
            })
            .collect();
        files.sort();
        files.dedup();
        files
    }

    /// Free-form strings of the header of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.entries.get(name)?.shape)
    }

    /// The element type of a tensor, if there is one of that name.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        Some(self.entries.get(name)?.dtype)
    }

    /// Reads a tensor, in the element type of the file.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorData, Error> {
        let entry = self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })?;
        let data = match &entry.source {
            Source::Safetensors(archive, name) => archive.read(name)?,
            Source::Pytorch(tensor) => {
                let bytes = tensor
                    .read()
                    .map_err(|error| Error::read(&self.path, error))?;
                TensorData::from_bytes_vec(bytes, tensor.shape().to_vec(), entry.dtype)
            }
        };
        Ok(entry.edits.iter().fold(data, |data, edit| edit.apply(data)))
    }

    /// Says that a tensor will not be read again soon, so that the part of the file that it is in need not stay in memory.
    pub fn release(&self, name: &str) {
        if let Some(Entry {
            source: Source::Safetensors(archive, name),
            ..
        }) = self.entries.get(name)
        {
            archive.release(name);
        }
    }

    /// Those tensors whose names begin with `prefix`, under the rest of their names.
    pub fn strip_prefix(&self, prefix: &str) -> Self {
        self.filter_map(|name| name.strip_prefix(prefix).map(str::to_owned))
            .expect("different names with the same beginning have different ends")
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    ///
    /// If two of them would have one name.
    pub fn rename(&self, name: impl Fn(&str) -> String) -> Result<Self, Error> {
        self.filter_map(|old| Some(name(old)))
    }

    /// Those tensors that `name` gives a name, under that name.
    ///
    /// # Errors
    ///
    /// If two of them would have one name.
    pub fn filter_map(&self, name: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut entries = BTreeMap::new();
        for (old, entry) in &self.entries {
            let Some(new) = name(old) else { continue };
            if entries.insert(new.clone(), entry.clone()).is_some() {
                let reason = format!("{old} is one of two tensors for {new}");
                return Err(Error::Damaged {
                    path: self.path.clone(),
                    reason,
                });
            }
        }
        Ok(Self {
            path: self.path.clone(),
            entries,
            metadata: self.metadata.clone(),
        })
    }

    /// These tensors and others, such as the two halves of a network in two files.
    ///
    /// # Errors
    ///
    /// If both have a tensor of one name.
    pub fn and(mut self, others: Self) -> Result<Self, Error> {
        for (name, entry) in others.entries {
            if self.entries.contains_key(&name) {
                let reason = format!("{} has {name} too", others.path.display());
                return Err(Error::Damaged {
                    path: self.path,
                    reason,
                });
            }
            self.entries.insert(name, entry);
        }
        Ok(self)
    }

    /// Replaces a tensor by equal parts of its first axis, one for each of `names`. Without a tensor of that
    /// name, or where its rows do not divide, nothing happens: loading will say what does not fit.
    pub fn split(&mut self, name: &str, names: &[String]) {
        let divides = |entry: &Entry| {
            let rows = entry.shape.first();
            rows.is_some_and(|rows| rows.is_multiple_of(names.len()))
        };
        if !self.entries.get(name).is_some_and(divides) {
            return;
        }
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        let rows = entry.shape[0] / names.len();
        for (part, name) in names.iter().enumerate() {
            let mut entry = entry.clone();
            entry.shape[0] = rows;
            entry.edits.push(Edit::Rows(part * rows..(part + 1) * rows));
            self.entries.insert(name.clone(), entry);
        }
    }

    /// Exchanges the axes of a matrix; nothing happens to what is none.
    pub fn transpose(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.shape.len() == 2
        {
            entry.shape.reverse();
            entry.edits.push(Edit::Transpose);
        }
    }

    /// Gives a tensor another shape of as many elements; otherwise nothing happens.
    pub fn reshape(&mut self, name: &str, shape: impl Into<Vec<usize>>) {
        let shape = shape.into();
        if let Some(entry) = self.entries.get_mut(name)
            && entry.shape.iter().product::<usize>() == shape.iter().product::<usize>()
        {
            entry.shape.clone_from(&shape);
            entry.edits.push(Edit::Reshape(shape));
        }
    }
}

impl Edit {
    fn apply(&self, data: TensorData) -> TensorData {
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        match self {
            Self::Reshape(shape) => {
                let (bytes, _, dtype) = data.into_parts();
                TensorData::from_bytes(bytes, shape.clone(), dtype)
            }
            Self::Rows(rows) => {
                let row = shape[1..].iter().product::<usize>() * dtype.size();
                let bytes = data.as_bytes()[rows.start * row..rows.end * row].to_vec();
                let shape: Vec<_> = [rows.len()]
                    .into_iter()
                    .chain(shape[1..].to_vec())
                    .collect();
                TensorData::from_bytes_vec(bytes, shape, dtype)
            }
            Self::Transpose => {
                let (rows, columns, size) = (shape[0], shape[1], dtype.size());
                let old = data.as_bytes();
                let mut bytes = Vec::with_capacity(old.len());
                for column in 0..columns {
                    for row in 0..rows {
                        let at = (row * columns + column) * size;
                        bytes.extend_from_slice(&old[at..at + size]);
                    }
                }
                TensorData::from_bytes_vec(bytes, [columns, rows], dtype)
            }
        }
    }
}

/// Tensors of types that burn lacks are left out: what needs one will miss it by name.
fn entries_of(archive: Archive) -> BTreeMap<String, Entry> {
    let archive = Arc::new(archive);
    let entries = archive.names().into_iter().filter_map(|name| {
        let entry = Entry {
            shape: archive.shape(&name).ok()?.to_vec(),
            dtype: archive.dtype(&name).ok()?,
            source: Source::Safetensors(archive.clone(), name.clone()),
            edits: Vec::new(),
        };
        Some((name, entry))
    });
    entries.collect()
}

/// Whether a file begins like a zip archive or a pickle, which `torch.save` has written.
fn is_pytorch(path: &Path) -> Result<bool, Error> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| Error::read(path, error))?;
    file.take(8)
        .read_to_end(&mut start)
        .map_err(|error| Error::read(path, error))?;
    // A safetensors file begins with the length of its header, which may begin with the same bytes.
    let is_length =
        <[u8; 8]>::try_from(&start[..]).is_ok_and(|start| u64::from_le_bytes(start) <= MAX_HEADER);
    Ok(!is_length && (start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80")))
}

fn pytorch_dtype(dtype: pytorch_reader::DType) -> DType {
    use pytorch_reader::DType as Theirs;
    match dtype {
        Theirs::F64 => DType::F64,
        Theirs::F32 => DType::F32,
        Theirs::F16 => DType::F16,
        Theirs::BF16 => DType::BF16,
        Theirs::I64 => DType::I64,
        Theirs::I32 => DType::I32,
        Theirs::I16 => DType::I16,
        Theirs::I8 => DType::I8,
        Theirs::U64 => DType::U64,
        Theirs::U32 => DType::U32,
        Theirs::U16 => DType::U16,
        Theirs::U8 => DType::U8,
        Theirs::Bool => DType::Bool(BoolStore::Native),
    }
}
