use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, TensorData};
use swiftbrush_kernels::Access;

use crate::archive::Archive;
use crate::edit::Edit;
use crate::error::{Error, abridged};
use crate::files::{Files, RangeFile};
use crate::float8::Float8;
use crate::kind;
use crate::shards::{is_index, read_index};
use crate::torch::{self, Element, TorchTensor};

/// Tensors by name, from one or more files, each read only when it is needed.
///
/// Files are safetensors, safetensors shards with an index, or written by `torch.save` (`.ckpt`, `.pt`, `.bin`); their
/// first bytes determine the format. Opening reads only headers. Tensors can be renamed, split, transposed and reshaped
/// before anything is read, which makes a checkpoint in another layout fit a module.
///
/// Files are memory-mapped unless [`Access::Owned`] is given; see [`Access`] for the contract.
#[derive(Clone)]
pub struct Weights {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

#[derive(Clone)]
struct Entry {
    source: Source,
    shape: Vec<usize>,
    edits: Vec<Edit>,
}

#[derive(Clone)]
enum Source {
    Safetensors(Arc<Archive>, String),
    Torch(Arc<TorchFile>, TorchTensor),
}

struct TorchFile {
    path: PathBuf,
    file: RangeFile,
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.entries.len();
        write!(f, "{count} tensors of {}", self.path.display())
    }
}

impl From<Archive> for Weights {
    fn from(archive: Archive) -> Self {
        let (path, metadata) = (archive.path().to_owned(), archive.metadata());
        let archive = Arc::new(archive);
        let entries = archive.names().into_iter().map(|name| {
            let shape = archive.shape(&name).unwrap_or_default().to_vec();
            let source = Source::Safetensors(archive.clone(), name.clone());
            (name, Entry::new(source, shape))
        });
        Self::of(path, entries.collect(), metadata.into_iter().collect())
    }
}

