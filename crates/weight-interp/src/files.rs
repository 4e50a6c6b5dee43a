use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use serde_json::{Value, json};
use swiftbrush_checkpoint::{
    Error as FileError, LazyTensor, Model, Weights, is_buffer, is_finite, sha256, write_tensors,
};

use crate::Error;

/// The header entry with the origin of a merged file.
const PROVENANCE: &str = "swiftbrush.interpolation";
/// A header entry that must not differ between the two models.
const PREDICTION: &str = "modelspec.prediction_type";
/// Hashes of the tensors of the first file, which become invalid.
const HASHES: [&str; 3] = [
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
];

/// Writes `λ·a + (1−λ)·b` to the safetensors file `output`, tensor by tensor, with at most three tensors in memory.
///
/// Inputs are weight files (safetensors, an index of shards, or a `torch.save` file) or component folders. The result has
/// the element types and the header of `a`, without hashes that become invalid, and a new entry with λ and both files by
/// SHA-256. Sums are computed in f64. λ outside 0…1 extrapolates. Buffers such as `position_ids` are copied from `a` and
/// need not be in both.
///
/// Returns messages for the user about extrapolation, headers that differ, and tensors whose type was widened.
///
/// # Errors
///
/// If λ is not finite, a file cannot be read or written, the files differ in names, shapes, integer tensors or prediction
/// type, or an input or the result contains a NaN or an infinity. An existing `output` is then left unchanged.
pub fn interpolate_files(
    a: impl AsRef<Path>,
    b: impl AsRef<Path>,
    lambda: f64,
    output: impl AsRef<Path>,
) -> Result<Vec<String>, Error> {
    if !lambda.is_finite() {
        return Err(Error::Lambda(lambda));
    }
    let output = output.as_ref();
    let (a, b) = (open(a.as_ref())?, open(b.as_ref())?);
    let pair = Pair {
        a: &a,
        b: &b,
        lambda,
        output,
    };
    pair.check()?;
    write_tensors(output, pair.tensors()?, pair.metadata()?)?;
    Ok(pair.notes())
}

/// Opens a file, or the weights in a component folder.
fn open(path: &Path) -> Result<Weights, Error> {
    if !path.is_dir() {
        return Ok(Weights::open(path)?);
    }
    let model = Model::open(path)?;
    model.weights(".").map_err(|error| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut components: Vec<_> = names.filter(|name| model.has(name)).collect();
        components.sort();
        match components.is_empty() {
            true => error.into(),
            false => Error::Folder {
                folder: path.to_owned(),
                components,
            },
        }
    })
}

/// Two models and the interpolation between them.
#[derive(Clone, Copy)]
struct Pair<'a> {
    a: &'a Weights,
    b: &'a Weights,
    lambda: f64,
    output: &'a Path,
}

impl<'a> Pair<'a> {
    /// Compares names, shapes and prediction types.
    fn check(&self) -> Result<(), Error> {
        let names: BTreeSet<_> = self.a.names().chain(self.b.names()).collect();
        let compared = names.into_iter().filter(|name| !is_buffer(name));
        let differences =
            compared.filter_map(|name| match (self.a.shape(name), self.b.shape(name)) {
                (Some(a), Some(b)) if a == b => None,
                (Some(a), Some(b)) => Some(format!(
                    "{name} is {a:?} in the first and {b:?} in the second"
                )),
                (Some(_), None) => Some(format!("{name} is only in the first")),
                (None, _) => Some(format!("{name} is only in the second")),
            });
        let mut differences: Vec<_> = differences.collect();
        let prediction = |weights: &'a Weights| weights.metadata().get(PREDICTION);
        if let (Some(a), Some(b)) = (prediction(self.a), prediction(self.b))
            && a != b
        {
            let difference = format!("{PREDICTION} is {a} in the first and {b} in the second");
            differences.push(difference);
        }
        match differences.is_empty() {
            true => Ok(()),
            false => Err(self.different(differences)),
        }
    }

    fn different(&self, differences: Vec<String>) -> Error {
        Error::Different {
            a: self.a.path().to_owned(),
            b: self.b.path().to_owned(),
            differences,
        }
    }

