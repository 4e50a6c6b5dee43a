use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use faer::Mat;
use npyz::{NpyFile, WriterBuilder};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::{Error, Gaussian};

/// Tolerated asymmetry of a covariance, relative to its largest variance.
const ASYMMETRY: f64 = 1e-6;

/// A stored mean and covariance, with the network whose features they describe.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Mean and covariance.
    pub gaussian: Gaussian,
    /// Name of the feature network; `None` in files of other programs, which do not record it.
    pub network: Option<String>,
}

impl Statistics {
    /// Reads `mu` and `sigma` of an `.npz` file, as pytorch-fid and clean-fid write them, and `network` if there is one.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, lacks one of the two, or they are not a finite mean and a symmetric covariance.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bad = |reason: String| Error::Statistics {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|cause| Error::Io {
            action: "read",
            path: path.to_owned(),
            cause,
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
            return Err(bad(format!(
                "expected mu of shape [width] and sigma of shape [width, width], found {shape:?} and {square:?}"
            )));
        }
        let covariance = Mat::from_fn(width, width, |i, j| covariance[i * width + j]);
        let network = network(&mut archive).map_err(|error| bad(format!("network: {error}")))?;
        let gaussian = Gaussian { mean, covariance };
        check(&gaussian).map_err(bad)?;
        Ok(Self { gaussian, network })
    }

    /// Writes `mu`, `sigma` and `network` (UTF-8 bytes, which other programs ignore) in the format of pytorch-fid and clean-fid.
    /// An existing file is replaced once the new one is complete.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or its values are not a finite mean and a symmetric covariance, which [`open`](Self::open)
    /// rejects.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        check(&self.gaussian).map_err(|reason| Error::Statistics {
            path: path.to_owned(),
            reason,
        })?;
        let Gaussian { mean, covariance } = &self.gaussian;
        let width = mean.len();
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
            array(&mut file, &[n], mean.iter().copied())?;
            file.start_file("sigma.npy", options)?;
            array(&mut file, &[n, n], rows.map(|at| covariance[at]))?;
            if let Some(network) = &self.network {
                file.start_file("network.npy", options)?;
                array(&mut file, &[network.len() as u64], network.bytes())?;
            }
            file.finish()?;
            temporary.as_file().sync_all()?;
            temporary.persist(path).map_err(|error| error.error)
        };
        write().map(drop).map_err(|cause| Error::Io {
            action: "write",
            path: path.to_owned(),
            cause,
        })
    }
}

/// Checks that the values are finite and the covariance is square, as wide as the mean, and symmetric.
fn check(gaussian: &Gaussian) -> Result<(), String> {
    let Gaussian { mean, covariance } = gaussian;
    let width = mean.len();
    let square = (covariance.nrows(), covariance.ncols());
    if square != (width, width) {
        return Err(format!(
            "expected a covariance of {width}×{width}, found {}×{}",
            square.0, square.1
        ));
    }
    let at = |i: usize| (0..width).map(move |j| (i, j));
    let mut values = (0..width).flat_map(at).map(|at| covariance[at]);
    if !mean.iter().all(|value| value.is_finite()) || !values.all(f64::is_finite) {
        return Err("a value is NaN or infinite".to_owned());
    }
    let largest = (0..width).map(|i| covariance[(i, i)]).fold(0.0, f64::max);
    let pairs = (0..width).flat_map(|i| (0..i).map(move |j| (i, j)));
    let apart = pairs.map(|(i, j)| (covariance[(i, j)] - covariance[(j, i)]).abs());
    match apart.fold(0.0, f64::max) > ASYMMETRY * largest {
        true => Err("sigma is not symmetric".to_owned()),
        false => Ok(()),
    }
}

fn array(
    file: &mut impl Write,
    shape: &[u64],
    values: impl Iterator<Item = impl npyz::AutoSerialize>,
) -> io::Result<()> {
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(file).begin_nd()?;
    writer.extend(values)?;
    writer.finish()
}

fn network<R: Read + io::Seek>(archive: &mut ZipArchive<R>) -> io::Result<Option<String>> {
    match archive.by_name("network.npy") {
        Ok(file) => {
            let name = String::from_utf8(NpyFile::new(file)?.into_vec::<u8>()?);
            Ok(Some(name.map_err(io::Error::other)?))
        }
        Err(zip::result::ZipError::FileNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads the shape and values of an array of f64 or f32.
fn numbers<R: Read>(file: NpyFile<R>) -> io::Result<(Vec<u64>, Vec<f64>)> {
    // A mean has one axis and a covariance is symmetric: row-major and column-major order agree.
    let shape = file.shape().to_vec();
    let is_wide = file.dtype().descr() == "'<f8'";
    let values: Vec<f64> = match is_wide {
        true => file.into_vec()?,
        false => file.into_vec::<f32>()?.into_iter().map(f64::from).collect(),
    };
    Ok((shape, values))
}
