//! Features on disk: one file per batch during a run, and a single file afterwards.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use swiftbrush_checkpoint::{Archive, LazyTensor, write_tensors};
use swiftbrush_evaluator::{FeatureSets, differences};
use swiftbrush_metrics::Features;

use crate::Plan;
use crate::pictures::{Changes, Pictures};

/// The role of a set of pictures in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Generated,
    Reference,
}

/// Extracts features of pictures.
pub(crate) struct Extractor<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) role: Role,
    /// Pictures in a batch.
    pub(crate) batch: usize,
    /// Folder that prepared pictures are written to, if any.
    pub(crate) keep: Option<PathBuf>,
    /// Ends the run after the current batch.
    pub(crate) stop: &'a AtomicBool,
}

/// Features of a set of pictures.
pub(crate) struct Extracted {
    pub(crate) features: FeatureSets,
    /// Hash of each picture.
    pub(crate) hashes: Vec<String>,
    pub(crate) changes: Changes,
}

impl Extracted {
    pub(crate) fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Hash of the whole set.
    pub(crate) fn hash(&self) -> String {
        hash_of(self.hashes.concat().as_bytes())
    }
}

impl Extractor<'_> {
    /// Extracts the features of all pictures, resuming if possible. They are stored in `<place>.safetensors` and reused as long as
    /// the files have the same content.
    pub(crate) fn extract(&self, pictures: &Pictures, place: &Path) -> Result<Extracted> {
        let whole = place.with_extension("safetensors");
        if let Some(folder) = &self.keep
            && !folder.is_dir()
            && (whole.is_file() || place.with_extension("parts").is_dir())
        {
            bail!(
                "{}: its pictures were measured without --keep; choose another --output to keep them",
                place.display()
            );
        }
        let indices: Vec<_> = (0..pictures.len()).collect();
        if whole.is_file() {
            let found = self.open(&whole)?;
            same_files(pictures, &indices, &found.hashes, &whole)?;
            return Ok(found);
        }
        let parts = self.extract_parts(pictures, &indices, place)?;
        let mut all = read(&parts.path(0))?;
        for index in 1..parts.count {
            let part = read(&parts.path(index))?;
            for (name, features) in &part.features {
                let set = all.features.get_mut(name);
                let set = set.with_context(|| format!("{} is damaged", parts.path(0).display()))?;
                set.append(features)?;
            }
            all.hashes.extend(part.hashes);
            all.changes += part.changes;
        }
        write(&whole, &all, Some(self.conditions()))?;
        std::fs::remove_dir_all(&parts.folder)?;
        self.open(&whole)
    }

    /// Writes a file for each batch without one.
    fn extract_parts(&self, pictures: &Pictures, indices: &[usize], place: &Path) -> Result<Parts> {
        let batches = indices.chunks(self.batch);
        let parts = Parts {
            folder: place.with_extension("parts"),
            count: batches.len(),
        };
        for folder in [Some(&parts.folder), self.keep.as_ref()]
            .into_iter()
            .flatten()
        {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let bar = bar(pictures.len(), place);
        let done = (0..parts.count).take_while(|index| parts.path(*index).is_file());
        let done = done.count();
        for (index, indices) in batches.clone().enumerate().take(done) {
            let path = parts.path(index);
            same_files(pictures, indices, &read(&path)?.hashes, &path)?;
            bar.inc(indices.len() as u64);
        }
        bar.reset_eta();
        for (index, indices) in batches.enumerate().skip(done) {
            if self.stop.load(Ordering::Relaxed) {
                bar.abandon();
                bail!(
                    "stopped after {} of {} pictures; run the same command to continue",
                    index * self.batch,
                    pictures.len()
                );
            }
            self.extract_batch(pictures, indices, &parts.path(index))?;
            bar.inc(indices.len() as u64);
        }
        bar.finish_and_clear();
        Ok(parts)
    }

    fn extract_batch(&self, pictures: &Pictures, indices: &[usize], part: &Path) -> Result<()> {
        let Plan {
            protocol, networks, ..
        } = self.plan;
        let (mut prepared, mut hashes, mut changes) = (Vec::new(), Vec::new(), Changes::default());
        for subject in pictures.get(indices)? {
            prepared.push(protocol.pictures.apply(subject.image));
            hashes.push(subject.hash);
            changes += subject.changes;
        }
        if let Some(folder) = &self.keep {
            for (index, picture) in indices.iter().zip(&prepared) {
                examples_common::write_png(picture, &folder.join(format!("{index:06}.png")))?;
            }
        }
        let prompts = pictures
            .prompts()
            .map(|prompts| &prompts[indices[0]..indices[0] + indices.len()]);
        let features = match self.role {
            Role::Generated => networks.extract(protocol, &prepared, prompts)?,
            Role::Reference => networks.extract_reference(protocol, &prepared)?,
        };
        let extracted = Extracted {
            features,
            hashes,
            changes,
        };
        write(part, &extracted, None)
    }

    /// Opens the features of an earlier run, if it used the same networks in the same way.
    pub(crate) fn open(&self, path: &Path) -> Result<Extracted> {
        let metadata = Archive::open(path)?.metadata();
        let before = metadata.get("conditions");
        let before =
            before.with_context(|| format!("{} has no features of a run", path.display()))?;
        let before: Json =
            serde_json::from_str(before).with_context(|| path.display().to_string())?;
        // The earlier run may have used more networks.
        let mut conditions = self.conditions();
        let weights = |of: &Json| of["weights"].as_object().cloned().unwrap_or_default();
        let mut needed = weights(&conditions);
        for (name, hash) in weights(&before) {
            needed.entry(name).or_insert(hash);
        }
        conditions["weights"] = needed.into();
        let found = differences(&before, &conditions);
        ensure!(
            found.is_empty(),
            "{} was computed under different conditions:\n{}",
            path.display(),
            found.join("\n")
        );
        let mut extracted = read(path)?;
        for network in self.networks() {
            ensure!(
                extracted.features.contains_key(network),
                "{} has no features of {network}",
                path.display()
            );
        }
        let count = extracted.count();
        let mut sets = extracted.features.values();
        let is_whole = sets.all(|features| features.len() == count);
        ensure!(is_whole, "{} is damaged", path.display());
        extracted
            .features
            .retain(|_, features| !features.is_empty());
        Ok(extracted)
    }

    fn networks(&self) -> Vec<&str> {
        let protocol = &self.plan.protocol;
        let networks = match self.role {
            Role::Generated => protocol.networks(),
            Role::Reference => protocol.reference_networks(),
        };
        networks.into_iter().collect()
    }

    /// Everything that features depend on besides the pictures.
    fn conditions(&self) -> Json {
        let bases = self.networks().into_iter().map(crate::base);
        let weights: BTreeMap<_, _> = bases
            .filter_map(|base| Some((base, self.plan.hashes.get(base)?)))
            .collect();
        let protocol = &self.plan.protocol;
        json!({
            "pictures": protocol.pictures,
            "orientation": protocol.orientation,
            "weights": weights,
        })
    }
}

