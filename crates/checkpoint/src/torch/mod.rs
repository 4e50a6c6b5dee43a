//! Files written by `torch.save` (`.ckpt`, `.pt`, `.pth`, `.bin`): zip archives or, before PyTorch 1.6, sequences of
//! pickles.
//!
//! Only the tensors of the saved dictionary are read. Anything else saved by a training program (optimiser states,
//! callbacks, hyperparameters) is skipped, and nothing is executed.

mod pickle;
mod storage;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use self::pickle::{Id, Node, Tree};
pub(crate) use self::storage::{Element, TorchTensor};
use self::storage::{Places, Storage, invalid, rebuild};
use crate::Error;
use crate::files::RangeFile;

/// The size limit of the pickle in a zip archive, whose declared size cannot be trusted.
const MAX_PICKLE: u64 = 100 << 20;
/// The nesting limit of dictionaries and modules.
const MAX_DEPTH: usize = 64;
/// The key under which training programs save weights, next to their own state.
const STATE_DICT: &str = "state_dict";
/// Entries saved by training programs that contain no weights.
const BOOKKEEPING: [&str; 12] = [
    "callbacks",
    "grad_scaler",
    "hparams",
    "hyper_parameters",
    "loops",
    "lr_scheduler",
    "lr_schedulers",
    "optimizer",
    "optimizer_state_dict",
    "optimizer_states",
    "optimizers",
    "scaler",
];

/// Reads the names and layouts of the tensors in a file, but not their values.
pub(crate) fn open(path: &Path, file: &RangeFile) -> Result<BTreeMap<String, TorchTensor>, Error> {
    let is_zip = file
        .read(0..file.len().min(2))
        .is_ok_and(|start| start[..] == *b"PK");
    let loaded = match is_zip {
        true => of_zip(file),
        false => of_pickles(file),
    };
    let tensors = loaded.and_then(|(tree, places)| tensors(&tree, &places));
    let tensors = tensors
        .map_err(|error| Error::damaged(path, format!("as a file of torch.save: {error}")))?;
    match tensors.is_empty() {
        false => Ok(tensors),
        true => Err(Error::NotWeights {
            path: path.to_owned(),
            found: "a pickle without tensors in its dictionary, not a weight file".to_owned(),
        }),
    }
}

fn of_zip(file: &RangeFile) -> io::Result<(Tree, Places)> {
    let mut archive = ZipArchive::new(BufReader::new(Reader { file, at: 0 }))?;
    let mut names = Vec::new();
    for index in 0..archive.len() {
        names.push(archive.by_index_raw(index)?.name()?.into_owned());
    }
    let pickle = names
        .iter()
        .position(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or_else(|| invalid("a zip archive without data.pkl"))?;
    let root = names[pickle].trim_end_matches("data.pkl").to_owned();
    let mut places = Places::new();
    for (index, name) in names.iter().enumerate() {
        if let Some(key) = name.strip_prefix(&format!("{root}data/")) {
            let entry = archive.by_index_raw(index)?;
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(invalid(format!(
                    "{name} is compressed or encrypted, which torch.save never does"
                )));
            }
            let start = entry.data_start().unwrap_or(u64::MAX);
            let range = start..start.saturating_add(entry.size());
            if range.end > file.len() {
                return Err(invalid(format!("{name} reaches past the end of the file")));
            }
            places.insert(key.to_owned(), range);
        } else if *name == format!("{root}byteorder") {
            let mut order = String::new();
            archive
                .by_index(index)?
                .take(8)
                .read_to_string(&mut order)?;
            if order.trim() != "little" {
                return Err(invalid(format!(
                    "its byte order is {order}, expected little"
                )));
            }
        }
    }
    let mut pickle = BufReader::new(archive.by_index(pickle)?.take(MAX_PICKLE));
    Ok((pickle::read(&mut pickle)?, places))
}

/// Reads the format before PyTorch 1.6: a magic number, a version, the writer's byte order, the saved object, the keys of
/// its storages, and the storages themselves.
fn of_pickles(file: &RangeFile) -> io::Result<(Tree, Places)> {
    const VERSION: i64 = 1001;
    let mut reader = BufReader::new(Reader { file, at: 0 });
    let first = pickle::read(&mut reader)?;
    if !matches!(first.node(first.root()), Node::Other("long integer")) {
        return Ok((first, Places::new()));
    }
    let version = pickle::read(&mut reader)?;
    if version.int(version.root()) != Some(VERSION) {
        return Err(invalid("its version is not 1001"));
    }
    let system = pickle::read(&mut reader)?;
    let little = system.get(system.root(), "little_endian");
    if !little.is_some_and(|little| matches!(system.node(little), Node::Bool(true))) {
        return Err(invalid("its byte order is not little endian"));
    }
    let tree = pickle::read(&mut reader)?;
    let sizes = tree.persistent().filter_map(|id| {
        let storage = Storage::of(&tree, id).ok()?;
        Some((storage.key.clone(), storage.bytes))
    });
    let sizes: BTreeMap<_, _> = sizes.collect();
    let keys = pickle::read(&mut reader)?;
    let Node::List(list) = keys.node(keys.root()) else {
        return Err(invalid("there is no list of storages"));
    };
    let mut at = reader.stream_position()?;
    let mut places = Places::new();
    for &key in list {
        let name = keys.string(key).map(str::to_owned);
        let name = name.or_else(|| keys.int(key).map(|key| key.to_string()));
        let key = name.ok_or_else(|| invalid("a storage without a name"))?;
        let bytes = sizes.get(&key);
        let bytes = bytes.ok_or_else(|| invalid(format!("storage {key} is unknown")))?;
        // The storage begins with its number of elements, already known from the pickle.
        let start = at.saturating_add(8);
        at = start.saturating_add(*bytes);
        if at > file.len() {
            return Err(invalid(format!("storage {key} reaches past the end")));
        }
        places.insert(key, start..at);
    }
    Ok((tree, places))
}

