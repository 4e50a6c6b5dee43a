//! Tensors of a `torch.save` file: a storage, and the strides to read it with.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use burn::tensor::{BoolStore, DType, TensorData};

use super::pickle::{Id, Node, Tree};
use crate::files::RangeFile;
use crate::float8::Float8;

/// The element type of a tensor in a `torch.save` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Burn(DType),
    Float8(Float8),
    /// A type that burn lacks.
    Unsupported(&'static str),
}

impl Element {
    /// The element type of a PyTorch storage class; `None` if it is not a typed storage.
    fn of_storage(class: &str) -> Option<Self> {
        Self::of_dtype(match class {
            "FloatStorage" => "float32",
            "DoubleStorage" => "float64",
            "HalfStorage" => "float16",
            "BFloat16Storage" => "bfloat16",
            "LongStorage" => "int64",
            "IntStorage" => "int32",
            "ShortStorage" => "int16",
            "CharStorage" => "int8",
            "ByteStorage" => "uint8",
            "BoolStorage" => "bool",
            "ComplexFloatStorage" => "complex64",
            "ComplexDoubleStorage" => "complex128",
            _ => return None,
        })
    }

    fn of_dtype(name: &str) -> Option<Self> {
        Some(match name {
            "float32" | "float" => Self::Burn(DType::F32),
            "float64" | "double" => Self::Burn(DType::F64),
            "float16" | "half" => Self::Burn(DType::F16),
            "bfloat16" => Self::Burn(DType::BF16),
            "int64" | "long" => Self::Burn(DType::I64),
            "int32" | "int" => Self::Burn(DType::I32),
            "int16" | "short" => Self::Burn(DType::I16),
            "int8" => Self::Burn(DType::I8),
            "uint64" => Self::Burn(DType::U64),
            "uint32" => Self::Burn(DType::U32),
            "uint16" => Self::Burn(DType::U16),
            "uint8" => Self::Burn(DType::U8),
            "bool" => Self::Burn(DType::Bool(BoolStore::Native)),
            "complex64" => Self::Unsupported("complex64"),
            "complex128" => Self::Unsupported("complex128"),
            "float8_e8m0fnu" => Self::Unsupported("float8_e8m0fnu"),
            "float4_e2m1fn_x2" => Self::Unsupported("float4_e2m1fn_x2"),
            _ => Self::Float8(Float8::of_torch(name)?),
        })
    }

    /// Number of bytes of an element.
    fn size(self) -> u64 {
        match self {
            Self::Burn(dtype) => dtype.size() as u64,
            Self::Unsupported("complex64") => 8,
            Self::Unsupported("complex128") => 16,
            Self::Float8(_) | Self::Unsupported(_) => 1,
        }
    }
}

/// A tensor of a `torch.save` file.
#[derive(Clone, Debug)]
pub(crate) struct TorchTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) element: Element,
    strides: Vec<u64>,
    /// The bytes from the start of the first element to the end of the last.
    range: Range<u64>,
}

/// The size limit, in bytes, of tensors larger than their storage (expanded ones).
const MAX_EXPANDED: u64 = 1 << 28;

impl TorchTensor {
    /// Reads the values in row-major order. Supports burn's element types and 8-bit floats.
    pub(crate) fn read(&self, file: &RangeFile) -> io::Result<TensorData> {
        let bytes = file.read(self.range.clone())?;
        let bytes = match self.is_contiguous() {
            true => bytes.into(),
            false => self.gather(&bytes),
        };
        match self.element {
            Element::Burn(dtype) => {
                // burn panics on any other bytes.
                let is_bool = matches!(dtype, DType::Bool(_));
                if is_bool && bytes.iter().any(|&byte| byte > 1) {
                    return Err(invalid("a boolean other than 0 and 1"));
                }
                Ok(TensorData::from_bytes_vec(bytes, self.shape.clone(), dtype))
            }
            Element::Float8(format) => {
                Ok(TensorData::new(format.widen(&bytes), self.shape.clone()))
            }
            Element::Unsupported(name) => Err(invalid(format!("unsupported element type {name}"))),
        }
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        let axes = self.shape.iter().zip(&self.strides).rev();
        axes.filter(|(size, _)| **size != 1).all(|(size, stride)| {
            let matches = *stride == expected;
            expected *= *size as u64;
            matches
        })
    }

    fn gather(&self, bytes: &[u8]) -> Vec<u8> {
        let size = self.element.size() as usize;
        let count = self.shape.iter().product::<usize>();
        let mut gathered = Vec::with_capacity(count * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let offset = index.iter().zip(&self.strides);
            let offset = offset.map(|(i, stride)| i * stride).sum::<u64>() as usize;
            gathered.extend_from_slice(&bytes[offset * size..(offset + 1) * size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] as u64 {
                    break;
                }
                index[axis] = 0;
            }
        }
        gathered
    }
}

/// A storage referenced by a pickle.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) key: String,
    /// `None` for an untyped storage.
    element: Option<Element>,
    pub(super) bytes: u64,
    /// Offset in elements of a view (PyTorch before 0.4).
    view: u64,
}