    fn tensors(self) -> Result<Vec<LazyTensor<'a>>, Error> {
        let mut integers = Vec::new();
        let mut tensors = Vec::new();
        for name in self.a.names() {
            let shape = self.a.shape(name).unwrap_or_default();
            let dtype = self.a.dtype(name)?;
            let is_copied = is_buffer(name) || !dtype.is_float();
            if is_copied && !is_buffer(name) && self.a.read(name)? != self.b.read(name)? {
                integers.push(format!("{name} contains integers, which differ"));
            }
            let data = move || match is_copied {
                true => self.a.read(name),
                false => self.mixed(name),
            };
            tensors.push(LazyTensor::new(name, shape, dtype, data));
        }
        match integers.is_empty() {
            true => Ok(tensors),
            false => Err(self.different(integers)),
        }
    }

    fn mixed(self, name: &str) -> Result<TensorData, FileError> {
        let not_finite = |path: &Path, reason: String| FileError::NotFinite {
            path: path.to_owned(),
            name: name.to_owned(),
            reason,
        };
        let read = |weights: &Weights| {
            let data = weights.read(name)?;
            if !data.dtype().is_float() {
                return Err(FileError::UnsupportedType {
                    path: weights.path().to_owned(),
                    name: name.to_owned(),
                    found: format!("{:?}", data.dtype()),
                });
            }
            match is_finite(&data) {
                true => Ok(data),
                false => Err(not_finite(
                    weights.path(),
                    "contains a NaN or an infinity".to_owned(),
                )),
            }
        };
        let mixed = mix(read(self.a)?, read(self.b)?, self.lambda);
        self.a.release(name);
        self.b.release(name);
        match is_finite(&mixed) {
            true => Ok(mixed),
            false => Err(not_finite(
                self.output,
                format!(
                    "would exceed the range of {:?}; choose λ closer to 0…1, or convert the first file to F32",
                    mixed.dtype()
                ),
            )),
        }
    }

    /// The header of the first file, and the origin of the result.
    fn metadata(&self) -> Result<HashMap<String, String>, Error> {
        let provenance = json!({
            "a": origin(self.a)?,
            "b": origin(self.b)?,
            "lambda": self.lambda,
        });
        let mut metadata: HashMap<_, _> = self.a.metadata().clone().into_iter().collect();
        metadata.retain(|key, _| !HASHES.contains(&key.as_str()));
        metadata
            .entry("format".to_owned())
            .or_insert_with(|| "pt".to_owned());
        metadata.insert(PROVENANCE.to_owned(), provenance.to_string());
        Ok(metadata)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.a.notes();
        notes.extend(self.b.notes());
        if !(0.0..=1.0).contains(&self.lambda) {
            let lambda = self.lambda;
            notes.push(format!("lambda {lambda} is outside 0…1 and extrapolates"));
        }
        let (first, second) = (self.a.metadata(), self.b.metadata());
        let keys: BTreeSet<_> = first.keys().chain(second.keys()).collect();
        let keys = keys
            .into_iter()
            .filter(|key| *key != PROVENANCE && !HASHES.contains(&key.as_str()));
        for key in keys {
            let note = match (first.get(key), second.get(key)) {
                (Some(a), Some(b)) if a != b => {
                    format!("header `{key}`: the first file's {} is kept", short(a))
                }
                (None, Some(b)) => {
                    format!(
                        "header `{key}`: only in the second file ({}), dropped",
                        short(b)
                    )
                }
                _ => continue,
            };
            notes.push(note);
        }
        let names = self.b.names().filter(|name| !self.a.contains(name));
        notes.extend(names.map(|name| format!("{name}: only in the second file, dropped")));
        notes
    }
}

