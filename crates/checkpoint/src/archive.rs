use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::{AllocationProperty, BoolStore, Bytes, DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use swiftbrush_kernels::MappedFile;

use crate::Error;

/// Bytes that give the length of the header.
const LENGTH: usize = 8;
/// The format's own limit on its header.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file opened for reading: its header is checked, tensors are views of the file in memory
/// ([`MappedFile`]), which must not be changed in place meanwhile.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    contents: MappedFile,
    header: Metadata,
    /// Where the tensors begin.
    start: usize,
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

        let file = File::open(&path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if metadata.is_file() && metadata.len() < LENGTH as u64 {
            let len = metadata.len();
            return Err(damaged(format!("{len} bytes are too few for a header")));
        }
        let contents = MappedFile::new(&file).map_err(read)?;
        let bytes = contents.as_ref();
        let len = bytes.len();
        let Some((header_len, rest)) = bytes.split_first_chunk::<LENGTH>() else {
            return Err(damaged(format!("{len} bytes are too few for a header")));
        };
        let header_len = u64::from_le_bytes(*header_len);
        let header = usize::try_from(header_len)
            .ok()
            .filter(|_| header_len <= MAX_HEADER)
            .and_then(|header_len| rest.get(..header_len));
        let Some(header) = header else {
            return Err(damaged(format!(
                "its header claims {header_len} bytes, the file has {len}"
            )));
        };
        let start = LENGTH + header.len();
        let header: Metadata = serde_json::from_slice(header)
            .map_err(|error| damaged(format!("its header cannot be read ({error})")))?;
        if start.checked_add(header.data_len()) != Some(len) {
            return Err(damaged(format!(
                "its tensors need {} bytes, the file has {}",
                header.data_len(),
                len - start
            )));
        }
        Ok(Self {
            path,
            contents,
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

    /// A tensor, in the element type of the file; its numbers stay in the file until they are looked at.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or its type is not supported.
    pub fn read(&self, name: &str) -> Result<TensorData, Error> {
        let info = self.info(name)?;
        let dtype = self.dtype(name)?;
        let bytes = self.contents.slice(self.range(info));
        // Numbers must lie where their size divides; files of careless writers are copied. Windows does not replace a
        // file that is in use.
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        let shape = info.shape.clone();
        Ok(match is_aligned && cfg!(not(windows)) {
            true => {
                let bytes = Bytes::from_shared(bytes, AllocationProperty::File);
                TensorData::from_bytes(bytes, shape, dtype)
            }
            false => TensorData::from_bytes_vec(bytes.to_vec(), shape, dtype),
        })
    }

    /// Says that a tensor will not be read again soon; see [`MappedFile::release`]. Nothing happens without one of that
    /// name.
    pub fn release(&self, name: &str) {
        if let Ok(info) = self.info(name) {
            self.contents.release(self.range(info));
        }
    }

    fn range(&self, info: &TensorInfo) -> std::ops::Range<usize> {
        let (begin, end) = info.data_offsets;
        self.start + begin..self.start + end
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
