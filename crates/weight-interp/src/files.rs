use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use serde_json::json;
use swiftbrush_checkpoint::{Archive, Error as FileError, LazyTensor, sha256, write_tensors};

/// Key under which a merged file says where it comes from.
const PROVENANCE: &str = "swiftbrush.interpolation";

/// Why two files cannot be interpolated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// λ is not a number that means anything.
    #[error("lambda is {0}; it must be finite")]
    Lambda(f64),
    /// The files are of different models.
    #[error("{a} and {b} are not of one model: {differences}")]
    Different {
        /// The first file.
        a: PathBuf,
        /// The second file.
        b: PathBuf,
        /// In what they differ, tensor by tensor.
        differences: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("{path}: {name} holds a NaN or an infinity")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

/// Differences named in an error; the rest is counted.
const SHOWN: usize = 5;

/// Writes `λ·a + (1−λ)·b` to `output`, tensor by tensor: no more than three tensors are in memory.
///
/// The result has the element types of `a`; sums are taken in f64. Its header says which files (by
/// SHA-256) and which λ it comes from. Tensors of integers are taken from `a`.
///
/// # Errors
///
/// If a file cannot be read or written, the files differ in names or shapes, or hold a NaN.
pub fn interpolate_files(a: &Path, b: &Path, lambda: f64, output: &Path) -> Result<(), Error> {
    if !lambda.is_finite() {
        return Err(Error::Lambda(lambda));
    }
    let (first, second) = (Archive::open(a)?, Archive::open(b)?);
    check(&first, &second)?;
    check_finite(&first)?;
    check_finite(&second)?;

    let provenance = json!({
        "a": {"file": file_name(a), "sha256": sha256(a)?},
        "b": {"file": file_name(b), "sha256": sha256(b)?},
        "lambda": lambda,
    });
    let metadata = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (PROVENANCE.to_owned(), provenance.to_string()),
    ]);
    let (first, second) = (&first, &second);
    let tensors = first.names().into_iter().map(|name| {
        let (shape, dtype) = (first.shape(&name)?.to_vec(), first.dtype(&name)?);
        let key = name.clone();
        let data = move || {
            let read = |archive: &Archive| archive.read(&key).expect("it was read a moment ago");
            if dtype.is_float() {
                mix(read(first), read(second), lambda)
            } else {
                read(first)
            }
        };
        Ok(LazyTensor {
            name,
            shape,
            dtype,
            data: Box::new(data),
        })
    });
    Ok(write_tensors(
        output,
        tensors.collect::<Result<_, FileError>>()?,
        metadata,
    )?)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn mix(a: TensorData, b: TensorData, lambda: f64) -> TensorData {
    let (shape, dtype) = (a.shape().clone(), a.dtype());
    let mixed = a
        .iter::<f64>()
        .zip(b.iter::<f64>())
        .map(|(a, b)| lambda * a + (1.0 - lambda) * b);
    match dtype {
        DType::F64 => TensorData::new(mixed.collect::<Vec<f64>>(), shape),
        _ => {
            TensorData::new(mixed.map(|x| x as f32).collect::<Vec<_>>(), shape).convert_dtype(dtype)
        }
    }
}

fn check(a: &Archive, b: &Archive) -> Result<(), Error> {
    let names: BTreeSet<_> = a.names().into_iter().chain(b.names()).collect();
    let differences: Vec<_> = names
        .iter()
        .filter_map(|name| match (a.shape(name), b.shape(name)) {
            (Ok(a), Ok(b)) if a == b => None,
            (Ok(a), Ok(b)) => Some(format!(
                "{name} is {a:?} in the first and {b:?} in the second"
            )),
            (Ok(_), Err(_)) => Some(format!("{name} is only in the first")),
            (Err(_), _) => Some(format!("{name} is only in the second")),
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let shown = differences
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    let rest = differences.len().saturating_sub(SHOWN);
    let differences = if rest > 0 {
        format!("{shown}; and {rest} more")
    } else {
        shown
    };
    Err(Error::Different {
        a: a.path().to_owned(),
        b: b.path().to_owned(),
        differences,
    })
}

fn check_finite(archive: &Archive) -> Result<(), Error> {
    for name in archive.names() {
        let data = archive.read(&name)?;
        if data.dtype().is_float() && !data.iter::<f64>().all(f64::is_finite) {
            return Err(Error::NotFinite {
                path: archive.path().to_owned(),
                name,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, tensors: &[(&str, TensorData)]) -> PathBuf {
        let path = folder.join(name);
        let tensors = tensors
            .iter()
            .map(|(name, data)| LazyTensor::ready(*name, data.clone()));
        write_tensors(&path, tensors.collect(), HashMap::new()).unwrap();
        path
    }

    fn row(values: &[f32]) -> TensorData {
        TensorData::new(values.to_vec(), [values.len()])
    }

    #[test]
    fn files_are_mixed_and_say_where_they_come_from() {
        let folder = tempfile::tempdir().unwrap();
        let half = row(&[2.0, 4.0]).convert_dtype(DType::F16);
        let a = write(
            folder.path(),
            "a",
            &[("w", row(&[1.0, -2.0])), ("h", half.clone())],
        );
        let b = write(
            folder.path(),
            "b",
            &[("w", row(&[3.0, 6.0])), ("h", row(&[4.0, 0.0]))],
        );
        let merged = folder.path().join("merged");
        interpolate_files(&a, &b, 0.25, &merged).unwrap();
        let merged = Archive::open(&merged).unwrap();
        assert_eq!(merged.read("w").unwrap(), row(&[2.5, 4.0]));
        assert_eq!(
            merged.read("h").unwrap(),
            row(&[3.5, 1.0]).convert_dtype(DType::F16)
        );
        let provenance = &merged.metadata()[PROVENANCE];
        assert!(
            provenance.contains(&sha256(&a).unwrap()) && provenance.contains("0.25"),
            "{provenance}"
        );
    }

    #[test]
    fn files_of_other_models_and_nan_are_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let a = write(
            folder.path(),
            "a",
            &[("w", row(&[1.0, 2.0])), ("v", row(&[1.0]))],
        );
        let b = write(
            folder.path(),
            "b",
            &[("w", row(&[1.0])), ("u", row(&[1.0]))],
        );
        let nan = write(
            folder.path(),
            "nan",
            &[("w", row(&[1.0, f32::NAN])), ("v", row(&[1.0]))],
        );
        let output = folder.path().join("output");
        let error = interpolate_files(&a, &b, 0.5, &output)
            .unwrap_err()
            .to_string();
        for part in [
            "u is only in the second",
            "v is only in the first",
            "w is [2] in the first and [1]",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = interpolate_files(&a, &nan, 0.5, &output)
            .unwrap_err()
            .to_string();
        assert!(error.contains("w holds a NaN"), "{error}");
        assert!(interpolate_files(&a, &a, f64::NAN, &output).is_err());
        assert!(!output.exists());
    }
}