fn short(text: &str) -> String {
    const LENGTH: usize = 40;
    match text.char_indices().nth(LENGTH) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// Names and hashes of the files, plus their own origin if they were merged.
fn origin(weights: &Weights) -> Result<Value, FileError> {
    let files = weights.files().into_iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(json!({"file": name, "sha256": sha256(&path)?}))
    });
    let mut files = files.collect::<Result<Vec<_>, FileError>>()?;
    let mut origin = match files.len() {
        1 => files.swap_remove(0),
        _ => json!({"files": files}),
    };
    let merged = weights.metadata().get(PROVENANCE);
    let merged = merged.and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let (Some(merged), Value::Object(origin)) = (merged, &mut origin) {
        origin.insert("interpolation".to_owned(), merged);
    }
    Ok(origin)
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn write(folder: &Path, name: &str, tensors: &[(&str, TensorData)]) -> PathBuf {
        write_with(folder, name, tensors, &[])
    }

    fn write_with(
        folder: &Path,
        name: &str,
        tensors: &[(&str, TensorData)],
        header: &[(&str, &str)],
    ) -> PathBuf {
        let path = folder.join(name);
        let tensors = tensors
            .iter()
            .map(|(name, data)| LazyTensor::ready(*name, data.clone()));
        let header = header
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        write_tensors(&path, tensors.collect(), header.collect()).unwrap();
        path
    }

    fn row(values: &[f32]) -> TensorData {
        TensorData::new(values.to_vec(), [values.len()])
    }

    fn error(a: &Path, b: &Path, lambda: f64) -> String {
        let output = a.with_file_name("output");
        let error = interpolate_files(a, b, lambda, &output).unwrap_err();
        assert!(!output.exists(), "nothing is written");
        error.to_string()
    }

    #[test]
    fn files_are_averaged_and_keep_their_header_and_origin() {
        let folder = tempfile::tempdir().unwrap();
        let half = row(&[2.0, 4.0]).convert_dtype(DType::F16);
        let a = write_with(
            folder.path(),
            "a",
            &[("w", row(&[1.0, -2.0])), ("h", half)],
            &[
                ("modelspec.title", "first"),
                ("modelspec.prediction_type", "v"),
                ("sshs_model_hash", "0123"),
            ],
        );
        let b = write_with(
            folder.path(),
            "b",
            &[("w", row(&[3.0, 6.0])), ("h", row(&[4.0, 0.0]))],
            &[
                ("modelspec.title", "second"),
                ("modelspec.prediction_type", "v"),
                ("modelspec.author", "me"),
            ],
        );
        let output = folder.path().join("merged");
        let notes = interpolate_files(&a, &b, 0.25, &output).unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("modelspec.author") && notes[1].contains("first"));
        let merged = Weights::open(&output).unwrap();
        assert_eq!(merged.read("w").unwrap(), row(&[2.5, 4.0]));
        assert_eq!(
            merged.read("h").unwrap(),
            row(&[3.5, 1.0]).convert_dtype(DType::F16)
        );
        let header = merged.metadata();
        assert_eq!(header["modelspec.prediction_type"], "v");
        assert!(!header.contains_key("sshs_model_hash"));
        let provenance = &header[PROVENANCE];
        assert!(
            provenance.contains(&sha256(&a).unwrap()) && provenance.contains("0.25"),
            "{provenance}"
        );
        let again = folder.path().join("again");
        interpolate_files(&output, &a, 0.5, &again).unwrap();
        let again = Weights::open(&again).unwrap();
        let provenance = &again.metadata()[PROVENANCE];
        assert!(provenance.contains("\"interpolation\""), "{provenance}");
    }

    #[test]
    fn other_models_and_non_finite_values_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let ones = [("w", row(&[1.0, 2.0])), ("v", row(&[1.0]))];
        let v = [("modelspec.prediction_type", "v")];
        let epsilon = [("modelspec.prediction_type", "epsilon")];
        let a = write_with(folder.path(), "a", &ones, &v);
        let b = write(
            folder.path(),
            "b",
            &[("w", row(&[1.0])), ("u", row(&[1.0]))],
        );
        let different = error(&a, &b, 0.5);
        for part in [
            "u is only in the second",
            "v is only in the first",
            "w is [2] in the first and [1]",
        ] {
            assert!(different.contains(part), "{different}");
        }
        let c = write_with(folder.path(), "c", &ones, &epsilon);
        assert!(error(&a, &c, 0.5).contains("modelspec.prediction_type is v"));
        let nan = [("w", row(&[1.0, f32::NAN])), ("v", row(&[1.0]))];
        let nan = write(folder.path(), "nan", &nan);
        let not_finite = error(&a, &nan, 0.5);
        assert!(
            not_finite.contains("nan: tensor w contains a NaN"),
            "{not_finite}"
        );
        assert!(error(&a, &a, f64::NAN).contains("lambda is NaN"));
        assert!(error(&a, &a, f64::INFINITY).contains("lambda is inf"));
    }

    #[test]
    fn a_result_beyond_its_element_type_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let half = |value: f32| [("w", row(&[value; 4]).convert_dtype(DType::F16))];
        let a = write(folder.path(), "a", &half(60000.0));
        let b = write(folder.path(), "b", &half(-60000.0));
        let beyond = error(&a, &b, 1.5);
        assert!(
            beyond.contains("tensor w would exceed the range of F16"),
            "{beyond}"
        );
        let output = folder.path().join("c");
        let notes = interpolate_files(&a, &a, 1.5, &output).unwrap();
        assert!(notes[0].contains("extrapolates"), "{notes:?}");
    }

    #[test]
    fn buffers_are_copied_and_need_not_be_in_both() {
        let folder = tempfile::tempdir().unwrap();
        let ids = |value: f32| ("text_model.embeddings.position_ids", row(&[value]));
        let with = write(folder.path(), "with", &[("w", row(&[1.0])), ids(f32::NAN)]);
        let without = write(folder.path(), "without", &[("w", row(&[3.0]))]);
        let output = folder.path().join("merged");
        interpolate_files(&with, &without, 0.5, &output).unwrap();
        assert_eq!(Weights::open(&output).unwrap().len(), 2);
        let notes = interpolate_files(&without, &with, 0.5, &output).unwrap();
        assert!(notes[0].contains("position_ids"), "{notes:?}");
        assert_eq!(
            Weights::open(&output).unwrap().read("w").unwrap(),
            row(&[2.0])
        );
    }

    #[test]
    fn integers_have_to_be_equal() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, value: i64| {
            let count = ("count", TensorData::from([value]));
            write(folder.path(), name, &[("w", row(&[1.0])), count])
        };
        let (a, b) = (file("a", 1), file("b", 2));
        assert!(error(&a, &b, 0.5).contains("count contains integers, which differ"));
        interpolate_files(&a, &a, 0.5, folder.path().join("c")).unwrap();
    }

    #[test]
    fn folders_are_those_of_a_component() {
        let folder = tempfile::tempdir().unwrap();
        let file = "unet/diffusion_pytorch_model.safetensors";
        write(folder.path(), file, &[("w", row(&[1.0]))]);
        let unet = folder.path().join("unet");
        let output = folder.path().join("merged");
        interpolate_files(&unet, &unet, 0.5, &output).unwrap();
        let error = interpolate_files(folder.path(), &unet, 0.5, &output).unwrap_err();
        assert!(error.to_string().contains("name one of unet"), "{error}");
    }
}
