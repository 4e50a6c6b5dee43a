use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::Error;
use crate::archive::file_dtype;

/// A tensor that is computed when it is written, so that files need not fit in memory.
pub struct LazyTensor<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    data: Box<dyn Fn() -> Result<TensorData, Error> + 'a>,
}

impl std::fmt::Debug for LazyTensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.shape, self.dtype)
    }
}

impl<'a> LazyTensor<'a> {
    /// Creates a tensor whose values are computed by `data` and must have this shape and element type.
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        dtype: DType,
        data: impl Fn() -> Result<TensorData, Error> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            dtype,
            data: Box::new(data),
        }
    }

    /// Creates a tensor whose values already exist.
    pub fn ready(name: impl Into<String>, data: TensorData) -> Self {
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        Self::new(name, shape, dtype, move || Ok(data.clone()))
    }

    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Writes a safetensors file, tensor by tensor. An existing file is replaced once the new one is complete and flushed to
/// disk.
///
/// # Errors
///
/// If two tensors have the same name, a tensor has an unsupported type or cannot be computed, or the file cannot be
/// written. An existing file is then left unchanged.
///
/// # Panics
///
/// If the values of a tensor differ from its declared shape or element type.
#[track_caller]
pub fn write_tensors(
    path: impl AsRef<Path>,
    mut tensors: Vec<LazyTensor<'_>>,
    metadata: HashMap<String, String>,
) -> Result<(), Error> {
    let path = path.as_ref();
    // Wide types first, so that all tensors are aligned.
    tensors.sort_by(|a, b| (b.dtype.size(), &a.name).cmp(&(a.dtype.size(), &b.name)));
    let header = header(path, &tensors, metadata)?;
    replace_with(path, |writer| {
        let mut write = |bytes: &[u8]| {
            let written = writer.write_all(bytes);
            written.map_err(|error| Error::write(path, error))
        };
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        for tensor in &tensors {
            let (data, name) = ((tensor.data)()?, &tensor.name);
            assert_eq!(
                data.shape().to_vec(),
                tensor.shape,
                "{name} changed its shape"
            );
            assert_eq!(data.dtype(), tensor.dtype, "{name} changed its type");
            write(data.as_bytes())?;
        }
        Ok(())
    })
}

/// Encodes the names, types, shapes and offsets of tensors as JSON, padded to a multiple of eight bytes.
fn header(
    path: &Path,
    tensors: &[LazyTensor<'_>],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, Error> {
    const METADATA: &str = "__metadata__";
    const ALIGNMENT: usize = 8;
    let invalid =
        |text: String| Error::write(path, io::Error::new(io::ErrorKind::InvalidInput, text));
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
        let metadata = metadata
            .into_iter()
            .map(|(key, text)| (key, Value::String(text)));
        header.insert(METADATA.to_owned(), Value::Object(metadata.collect()));
    }
    let mut end = 0;
    for tensor in tensors {
        let name = &tensor.name;
        let dtype: Dtype = file_dtype(tensor.dtype).ok_or_else(|| {
            invalid(format!(
                "{name} has the unsupported type {:?}",
                tensor.dtype
            ))
        })?;
        let start = end;
        end += tensor.len();
        let info = TensorInfo {
            dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        let info = serde_json::to_value(info).map_err(|error| invalid(error.to_string()))?;
        if header.insert(name.clone(), info).is_some() {
            return Err(invalid(format!("there are two tensors named {name}")));
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}

/// Writes a file through `write`. An existing file is replaced once the new one is complete and flushed to disk.
///
/// # Errors
///
/// If `write` fails or the file cannot be written. An existing file is then left unchanged.
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let path = path.as_ref();
    replace_with(path, |writer| {
        write(writer).map_err(|error| Error::write(path, error))
    })
}

/// Writes a value as indented JSON, atomically.
///
/// # Errors
///
/// Same as [`write_atomically`].
pub fn write_json(path: impl AsRef<Path>, value: &impl Serialize) -> Result<(), Error> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}

/// Prefix and suffix of temporary files.
const TEMPORARY: (&str, &str) = (".unfinished-", ".tmp");

/// Removes the incomplete files of [`write_tensors`] and [`write_atomically`] that killed processes left in a folder.
/// Files that another process is writing are kept, and sub-folders are not searched. Does nothing if the folder does
/// not exist.
///
/// # Errors
///
/// If the folder cannot be read, or a file cannot be removed.
pub fn remove_unfinished(folder: impl AsRef<Path>) -> Result<(), Error> {
    let folder = folder.as_ref();
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let failed = |error| Error::read(folder, error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if is_temporary(&path) && !is_being_written(&path) {
            std::fs::remove_file(&path).map_err(|error| Error::write(&path, error))?;
        }
    }
    Ok(())
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let (prefix, suffix) = TEMPORARY;
    name.is_some_and(|name| name.starts_with(prefix) && name.ends_with(suffix))
}

/// Returns whether a process holds the lock of a temporary file; a process that was killed holds none.
fn is_being_written(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_err())
}

/// Replaces a file with what `write` writes, once that is flushed to disk.
fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let temporary = temporary_beside(path)?;
    let mut writer = BufWriter::new(temporary.as_file());
    write(&mut writer)?;
    writer
        .flush()
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(|error| Error::write(path, error))?;
    drop(writer);
    replace(temporary, path)
}

/// Creates a temporary file in the same folder, so that renaming it is atomic. It is deleted unless it is persisted, and locked
/// for as long as it is open.
fn temporary_beside(path: &Path) -> Result<NamedTempFile, Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| Error::write(path, error))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    let file = builder
        .tempfile_in(folder)
        .map_err(|error| Error::write(path, error))?;
    // Not every file system has locks; nothing depends on them but `remove_unfinished`.
    let _ = file.as_file().lock();
    Ok(file)
}

fn replace(temporary: NamedTempFile, path: &Path) -> Result<(), Error> {
    temporary
        .persist(path)
        .map_err(|error| Error::write(path, error.error))?;
    // The rename is durable once the folder is synced, which not every system supports.
    #[cfg(unix)]
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// The SHA-256 of a file in hexadecimal.
///
/// # Errors
///
/// If the file cannot be read.
pub fn sha256(path: impl AsRef<Path>) -> Result<String, Error> {
    const BLOCK: usize = 1 << 20;
    let path = path.as_ref();
    let failed = |error| Error::read(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    loop {
        let len = file.read(&mut buffer).map_err(failed)?;
        if len == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&buffer[..len]);
    }
}

/// The SHA-256 of bytes in hexadecimal, as [`sha256`] gives it for a file.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn hexadecimal(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_killed_processes_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [
            ".unfinished-abc.tmp",
            ".unfinished-notes",
            ".abc.tmp",
            "a.txt",
        ] {
            std::fs::write(path(name), "").unwrap();
        }
        let others = std::fs::read_dir(folder.path()).unwrap().count() - 1;
        write_atomically(path("whole.txt"), |file| {
            // The file that is being written stays, too.
            remove_unfinished(folder.path()).map_err(io::Error::other)?;
            assert!(!path(".unfinished-abc.tmp").exists());
            file.write_all(b"whole")
        })
        .unwrap();
        assert_eq!(std::fs::read(path("whole.txt")).unwrap(), b"whole");
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, others + 1);
        remove_unfinished(path("none")).unwrap();
    }
}
