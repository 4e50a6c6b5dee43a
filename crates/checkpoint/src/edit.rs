use std::ops::Range;

use burn::tensor::TensorData;

/// A change to a tensor after it is read.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// Keeps a range of the first axis.
    Rows(Range<usize>),
    /// Transposes a matrix.
    Transpose,
    /// Changes the shape.
    Reshape(Vec<usize>),
}

impl Edit {
    pub(crate) fn apply(&self, data: TensorData) -> TensorData {
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        match self {
            Self::Reshape(shape) => {
                let (bytes, _, dtype) = data.into_parts();
                TensorData::from_bytes(bytes, shape.clone(), dtype)
            }
            Self::Rows(rows) => {
                let row = shape[1..].iter().product::<usize>() * dtype.size();
                let bytes = data.as_bytes()[rows.start * row..rows.end * row].to_vec();
                let shape = [&[rows.len()], &shape[1..]].concat();
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