impl Storage {
    /// Reads `('storage', class, key, location, count[, view])`.
    pub(super) fn of(tree: &Tree, id: Id) -> io::Result<Self> {
        let bad = || invalid("an invalid reference to a storage");
        let Some(&[tag, class, key, _location, count, ref view @ ..]) = tree.tuple(id) else {
            return Err(bad());
        };
        if tree.string(tag) != Some("storage") {
            return Err(bad());
        }
        let (_, class) = tree.global(class).ok_or_else(bad)?;
        let element = match class {
            "UntypedStorage" => None,
            class => Some(
                Element::of_storage(class)
                    .ok_or_else(|| invalid(format!("storages of type {class} are unsupported")))?,
            ),
        };
        let key = match tree.node(key) {
            Node::Str(key) => key.clone(),
            Node::Int(key) => key.to_string(),
            _ => return Err(bad()),
        };
        let count = natural(tree, count).ok_or_else(bad)?;
        let view = match view.first().and_then(|&view| tree.tuple(view)) {
            Some(&[_, offset, _]) => natural(tree, offset).ok_or_else(bad)?,
            _ => 0,
        };
        let size = element.map_or(1, Element::size);
        let bytes = count.checked_mul(size).ok_or_else(bad)?;
        Ok(Self {
            key,
            element,
            bytes,
            view,
        })
    }
}

/// The byte ranges of the storages of a file, by key.
pub(super) type Places = BTreeMap<String, Range<u64>>;

/// Builds the tensor of a call to `torch._utils._rebuild_tensor*`, whose arguments are storage, offset, shape, strides,
/// and in the third version the element type.
pub(super) fn rebuild(tree: &Tree, arguments: &[Id], places: &Places) -> io::Result<TorchTensor> {
    let bad = |what: &str| invalid(format!("a tensor with an invalid {what}"));
    let &[storage, offset, shape, strides, ref rest @ ..] = arguments else {
        return Err(invalid("a tensor without its four arguments"));
    };
    let Node::Persistent(storage) = tree.node(storage) else {
        return Err(bad("storage"));
    };
    let storage = Storage::of(tree, *storage)?;
    let offset = natural(tree, offset).ok_or_else(|| bad("offset"))?;
    let shape = naturals(tree, shape).ok_or_else(|| bad("shape"))?;
    let strides = naturals(tree, strides).ok_or_else(|| bad("list of strides"))?;
    let element = match storage.element {
        Some(element) => element,
        None => {
            let dtype = rest.get(2).and_then(|&dtype| tree.global(dtype));
            let (_, name) = dtype.ok_or_else(|| bad("element type"))?;
            Element::of_dtype(name)
                .ok_or_else(|| invalid(format!("tensors of type torch.{name} are unsupported")))?
        }
    };
    let place = places.get(&storage.key);
    let place = place.ok_or_else(|| invalid(format!("there is no storage {}", storage.key)))?;
    let range = extent(&storage, element, offset, &shape, &strides)
        .filter(|range| range.end <= storage.bytes.min(place.end - place.start))
        .ok_or_else(|| invalid(format!("a tensor reaches past storage {}", storage.key)))?;
    let shape: Option<_> = shape
        .iter()
        .map(|&size| usize::try_from(size).ok())
        .collect();
    Ok(TorchTensor {
        shape: shape.ok_or_else(|| bad("shape"))?,
        element,
        strides,
        range: place.start + range.start..place.start + range.end,
    })
}

/// The bytes of a storage that a tensor spans; `None` on overflow.
fn extent(
    storage: &Storage,
    element: Element,
    offset: u64,
    shape: &[u64],
    strides: &[u64],
) -> Option<Range<u64>> {
    if shape.len() != strides.len() {
        return None;
    }
    let size = element.size();
    let count = shape
        .iter()
        .try_fold(1u64, |count, &axis| count.checked_mul(axis))?;
    if count.checked_mul(size)? > storage.bytes.max(MAX_EXPANDED) {
        return None;
    }
    let first = offset.checked_add(storage.view)?.checked_mul(size)?;
    let mut last = 0u64;
    for (&axis, &stride) in shape.iter().zip(strides) {
        last = last.checked_add(axis.saturating_sub(1).checked_mul(stride)?)?;
    }
    let span = match count {
        0 => 0,
        _ => last.checked_add(1)?.checked_mul(size)?,
    };
    Some(first..first.checked_add(span)?)
}

fn natural(tree: &Tree, id: Id) -> Option<u64> {
    u64::try_from(tree.int(id)?).ok()
}

/// Reads a tuple of numbers or a `torch.Size`.
fn naturals(tree: &Tree, id: Id) -> Option<Vec<u64>> {
    let items = match tree.node(id) {
        Node::Object { arguments, .. } => tree.tuple(*tree.tuple(*arguments)?.first()?)?,
        _ => tree.tuple(id)?,
    };
    items.iter().map(|&item| natural(tree, item)).collect()
}

pub(super) fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}
