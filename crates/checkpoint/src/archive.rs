use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{AllocationProperty, BoolStore, Bytes, DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use swiftbrush_kernels::Access;

use crate::Error;
use crate::files::{Files, RangeFile};
use crate::float8::Float8;
use crate::kind;

/// Size of the header's length field in bytes.
const LENGTH: usize = 8;
/// The format's limit on the size of its header.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file opened for reading. Opening it reads and checks the header only.
///
/// Tensors are views of the mapped file unless it was opened with [`Access::Owned`]; see [`Access`] for the
/// contract that mapping entails.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: RangeFile,
    header: Metadata,
    /// Offset of the tensor data.
    start: u64,
}

impl Archive {
    /// Memory-maps a file and checks that its header describes exactly the bytes that follow.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, has another format, is truncated, or breaks the format. The sizes claimed by a
    /// damaged header are never used for allocations.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, Access::Mapped)
    }

    /// Opens a file with a choice of [`Access`].
    ///
    /// # Errors
    ///
    /// Same as [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, access: Access) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::of(path, Files::System.open(path, access)?)
    }

    pub(crate) fn of(path: &Path, file: RangeFile) -> Result<Self, Error> {
        let (header, start) = Self::read_header(path, &file)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            start,
        })
    }

    fn read_header(path: &Path, file: &RangeFile) -> Result<(Metadata, u64), Error> {
        let read = |range: Range<u64>| file.read(range).map_err(|error| Error::read(path, error));
        let len = file.len();
        let first = read(0..len.min(kind::SNIFFED))?;
        let Some((header_len, _)) = first.split_first_chunk::<LENGTH>() else {
            return Err(not_safetensors(path, &first).unwrap_or_else(|| {
                Error::damaged(path, format!("{len} bytes are too short for a header"))
            }));
        };
        let header_len = u64::from_le_bytes(*header_len);
        let start = LENGTH as u64 + header_len.min(MAX_HEADER);
        if header_len > MAX_HEADER || start > len {
            return Err(not_safetensors(path, &first).unwrap_or_else(|| {
                let reason =
                    format!("its header claims {header_len} bytes, but the file has {len}");
                Error::damaged(path, reason)
            }));
        }
        let header: Metadata = serde_json::from_slice(&read(LENGTH as u64..start)?)
            .map_err(|error| Error::damaged(path, format!("its header is invalid ({error})")))?;
        if start.checked_add(header.data_len() as u64) != Some(len) {
            let (expected, found) = (header.data_len(), len - start);
            let reason = format!("its tensors take {expected} bytes, but the file has {found}");
            return Err(Error::damaged(path, reason));
        }
        Ok((header, start))
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.header.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Returns whether the file has a tensor of this name.
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
    /// If there is no tensor of that name.
    pub fn shape(&self, name: &str) -> Result<&[usize], Error> {
        Ok(&self.info(name)?.shape)
    }

    /// The element type in which a tensor is read: that of the file, or F16 for 8-bit floating-point formats, which
    /// burn lacks.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that name, or its type is unsupported.
    pub fn dtype(&self, name: &str) -> Result<DType, Error> {
        let dtype = self.info(name)?.dtype;
        burn_dtype(dtype).ok_or_else(|| Error::UnsupportedType {
            path: self.path.clone(),
            name: name.to_owned(),
            found: dtype.to_string(),
        })
    }

    /// The 8-bit format of a tensor, if it is stored in one.
    pub(crate) fn float8(&self, name: &str) -> Option<Float8> {
        Float8::of(self.header.info(name)?.dtype)
    }

    /// Reads a tensor in its [`dtype`](Self::dtype). A mapped tensor stays in the file until its values are touched.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that name, its type is unsupported, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorData, Error> {
        let (info, dtype) = (self.info(name)?, self.dtype(name)?);
        let bytes = self.file.read(self.range(info));
        let bytes = bytes.map_err(|error| Error::read(&self.path, error))?;
        let shape = info.shape.clone();
        if let Some(format) = Float8::of(info.dtype) {
            return Ok(TensorData::new(format.widen(&bytes), shape));
        }
        // burn needs aligned values, but some writers do not pad their headers.
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        Ok(match is_aligned && self.file.is_shared() {
            true => {
                let bytes = Bytes::from_shared(bytes, AllocationProperty::File);
                TensorData::from_bytes(bytes, shape, dtype)
            }
            false => TensorData::from_bytes_vec(bytes.into(), shape, dtype),
        })
    }

    /// Advises that a tensor will not be needed soon; see [`WeightFile::release`](swiftbrush_kernels::WeightFile::release). Ignores unknown names.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.header.info(name) {
            self.file.release(self.range(info));
        }
    }

    fn range(&self, info: &TensorInfo) -> Range<u64> {
        let (begin, end) = info.data_offsets;
        self.start + begin as u64..self.start + end as u64
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.header.info(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })
    }
}

fn not_safetensors(path: &Path, first: &[u8]) -> Option<Error> {
    let found = kind::describe(first)?.to_owned();
    Some(Error::NotWeights {
        path: path.to_owned(),
        found,
    })
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
        other => return Float8::of(other).map(|_| DType::F16),
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
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}
