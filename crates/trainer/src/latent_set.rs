//! Latents with prompts on disk: pairs of noise and a teacher's latents, or encoded images.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use swiftbrush_checkpoint::{Archive, LazyTensor, read_json, sha256, write_json, write_tensors};

use crate::Error;
use crate::fingerprint::hex;

/// The contents of a [`LatentSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentKind {
    /// Noise, and the latents that a teacher generates from it.
    Pairs,
    /// Latents of real images.
    Images,
}

impl LatentKind {
    /// Number of latents in an entry.
    fn count(self) -> usize {
        match self {
            Self::Pairs => 2,
            Self::Images => 1,
        }
    }
}

/// The description of a set, `set.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    kind: LatentKind,
    /// Channels, height and width.
    latents: [usize; 3],
    /// Inputs and settings that the set was computed from.
    made_from: BTreeMap<String, String>,
    shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    file: String,
    count: usize,
    sha256: String,
}

const FORMAT: &str = "swiftbrush latents 1";
const MANIFEST: &str = "set.json";
/// The key of the prompts in a shard's metadata.
const PROMPTS: &str = "prompts";
/// Entries of a shard, 64 MiB of pairs at the size of Stable Diffusion.
const SHARD: usize = 1024;

/// A folder of latents in f16 with a prompt for each entry: `set.json` and safetensors files of 1024 entries
/// (`00000.safetensors`), each with a tensor per entry, `[2, channels, height, width]` for pairs (noise, then latents) and
/// `[1, channels, height, width]` for images, and the prompts as a JSON array in its metadata.
///
/// Files are mapped into memory. A [`LatentSetWriter`] writes such a folder.
#[derive(Debug)]
pub struct LatentSet {
    folder: PathBuf,
    manifest: Manifest,
    hash: String,
    shards: Vec<OpenShard>,
}

#[derive(Debug)]
struct OpenShard {
    archive: Archive,
    prompts: Vec<String>,
}

/// Entries of a [`LatentSet`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LatentBatch {
    /// The prompts.
    pub prompts: Vec<String>,
    /// Noise, `[batch, channels, height, width]`, unit normal, f32; only in pairs.
    pub noise: Option<Tensor<4>>,
    /// Scaled latents, `[batch, channels, height, width]`, f32.
    pub latents: Tensor<4>,
}

impl LatentSet {
    /// Opens a folder and checks that all shards are complete.
    ///
    /// # Errors
    ///
    /// If a file is missing, cannot be read, or does not match `set.json`, or there are no entries.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref().to_owned();
        let manifest = Manifest::read(&folder)?;
        let shards = manifest.shards.iter().map(|shard| {
            let path = folder.join(&shard.file);
            OpenShard::open(&path, shard, &manifest)
        });
        let shards = shards.collect::<Result<Vec<_>, Error>>()?;
        if shards.is_empty() {
            return Err(bad(
                &folder.join(MANIFEST),
                "there are no entries".to_owned(),
            ));
        }
        Ok(Self {
            hash: manifest.hash(),
            shards,
            manifest,
            folder,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The contents.
    pub fn kind(&self) -> LatentKind {
        self.manifest.kind
    }

    /// Channels, height and width of the latents.
    pub fn latents(&self) -> [usize; 3] {
        self.manifest.latents
    }

    /// Number of entries, at least 1.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.prompts.len()).sum()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A hash of all contents, saved with each snapshot.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Reads entries by their numbers.
    ///
    /// # Errors
    ///
    /// If a file cannot be read.
    ///
    /// # Panics
    ///
    /// If there are no numbers, or one is out of range.
    pub fn get(&self, entries: &[usize], device: &Device) -> Result<LatentBatch, Error> {
        let (mut prompts, mut tensors) = (Vec::new(), Vec::new());
        for &entry in entries {
            let (prompt, data) = self.entry(entry)?;
            prompts.push(prompt);
            tensors.push(Tensor::<4>::from_data(data.convert::<f32>(), device));
        }
        let part = |index| {
            let parts = tensors
                .iter()
                .map(|tensor| tensor.clone().narrow(0, index, 1));
            Tensor::cat(parts.collect(), 0)
        };
        Ok(match self.manifest.kind {
            LatentKind::Pairs => LatentBatch {
                prompts,
                noise: Some(part(0)),
                latents: part(1),
            },
            LatentKind::Images => LatentBatch {
                prompts,
                noise: None,
                latents: part(0),
            },
        })
    }

    fn entry(&self, mut number: usize) -> Result<(String, TensorData), Error> {
        for shard in &self.shards {
            if let Some(prompt) = shard.prompts.get(number) {
                return Ok((prompt.clone(), shard.archive.read(&name(number))?));
            }
            number -= shard.prompts.len();
        }
        panic!("the set has {} entries", self.len())
    }
}

impl OpenShard {
    fn open(path: &Path, shard: &Shard, manifest: &Manifest) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let text = archive.metadata().remove(PROMPTS).unwrap_or_default();
        let prompts: Vec<String> = serde_json::from_str(&text)
            .map_err(|error| bad(path, format!("{PROMPTS} in its metadata: {error}")))?;
        if prompts.len() != shard.count {
            let (expected, found) = (shard.count, prompts.len());
            return Err(bad(
                path,
                format!("expected {expected} prompts, found {found}"),
            ));
        }
        let [channels, height, width] = manifest.latents;
        let expected = [manifest.kind.count(), channels, height, width];
        for number in 0..shard.count {
            let (shape, dtype) = (archive.shape(&name(number))?, archive.dtype(&name(number))?);
            if shape != expected || dtype != DType::F16 {
                return Err(bad(
                    path,
                    format!(
                        "{}: expected {expected:?} in F16, found {shape:?} in {dtype:?}",
                        name(number)
                    ),
                ));
            }
        }
        Ok(Self { archive, prompts })
    }
}

impl Manifest {
    fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        let manifest: Self = read_json(&path)?;
        match manifest.format == FORMAT {
            true => Ok(manifest),
            false => Err(bad(
                &path,
                format!(
                    "expected the format {FORMAT:?}, found {:?}",
                    manifest.format
                ),
            )),
        }
    }

