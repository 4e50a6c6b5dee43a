use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{BoolStore, DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::Error;

/// Bytes that give the length of the header.
const LENGTH: u64 = 8;
/// The format's own limit on its header.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file opened for reading: its header is checked, tensors are read one at a time.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl Archive {
    /// Opens a file and checks that its header describes exactly the bytes that follow.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is truncated, or breaks the format; nothing is allocated on the
    /// word of a damaged header.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let read = |error| Error::read(&path, error);
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };

        let mut file = File::open(&path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        if len < LENGTH {
            return Err(damaged(format!("{len} bytes are too few for a header")));
        }
        let mut header_len = [0; LENGTH as usize];
        file.read_exact(&mut header_len).map_err(read)?;
        let header_len = u64::from_le_bytes(header_len);
        if header_len > MAX_HEADER || header_len > len - LENGTH {
            return Err(damaged(format!(
                "its header claims {header_len} bytes, the file has {len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("its header cannot be read ({error})")))?;
        let start = LENGTH + header_len;
        let expected = start.checked_add(header.data_len() as u64);
        if expected != Some(len) {
            return Err(damaged(format!(
                "its tensors need {} bytes, the file has {}",
                header.data_len(),
                len - start
            )));
        }
        Ok(Self {
            path,
            file: Mutex::new(file),
            header,
            start,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.header.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Free-form strings stored in the header.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.header.metadata().clone().unwrap_or_default()
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn shape(&self, name: &str) -> Result<&[usize], Error> {
        Ok(&self.info(name)?.shape)
    }

    /// The element type of a tensor.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or its type is none that burn has.
    pub fn dtype(&self, name: &str) -> Result<DType, Error> {
        let dtype = self.info(name)?.dtype;
        burn_dtype(dtype).ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            reason: format!("{name} is of type {dtype:?}, which is not supported"),
        })
    }

    /// Reads a tensor, in the element type of the file.
    ///
    /// # Errors
    ///
    /// If there is none of that name, its type is not supported, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorData, Error> {
        let info = self.info(name)?;
        let dtype = self.dtype(name)?;
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        // A poisoned lock guards nothing but a file position, which is set anew each time.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start + begin as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| Error::read(&self.path, error))?;
        Ok(TensorData::from_bytes_vec(bytes, info.shape.clone(), dtype))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.header.info(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })
    }
}

fn burn_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

pub(crate) fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}
