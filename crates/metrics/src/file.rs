use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use faer::Mat;
use npyz::{NpyFile, WriterBuilder};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::{Error, Gaussian};

/// How far a covariance may be from symmetric, of its largest number.
const ASYMMETRY: f64 = 1e-6;

impl Gaussian {
    /// Reads `mu` and `sigma` of an `.npz` file, as pytorch-fid and clean-fid write them.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, lacks one of the two, or they are not the mean and the covariance of anything.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Statistics {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let archive = ZipArchive::new(Cursor::new(bytes));
        let mut archive = archive.map_err(|error| bad(error.to_string()))?;
        let mut array = |name: &str| {
            let file = archive.by_name(&format!("{name}.npy"));
            let file = file.map_err(|error| bad(format!("{name}: {error}")))?;
            let numbers = NpyFile::new(file).and_then(numbers);
            numbers.map_err(|error| bad(format!("{name}: {error}")))
        };
        let ((shape, mean), (square, covariance)) = (array("mu")?, array("sigma")?);
        let width = mean.len();
        if shape.len() != 1 || width == 0 || square != [width as u64, width as u64] {
            return Err(bad(format!("mu is {shape:?}, sigma {square:?}")));
        }
        if mean
            .iter()
            .chain(&covariance)
            .any(|value| !value.is_finite())
        {
            return Err(bad("there is a NaN or an infinity".to_owned()));
        }
        let covariance = Mat::from_fn(width, width, |i, j| covariance[i * width + j]);
        let largest = (0..width).map(|i| covariance[(i, i)]).fold(0.0, f64::max);
        let pairs = (0..width).flat_map(|i| (0..i).map(move |j| (i, j)));
        let apart = pairs.map(|(i, j)| (covariance[(i, j)] - covariance[(j, i)]).abs());
        if apart.fold(0.0, f64::max) > ASYMMETRY * largest {
            return Err(bad("sigma is not symmetric".to_owned()));
        }
        Ok(Self { mean, covariance })
    }

    /// Writes `mu` and `sigma` as pytorch-fid and clean-fid read them; the file replaces an older one only when it is
    /// whole.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let width = self.mean.len();
        let rows = (0..width).flat_map(|i| (0..width).map(move |j| (i, j)));
        let write = || {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let temporary = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            let mut file = ZipWriter::new(temporary.as_file());
            let options =
                SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            let n = width as u64;
            file.start_file("mu.npy", options)?;
            array(&mut file, &[n], self.mean.iter().copied())?;
            file.start_file("sigma.npy", options)?;
            array(&mut file, &[n, n], rows.map(|at| self.covariance[at]))?;
            file.finish()?;
            temporary.as_file().sync_all()?;
            temporary.persist(path).map_err(|error| error.error)
        };
        write().map(drop).map_err(|source| Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }
}

fn array(
    file: &mut impl Write,
    shape: &[u64],
    values: impl Iterator<Item = f64>,
) -> io::Result<()> {
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(file).begin_nd()?;
    writer.extend(values)?;
    writer.finish()
}

/// Shape and numbers of an array of f64 or f32, row by row.
fn numbers<R: Read>(file: NpyFile<R>) -> io::Result<(Vec<u64>, Vec<f64>)> {
    // A mean has one axis and a covariance is its own transpose: the order of axes makes no difference.
    let shape = file.shape().to_vec();
    let is_wide = file.dtype().descr() == "'<f8'";
    let values: Vec<f64> = match is_wide {
        true => file.into_vec()?,
        false => file.into_vec::<f32>()?.into_iter().map(f64::from).collect(),
    };
    Ok((shape, values))
}
