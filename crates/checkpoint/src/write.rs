use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::View;
use safetensors::tensor::{Dtype, SafeTensorError};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::Error;
use crate::archive::file_dtype;

/// A tensor that is computed when it is written, so that a file never has to fit in memory.
pub struct LazyTensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Shape; what `data` returns must have it.
    pub shape: Vec<usize>,
    /// Element type; what `data` returns must have it.
    pub dtype: DType,
    /// Computes the values.
    pub data: Box<dyn Fn() -> TensorData + 'a>,
}

impl std::fmt::Debug for LazyTensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.shape, self.dtype)
    }
}

impl LazyTensor<'_> {
    /// A tensor that is there already.
    pub fn ready(name: impl Into<String>, data: TensorData) -> Self {
        Self {
            name: name.into(),
            shape: data.shape().to_vec(),
            dtype: data.dtype(),
            data: Box::new(move || data.clone()),
        }
    }
}

struct FileView<'a> {
    tensor: LazyTensor<'a>,
    dtype: Dtype,
}

impl View for FileView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = (self.tensor.data)();
        assert_eq!(
            data.shape().to_vec(),
            self.tensor.shape,
            "{} changed its shape",
            self.tensor.name
        );
        assert_eq!(
            data.dtype(),
            self.tensor.dtype,
            "{} changed its type",
            self.tensor.name
        );
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.tensor.shape.iter().product::<usize>() * self.tensor.dtype.size()
    }
}

/// Writes a safetensors file, replacing what was there only when the new one is whole.
///
/// # Errors
///
/// If a tensor is of a type that the format lacks, or the file cannot be written.
pub fn write_tensors(
    path: &Path,
    tensors: Vec<LazyTensor<'_>>,
    metadata: HashMap<String, String>,
) -> Result<(), Error> {
    let views = tensors
        .into_iter()
        .map(|tensor| {
            let dtype = file_dtype(tensor.dtype).ok_or_else(|| {
                let text = format!("{} is of type {:?}", tensor.name, tensor.dtype);
                Error::write(path, io::Error::new(io::ErrorKind::InvalidInput, text))
            })?;
            Ok((tensor.name.clone(), FileView { tensor, dtype }))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let temporary = temporary_beside(path)?;
    safetensors::serialize_to_file(views, Some(metadata), temporary.path()).map_err(|error| {
        let error = match error {
            SafeTensorError::IoError(error) => error,
            other => io::Error::other(other),
        };
        Error::write(path, error)
    })?;
    // serialize_to_file opened the file a second time: sync through a handle of our own.
    let file = File::open(temporary.path()).map_err(|error| Error::write(path, error))?;
    file.sync_all().map_err(|error| Error::write(path, error))?;
    replace(temporary, path)
}

/// Writes a file through `write`, replacing what was there only when the new one is whole and on disk.
///
/// # Errors
///
/// If `write` fails or the file cannot be written; the old file then stands.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let temporary = temporary_beside(path)?;
    let mut writer = BufWriter::new(temporary.as_file());
    write(&mut writer)
        .and_then(|()| writer.flush())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(|error| Error::write(path, error))?;
    drop(writer);
    replace(temporary, path)
}

/// Writes a value as indented JSON, atomically.
///
/// # Errors
///
/// As [`write_atomically`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}

/// A file in the same folder (so that renaming it is atomic), which goes away if it is not kept.
fn temporary_beside(path: &Path) -> Result<NamedTempFile, Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| Error::write(path, error))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    builder
        .tempfile_in(folder)
        .map_err(|error| Error::write(path, error))
}

fn replace(temporary: NamedTempFile, path: &Path) -> Result<(), Error> {
    temporary
        .persist(path)
        .map_err(|error| Error::write(path, error.error))?;
    // The rename itself is on disk once the folder is; not every system lets a folder be synced.
    #[cfg(unix)]
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
///
/// If the file cannot be read.
pub fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(|error| Error::read(path, error))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file
            .read(&mut buffer)
            .map_err(|error| Error::read(path, error))?;
        if len == 0 {
            return Ok(hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect());
        }
        hasher.update(&buffer[..len]);
    }
}
