//! Captions of Parquet files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;
use serde_json::json;
use swiftbrush_checkpoint::{abridged, write_atomically};

use super::caption::{KEYS, conversion};

/// Captions that are decoded at a time.
const BATCH: usize = 8192;

/// Returns the JSON Lines with the captions of a Parquet file, under the first of [`KEYS`].
///
/// They are written next to the file (`laion.parquet.caption.jsonl`), row group by row group, because a prompt at a random position
/// would cost the decoding of its whole row group. The copy has the modification time of the file; with another one it is written
/// again.
pub(crate) fn captions(path: &Path, key: Option<&str>) -> Result<PathBuf, String> {
    let io = |error: std::io::Error| error.to_string();
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let modified = metadata.modified().map_err(io)?;
    let unreadable = |error: ParquetError| {
        format!(
            "it cannot be read ({error}); convert it with: {}",
            conversion(path, key)
        )
    };
    let reader = SerializedFileReader::new(file).map_err(unreadable)?;
    let (column, name) = column(reader.metadata().file_metadata().schema_descr(), key)?;
    let copy = beside(path, &name);
    let found = std::fs::metadata(&copy).and_then(|metadata| metadata.modified());
    if found.is_ok_and(|found| found == modified) {
        return Ok(copy);
    }
    match write(&copy, &reader, column) {
        Ok(()) => {}
        Err(Failure::Io(error)) => return Err(error),
        Err(Failure::Parquet(error)) => return Err(unreadable(error)),
    }
    // Last, so that a copy whose writer was killed is out of date.
    let file = File::options().write(true).open(&copy);
    file.and_then(|file| file.set_modified(modified))
        .map_err(io)?;
    Ok(copy)
}

/// The path of the copy of a column.
fn beside(path: &Path, column: &str) -> PathBuf {
    let column = column.replace(['/', '\\'], "_");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{column}.jsonl"));
    name.into()
}

/// The index and name of the column of captions.
fn column(schema: &SchemaDescriptor, key: Option<&str>) -> Result<(usize, String), String> {
    let columns = schema.columns().iter().enumerate();
    let texts = columns.filter(|(_, column)| {
        let is_text = column.physical_type() == parquet::basic::Type::BYTE_ARRAY;
        // Neither in a list nor in a structure.
        is_text && column.max_rep_level() == 0 && column.path().parts().len() == 1
    });
    let texts: Vec<_> = texts
        .map(|(index, column)| (index, column.name().to_owned()))
        .collect();
    let expected = key.map_or(KEYS.to_vec(), |key| vec![key]);
    let mut found = texts
        .iter()
        .filter(|(_, name)| expected.contains(&name.as_str()));
    match (found.next(), found.next()) {
        (Some(column), None) => Ok(column.clone()),
        (None, _) => Err(format!(
            "expected a column of strings named {}, found {}; name the column of the captions",
            expected.join(" or "),
            abridged(texts.iter().map(|(_, name)| name))
        )),
        _ => Err(format!(
            "expected one of the columns {}, found several; name the column of the captions",
            expected.join(", ")
        )),
    }
}

/// The cause of a copy that is not written.
enum Failure {
    Io(String),
    Parquet(ParquetError),
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// Writes the copy of a column.
fn write(copy: &Path, reader: &SerializedFileReader<File>, column: usize) -> Result<(), Failure> {
    let mut failure = None;
    let written = write_atomically(copy, |file| {
        let file = &mut BufWriter::new(file);
        match write_column(reader, column, file) {
            Ok(()) => file.flush(),
            Err(error) => {
                failure = Some(error);
                Err(std::io::ErrorKind::InvalidData.into())
            }
        }
    });
    match failure {
        Some(failure) => Err(failure),
        None => written.map_err(|error| Failure::Io(error.to_string())),
    }
}

fn write_column(
    reader: &SerializedFileReader<File>,
    column: usize,
    file: &mut impl Write,
) -> Result<(), Failure> {
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let ColumnReader::ByteArrayColumnReader(mut captions) = group.get_column_reader(column)?
        else {
            unreachable!("the column has byte arrays");
        };
        while write_batch(&mut captions, file)? > 0 {}
    }
    Ok(())
}

/// Writes the next captions, and returns their number. Null is an empty caption, which is counted as a blank line; its place among
/// the others does not matter.
fn write_batch(
    captions: &mut ColumnReaderImpl<ByteArrayType>,
    file: &mut impl Write,
) -> Result<usize, Failure> {
    let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
    let (count, n_values, _) =
        captions.read_records(BATCH, Some(&mut levels), None, &mut values)?;
    let null = ByteArray::from("");
    for caption in values.iter().chain((n_values..count).map(|_| &null)) {
        let line = json!({ KEYS[0]: caption.as_utf8()? });
        writeln!(file, "{line}")?;
    }
    Ok(count)
}