/// Files of a run in progress.
struct Parts {
    folder: PathBuf,
    count: usize,
}

impl Parts {
    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:06}.safetensors"))
    }
}

fn bar(count: usize, place: &Path) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    let template = "{msg} {bar:30} {pos} of {len} pictures, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    let name = place.file_name().unwrap_or_default();
    bar.set_message(name.to_string_lossy().into_owned());
    bar
}

/// Checks that the content of files has not changed since their features were stored.
fn same_files(
    pictures: &Pictures,
    indices: &[usize],
    stored: &[String],
    path: &Path,
) -> Result<()> {
    let Some(now) = pictures.hashes(indices)? else {
        return Ok(());
    };
    ensure!(
        stored.len() == now.len(),
        "{} has features of {} pictures, but the folder has {}: remove it, or choose another --output",
        path.display(),
        stored.len(),
        now.len()
    );
    let mut pairs = stored.iter().zip(&now).zip(indices);
    if let Some((_, &index)) = pairs.find(|((stored, now), _)| stored != now) {
        bail!(
            "{} has features of other pictures, beginning with {}: remove it, or choose another --output",
            path.display(),
            pictures.label(index)
        );
    }
    Ok(())
}

fn write(path: &Path, extracted: &Extracted, conditions: Option<Json>) -> Result<()> {
    let tensors = extracted.features.iter().map(|(name, features)| {
        let shape = [features.len(), features.width()];
        LazyTensor::new(name.clone(), shape, DType::F32, move || {
            Ok(TensorData::new(features.values().to_vec(), shape))
        })
    });
    let mut metadata = HashMap::from([
        ("hashes".to_owned(), extracted.hashes.join(" ")),
        (
            "changes".to_owned(),
            serde_json::to_string(&extracted.changes)?,
        ),
    ]);
    if let Some(conditions) = conditions {
        metadata.insert("conditions".to_owned(), conditions.to_string());
    }
    Ok(write_tensors(path, tensors.collect(), metadata)?)
}

fn read(path: &Path) -> Result<Extracted> {
    let archive = Archive::open(path)?;
    let mut sets = FeatureSets::new();
    for name in archive.names() {
        let data = archive.read(&name)?;
        let shape = data.shape().to_vec();
        ensure!(
            shape.len() == 2 && shape[1] > 0,
            "{}: expected {name} of shape [pictures, features], found {shape:?}",
            path.display()
        );
        let features = Features::new(shape[1], data.iter::<f32>().collect());
        sets.insert(name, features.with_context(|| path.display().to_string())?);
    }
    let metadata = archive.metadata();
    let hashes = metadata.get("hashes");
    let hashes = hashes.with_context(|| format!("{} has no features of a run", path.display()))?;
    let changes = metadata.get("changes");
    let changes = changes.map(|changes| serde_json::from_str(changes));
    Ok(Extracted {
        features: sets,
        hashes: hashes.split(' ').map(str::to_owned).collect(),
        changes: changes.transpose()?.unwrap_or_default(),
    })
}

/// SHA-256 in hexadecimal.
pub(crate) fn hash_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
