use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::edit::{AutomaticMask, Options};
use crate::record::MAX_FILE;
use crate::source::hash_of;
use crate::{Error, Method};

/// A file that an image was generated from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The file.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
}

impl FileRecord {
    /// Hashes a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not a regular file, or is larger than 256 MiB.
    pub fn of_file(file: impl AsRef<Path>) -> Result<Self, Error> {
        let file = file.as_ref().to_owned();
        let sha256 = hash_of(&file, MAX_FILE)?;
        Ok(Self { file, sha256 })
    }

    /// Checks that the file is still the same.
    ///
    /// # Errors
    ///
    /// If it is not; otherwise same as [`of_file`](Self::of_file).
    pub fn check_file(&self) -> Result<(), Error> {
        let found = hash_of(&self.file, MAX_FILE)?;
        if found == self.sha256 {
            return Ok(());
        }
        Err(Error::Picture {
            path: self.file.clone(),
            reason: format!("expected SHA-256 {}, found {found}", self.sha256),
        })
    }
}

/// The edit that produced an image from another one. The record's prompt is that of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EditRecord {
    /// The edited image.
    pub image: FileRecord,
    /// Prompt of the edited image.
    pub source_prompt: String,
    /// Times, step and refinement.
    pub options: Options,
    /// The automatic mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic_mask: Option<AutomaticMask>,
    /// The given mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<FileRecord>,
}

impl EditRecord {
    /// Checks values that come from a file.
    pub(super) fn check(&self, method: Method) -> Result<(), Error> {
        self.options.check()?;
        if let Some(automatic) = &self.automatic_mask {
            automatic.check()?;
        }
        if self.automatic_mask.is_some() && self.mask.is_some() {
            let text = "an edit with an automatic and a given mask; expected only one of them";
            return Err(Error::Request(text.to_owned()));
        }
        crate::edit::check_calls(method)
    }
}

/// The interpolation of two denoisers that an image was generated with, λ·A + (1−λ)·B. A is the denoiser of the record's
/// source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterpolationRecord {
    /// Weight of A, λ.
    pub lambda: f64,
    /// Folder or weight file of B.
    pub other: PathBuf,
    /// SHA-256 of every file of B's weights, by name; may be empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
}

/// The other end of an animation, and the place of an image in it. The record's own prompt and seed are the first end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BetweenRecord {
    /// Prompt of the last image.
    pub prompt: String,
    /// Seed of the last image's noise.
    pub seed: u64,
    /// Share of the last image in this one, 0 to 1.
    pub share: f64,
}