/// The tensors of the saved dictionary, or of the one under its key `state_dict`.
fn tensors(tree: &Tree, places: &Places) -> io::Result<BTreeMap<String, TorchTensor>> {
    let mut walk = Walk {
        tree,
        places,
        found: BTreeMap::new(),
        left: 10 * tree.len() + 1000,
    };
    let nested = tree.get(tree.root(), STATE_DICT);
    match nested.filter(|&nested| tree.entries(nested).is_some()) {
        Some(nested) => walk.visit(nested, String::new(), 0)?,
        None => walk.visit(tree.root(), String::new(), 0)?,
    }
    Ok(walk.found)
}

struct Walk<'a> {
    tree: &'a Tree,
    places: &'a Places,
    found: BTreeMap<String, TorchTensor>,
    /// Visits left, because a pickle can share dictionaries in a way that unfolds without end.
    left: usize,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id, name: String, depth: usize) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .filter(|_| depth <= MAX_DEPTH)
            .ok_or_else(|| invalid("its dictionaries are nested without end"))?;
        if let Some(tensor) = self.tensor(id, &name)? {
            self.found.insert(name, tensor);
            return Ok(());
        }
        let tree = self.tree;
        for entries in dictionaries(tree, id) {
            for &(key, value) in entries {
                let key = match tree.node(key) {
                    Node::Str(key) => key.clone(),
                    Node::Int(key) => key.to_string(),
                    // Keys such as classes and tuples belong to a training program's own tables.
                    _ => continue,
                };
                if depth == 0 && BOOKKEEPING.contains(&key.as_str()) {
                    continue;
                }
                let dot = if name.is_empty() { "" } else { "." };
                self.visit(value, format!("{name}{dot}{key}"), depth + 1)?;
            }
        }
        Ok(())
    }

    /// The tensor rebuilt by a call; `None` for any other value.
    fn tensor(&self, id: Id, name: &str) -> io::Result<Option<TorchTensor>> {
        let Node::Object {
            class, arguments, ..
        } = self.tree.node(id)
        else {
            return Ok(None);
        };
        let arguments = self.tree.tuple(*arguments).unwrap_or_default();
        self.call(*class, arguments, name, 0)
    }

    fn call(
        &self,
        function: Id,
        arguments: &[Id],
        name: &str,
        depth: usize,
    ) -> io::Result<Option<TorchTensor>> {
        let tree = self.tree;
        let Some((module, function)) = tree.global(function) else {
            return Ok(None);
        };
        match (module, function) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                let tensor = rebuild(tree, arguments, self.places);
                let tensor = tensor.map_err(|error| invalid(format!("{name}: {error}")));
                Ok(Some(tensor?))
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                match arguments.first() {
                    Some(&data) if depth < MAX_DEPTH => self.tensor(data, name),
                    _ => Err(invalid(format!("{name}: a parameter without a tensor"))),
                }
            }
            ("torch._tensor", "_rebuild_from_type_v2") => match arguments {
                &[function, _class, arguments, ..] if depth < MAX_DEPTH => {
                    let arguments = tree.tuple(arguments).unwrap_or_default();
                    self.call(function, arguments, name, depth + 1)
                }
                _ => Err(invalid(format!("{name}: a tensor without arguments"))),
            },
            // Sparse, quantized and nested tensors.
            ("torch._utils" | "torch._tensor", kind) if kind.starts_with("_rebuild") => Err(
                invalid(format!("{name} is of an unsupported kind ({kind})")),
            ),
            _ => Ok(None),
        }
    }
}

/// The entries of a dictionary, or the tables of a whole module (`torch.save(model)`), whose joined names are those of its
/// `state_dict`.
fn dictionaries(tree: &Tree, id: Id) -> Vec<&[(Id, Id)]> {
    const TABLES: [&str; 3] = ["_parameters", "_buffers", "_modules"];
    if let Node::Object {
        state: Some(state), ..
    } = tree.node(id)
    {
        let tables = TABLES.map(|table| tree.entries(tree.get(*state, table)?));
        if tables.iter().all(Option::is_some) {
            return tables.into_iter().flatten().collect();
        }
    }
    tree.entries(id).into_iter().collect()
}

/// A weight file as a stream.
struct Reader<'a> {
    file: &'a RangeFile,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self
            .file
            .len()
            .min(self.at.saturating_add(buffer.len() as u64));
        let bytes = self.file.read(self.at.min(end)..end)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at = end.max(self.at);
        Ok(bytes.len())
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| invalid("a position before the file's beginning"))?;
        Ok(self.at)
    }
}