    /// SHA-256 of the description, which contains those of the shards.
    fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        let text = serde_json::to_string(self).expect("a description is plain data");
        hex(&Sha256::digest(text))
    }

    fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.count).sum()
    }
}

/// Writes a [`LatentSet`], shard by shard. A writer that was killed continues after its last complete shard.
#[derive(Debug)]
pub struct LatentSetWriter {
    folder: PathBuf,
    manifest: Manifest,
    prompts: Vec<String>,
    entries: Vec<TensorData>,
}

impl LatentSetWriter {
    /// Starts a set, or continues the one in `folder`. `made_from` lists inputs and settings by name.
    ///
    /// # Errors
    ///
    /// If the folder has a finished shard of a set with another kind, size or origin, or cannot be read.
    pub fn open(
        folder: impl AsRef<Path>,
        kind: LatentKind,
        latents: [usize; 3],
        made_from: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let folder = folder.as_ref().to_owned();
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            kind,
            latents,
            made_from,
            shards: Vec::new(),
        };
        let path = folder.join(MANIFEST);
        if path.is_file() {
            let found = Manifest::read(&folder)?;
            let same = (found.kind, found.latents) == (kind, latents);
            if !same || found.made_from != manifest.made_from {
                let reason = format!(
                    "it has {:?} of {:?} from {:?}, which cannot be continued with {kind:?} of {latents:?} from {:?}: \
                     choose another folder",
                    found.kind, found.latents, found.made_from, manifest.made_from
                );
                return Err(bad(&path, reason));
            }
            manifest = found;
        }
        Ok(Self {
            folder,
            manifest,
            prompts: Vec::new(),
            entries: Vec::new(),
        })
    }

    /// Number of entries so far.
    pub fn len(&self) -> usize {
        self.manifest.count() + self.entries.len()
    }

    /// Returns whether there are no entries yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an entry, and writes a shard if it is full.
    ///
    /// # Shapes
    ///
    /// - latents: `[2, channels, height, width]` for pairs, noise first; `[1, channels, height, width]` for images
    ///
    /// # Errors
    ///
    /// If a value is beyond the range of f16, or a shard cannot be written.
    ///
    /// # Panics
    ///
    /// If the shape differs.
    pub fn push(&mut self, prompt: String, latents: Tensor<4>) -> Result<(), Error> {
        let [channels, height, width] = self.manifest.latents;
        let expected = [self.manifest.kind.count(), channels, height, width];
        assert_eq!(latents.dims(), expected, "the shape of an entry");
        let data = swiftbrush_checkpoint::read(latents.cast(DType::F32)).convert_dtype(DType::F16);
        if !data.iter::<f32>().all(f32::is_finite) {
            let reason = format!("entry {} is not finite in f16", self.len());
            return Err(bad(&self.folder, reason));
        }
        self.prompts.push(prompt);
        self.entries.push(data);
        match self.entries.len() == SHARD {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Writes the last shard, and returns the number of entries.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<usize, Error> {
        if !self.entries.is_empty() {
            self.write()?;
        }
        Ok(self.len())
    }

    fn write(&mut self) -> Result<(), Error> {
        let file = format!("{:05}.safetensors", self.manifest.shards.len());
        let path = self.folder.join(&file);
        let entries = std::mem::take(&mut self.entries);
        let prompts = std::mem::take(&mut self.prompts);
        let count = entries.len();
        let text = serde_json::to_string(&prompts).expect("prompts are text");
        let tensors = entries.into_iter().enumerate();
        let tensors = tensors.map(|(number, data)| LazyTensor::ready(name(number), data));
        let metadata = HashMap::from([(PROMPTS.to_owned(), text)]);
        write_tensors(&path, tensors.collect(), metadata)?;
        self.manifest.shards.push(Shard {
            file,
            count,
            sha256: sha256(&path)?,
        });
        Ok(write_json(self.folder.join(MANIFEST), &self.manifest)?)
    }
}

/// The name of an entry in its shard.
fn name(number: usize) -> String {
    format!("{number:04}")
}

fn bad(path: &Path, reason: String) -> Error {
    Error::Latents {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, values};

    use super::*;

    fn made_from(model: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("model".to_owned(), model.to_owned())])
    }

    fn writer(folder: &Path) -> LatentSetWriter {
        LatentSetWriter::open(folder, LatentKind::Pairs, [1, 1, 2], made_from("a")).unwrap()
    }

    fn push(writer: &mut LatentSetWriter, range: std::ops::Range<usize>) {
        for number in range {
            let value = number as f32;
            let pair = [[[[value, 0.0]]], [[[-value, 0.5]]]];
            let pair = Tensor::<4>::from_data(pair, &device());
            writer.push(format!("prompt {number}"), pair).unwrap();
        }
    }

    #[test]
    fn entries_are_read_as_they_were_written_across_shards_and_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = writer(folder.path());
        push(&mut first, 0..SHARD + 3);
        // Killed: three entries are lost.
        drop(first);
        let mut second = writer(folder.path());
        assert_eq!(second.len(), SHARD);
        push(&mut second, SHARD..SHARD + 2);
        assert_eq!(second.finish().unwrap(), SHARD + 2);
        let set = LatentSet::open(folder.path()).unwrap();
        assert_eq!((set.len(), set.kind()), (SHARD + 2, LatentKind::Pairs));
        let batch = set.get(&[SHARD + 1, 7], &device()).unwrap();
        assert_eq!(batch.prompts, ["prompt 1025", "prompt 7"]);
        // 1025 is between two values of f16's 11 bits.
        assert_eq!(values(batch.noise.unwrap()), [1025.0, 0.0, 7.0, 0.0]);
        assert_eq!(values(batch.latents), [-1025.0, 0.5, -7.0, 0.5]);
    }

    #[test]
    fn a_set_of_other_origin_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = writer(folder.path());
        push(&mut first, 0..1);
        first.finish().unwrap();
        for (kind, model) in [(LatentKind::Images, "a"), (LatentKind::Pairs, "b")] {
            let error = LatentSetWriter::open(folder.path(), kind, [1, 1, 2], made_from(model));
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("set.json") && error.contains("another folder"),
                "{error}"
            );
        }
    }

    #[test]
    fn incomplete_sets_are_rejected_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = writer(folder.path());
        push(&mut first, 0..2);
        first.finish().unwrap();
        let path = folder.path().join(MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, expected) in [
            (
                "\"count\": 2",
                "\"count\": 3",
                "expected 3 prompts, found 2",
            ),
            ("latents 1", "latents 9", "expected the format"),
            ("\"pairs\"", "\"images\"", "expected [1, 1, 1, 2] in F16"),
            (
                "00000.safetensors",
                "00001.safetensors",
                "00001.safetensors",
            ),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}");
            std::fs::write(&path, changed).unwrap();
            let error = LatentSet::open(folder.path()).unwrap_err();
            let error = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(error.contains(expected), "{from}: {error}");
        }
        assert!(LatentSet::open(folder.path().join("none")).is_err());
        let infinite = Tensor::<4>::full([2, 1, 1, 2], 1e6, &device());
        let error = writer(&folder.path().join("new")).push(String::new(), infinite);
        assert!(error.unwrap_err().to_string().contains("f16"));
    }
}