impl Weights {
    /// Memory-maps a file. Nothing in a pickle is executed: only its tensors and dictionaries are read.
    ///
    /// # Errors
    ///
    /// If the file, or a shard named by its index, cannot be read, is damaged or has another format. Tensors of
    /// unsupported types are errors when they are read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, Access::Mapped)
    }

    /// Opens a file with a choice of [`Access`].
    ///
    /// # Errors
    ///
    /// Same as [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, access: Access) -> Result<Self, Error> {
        Self::open_in(&Files::System, path.as_ref(), access)
    }

    pub(crate) fn open_in(files: &Files, path: &Path, access: Access) -> Result<Self, Error> {
        if is_index(path) {
            return Self::open_index(files, path, access);
        }
        let file = files.open(path, access)?;
        let first = file
            .read(0..file.len().min(kind::SNIFFED))
            .map_err(|error| Error::read(path, error))?;
        match kind::is_pytorch(&first) {
            true => Self::of_torch(path, file),
            false => Ok(Archive::of(path, file)?.into()),
        }
    }

    /// Opens shards as diffusers and transformers do: all tensors of a shard are used, listed or not, later shards override
    /// earlier ones, and files not named by the index are ignored. Listed tensors missing from the shards are an error.
    fn open_index(files: &Files, path: &Path, access: Access) -> Result<Self, Error> {
        let index = read_index(files, path)?;
        let shards: BTreeSet<_> = index.values().collect();
        let mut all = Self::of(path.to_owned(), BTreeMap::new(), BTreeMap::new());
        for name in shards {
            let shard = Self::open_in(files, &path.with_file_name(name), access)?;
            for (tensor, entry) in shard.entries {
                if all.entries.insert(tensor.clone(), entry).is_some() {
                    let path = path.display();
                    all.notes.push(format!(
                        "{path}: {tensor} is in two shards; the one in {name} is used"
                    ));
                }
            }
            all.metadata.extend(shard.metadata);
        }
        let missing = index.iter().filter(|(name, _)| !all.contains(name));
        let missing = missing.map(|(name, shard)| format!("{name} (listed in {shard})"));
        let missing: Vec<_> = missing.collect();
        match missing.is_empty() {
            true => Ok(all),
            false => Err(Error::damaged(
                path,
                format!("its shards lack {}", abridged(missing)),
            )),
        }
    }

    fn of_torch(path: &Path, file: RangeFile) -> Result<Self, Error> {
        let tensors = torch::open(path, &file)?;
        let path = path.to_owned();
        let file = Arc::new(TorchFile {
            path: path.clone(),
            file,
        });
        let entries = tensors.into_iter().map(|(name, tensor)| {
            let shape = tensor.shape.clone();
            (name, Entry::new(Source::Torch(file.clone(), tensor), shape))
        });
        Ok(Self::of(path, entries.collect(), BTreeMap::new()))
    }

    fn of(
        path: PathBuf,
        entries: BTreeMap<String, Entry>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self {
            path,
            entries,
            metadata,
            notes: Vec::new(),
        }
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that contain the tensors, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = self.entries.values().map(|entry| entry.path().to_owned());
        let mut files: Vec<_> = files.collect();
        files.sort();
        files.dedup();
        files
    }

    /// Free-form strings from the header of a safetensors file, or of all shards.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Messages about these weights for the user: tensors widened because burn lacks their type, and the file used if the
    /// preferred one is missing.
    pub fn notes(&self) -> Vec<String> {
        let mut counts = BTreeMap::<_, usize>::new();
        for entry in self.entries.values() {
            if let Some(format) = entry.float8() {
                *counts.entry(format.name()).or_default() += 1;
            }
        }
        let path = self.path.display();
        let widened = counts.into_iter().map(|(format, count)| {
            format!("{path}: {count} tensors are stored in {format} and widened to F16")
        });
        self.notes.iter().cloned().chain(widened).collect()
    }

    pub(crate) fn with_note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.entries.get(name)?.shape)
    }

    /// The element type in which a tensor is read: that of the file, or F16 for 8-bit floating-point formats.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that name, or its type is unsupported.
    pub fn dtype(&self, name: &str) -> Result<DType, Error> {
        self.entry(name)?.dtype(name)
    }

    /// Reads a tensor in its [`dtype`](Self::dtype).
    ///
    /// # Errors
    ///
    /// If there is no tensor of that name, its type is unsupported, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorData, Error> {
        let entry = self.entry(name)?;
        entry.dtype(name)?;
        let data = match &entry.source {
            Source::Safetensors(archive, name) => archive.read(name)?,
            Source::Torch(file, tensor) => tensor
                .read(&file.file)
                .map_err(|error| Error::damaged(&file.path, format!("{name}: {error}")))?,
        };
        Ok(entry.edits.iter().fold(data, |data, edit| edit.apply(data)))
    }

    /// Advises that a tensor will not be needed soon, so that its part of the file need not stay in memory.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entries.get(name)
            && let Source::Safetensors(archive, name) = &entry.source
        {
            archive.release(name);
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })
    }

    /// The tensors whose names begin with `prefix`, which is removed.
    pub fn strip_prefix(&self, prefix: &str) -> Self {
        self.filter_map(|name| name.strip_prefix(prefix).map(str::to_owned))
            .expect("names that share a prefix differ in the rest")
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    ///
    /// If two of them get the same name.
    pub fn rename(&self, name: impl Fn(&str) -> String) -> Result<Self, Error> {
        self.filter_map(|old| Some(name(old)))
    }

    /// The tensors for which `name` returns a name, under that name.
    ///
    /// # Errors
    ///
    /// If two of them get the same name.
    pub fn filter_map(&self, name: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut entries = BTreeMap::new();
        for (old, entry) in &self.entries {
            let Some(new) = name(old) else { continue };
            if entries.insert(new.clone(), entry.clone()).is_some() {
                let reason = format!("{old} is one of two tensors for {new}");
                return Err(Error::damaged(&self.path, reason));
            }
        }
        Ok(Self {
            entries,
            ..self.clone()
        })
    }

    /// Joins these tensors with others, such as two halves of a network in separate files.
    ///
    /// # Errors
    ///
    /// If both have a tensor of the same name.
    pub fn and(mut self, others: Self) -> Result<Self, Error> {
        for (name, entry) in others.entries {
            if self.entries.contains_key(&name) {
                let reason = format!("{} has {name} too", others.path.display());
                return Err(Error::damaged(&self.path, reason));
            }
            self.entries.insert(name, entry);
        }
        self.notes.extend(others.notes);
        Ok(self)
    }

    /// Splits a tensor into equal parts along its first axis, one for each of `names`. Does nothing if there is no tensor of
    /// that name or its rows do not divide evenly: loading then reports the mismatch.
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

    /// Transposes a matrix. Does nothing to tensors of other ranks.
    pub fn transpose(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.shape.len() == 2
        {
            entry.shape.reverse();
            entry.edits.push(Edit::Transpose);
        }
    }

    /// Reshapes a tensor. Does nothing if the number of elements differs.
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

impl Entry {
    fn new(source: Source, shape: Vec<usize>) -> Self {
        Self {
            source,
            shape,
            edits: Vec::new(),
        }
    }

    fn path(&self) -> &Path {
        match &self.source {
            Source::Safetensors(archive, _) => archive.path(),
            Source::Torch(file, _) => &file.path,
        }
    }

    fn float8(&self) -> Option<Float8> {
        match &self.source {
            Source::Safetensors(archive, name) => archive.float8(name),
            Source::Torch(_, tensor) => match tensor.element {
                Element::Float8(format) => Some(format),
                _ => None,
            },
        }
    }

    fn dtype(&self, name: &str) -> Result<DType, Error> {
        match &self.source {
            Source::Safetensors(archive, name) => archive.dtype(name),
            Source::Torch(file, tensor) => match tensor.element {
                Element::Burn(dtype) => Ok(dtype),
                Element::Float8(_) => Ok(DType::F16),
                Element::Unsupported(found) => Err(Error::UnsupportedType {
                    path: file.path.clone(),
                    name: name.to_owned(),
                    found: found.to_owned(),
                }),
            },
        }
    }
}
