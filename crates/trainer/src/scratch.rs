//! Values in files that no process sees.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use swiftbrush_checkpoint::Error;

/// An unnamed temporary file to which values are appended. The system deletes it with the last [`Stored`] values.
#[derive(Debug)]
pub(crate) struct Scratch {
    file: Arc<Mutex<File>>,
    len: usize,
}

/// Values in a [`Scratch`] file; they never change.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    file: Arc<Mutex<File>>,
    first: usize,
    len: usize,
}

const SIZE: usize = size_of::<f32>();

impl Scratch {
    /// Creates a file in a folder.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub(crate) fn create(folder: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(folder).map_err(|cause| Error::write(folder, cause))?;
        Ok(Self {
            file: Arc::new(Mutex::new(file)),
            len: 0,
        })
    }

    /// Appends values.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub(crate) fn append(&mut self, values: &[f32], folder: &Path) -> Result<Stored, Error> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file
            .seek(SeekFrom::Start((self.len * SIZE) as u64))
            .and_then(|_| file.write_all(&bytes));
        written.map_err(|cause| Error::write(folder, cause))?;
        let first = self.len;
        self.len += values.len();
        Ok(Stored {
            file: self.file.clone(),
            first,
            len: values.len(),
        })
    }
}

impl Stored {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    ///
    /// If the file cannot be read.
    pub(crate) fn read(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.len * SIZE];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file
            .seek(SeekFrom::Start((self.first * SIZE) as u64))
            .and_then(|_| file.read_exact(&mut bytes));
        read.expect("a file that was written can be read");
        let (values, _) = bytes.as_chunks::<SIZE>();
        values
            .iter()
            .map(|&value| f32::from_ne_bytes(value))
            .collect()
    }
}
