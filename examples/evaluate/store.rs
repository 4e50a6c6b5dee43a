//! What networks have seen, on disk: a file for each batch while a run lasts, one file when it is done.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{DType, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use swiftbrush_checkpoint::{Archive, LazyTensor, write_tensors};
use swiftbrush_evaluator::{Seen, differences};
use swiftbrush_metrics::Features;

use crate::pictures::Pictures;
use crate::Plan;

/// Looks at pictures.
pub(crate) struct Seer<'a> {
    pub(crate) plan: &'a Plan,
    /// Pictures looked at in one go.
    pub(crate) batch: usize,
    /// Where the pictures are written to, if they are.
    pub(crate) keep: Option<PathBuf>,
    /// Whether to end after the current batch.
    pub(crate) stop: &'a AtomicBool,
}

/// What was seen in a set of pictures.
pub(crate) struct Found {
    pub(crate) seen: Seen,
    /// Hash of the hashes of all pictures.
    pub(crate) hash: String,
    pub(crate) count: usize,
}

impl Seer<'_> {
    /// Looks at all pictures, or goes on where an earlier run was. What is seen is in `<place>.safetensors` in the end.
    pub(crate) fn see(&self, pictures: &Pictures, place: &Path) -> Result<Found> {
        let whole = place.with_extension("safetensors");
        if whole.is_file() {
            return self.open(&whole);
        }
        let parts = place.with_extension("parts");
        for folder in [Some(&parts), self.keep.as_ref()].into_iter().flatten() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let part = |index: usize| parts.join(format!("{index:06}.safetensors"));
        let bar = ProgressBar::new(pictures.len() as u64);
        let template = "{msg} {bar:30} {pos} of {len} pictures, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()),
        );
        bar.set_message(
            place
                .file_name()
                .map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        );
        let numbers: Vec<_> = (0..pictures.len()).collect();
        let batches = numbers.chunks(self.batch);
        let done = batches
            .clone()
            .enumerate()
            .take_while(|(index, _)| part(*index).is_file());
        let done = done.count();
        bar.inc((done * self.batch) as u64);
        bar.reset_eta();
        for (index, numbers) in batches.clone().enumerate().skip(done) {
            if self.stop.load(Ordering::Relaxed) {
                bar.abandon();
                bail!(
                    "stopped after {} of {} pictures; the same command goes on from there",
                    index * self.batch,
                    pictures.len()
                );
            }
            self.look(pictures, numbers, &part(index))?;
            bar.inc(numbers.len() as u64);
        }
        bar.finish_and_clear();

        let mut seen = Seen::new();
        let mut hashes = Vec::new();
        for index in 0..batches.len() {
            let (features, of_part) = read(&part(index))?;
            for (name, features) in features {
                match seen.get_mut(&name) {
                    Some(all) => Features::append(all, &features)?,
                    None => drop(seen.insert(name, features)),
                }
            }
            hashes.push(of_part);
        }
        let metadata = HashMap::from([
            ("conditions".to_owned(), self.conditions().to_string()),
            ("hashes".to_owned(), hashes.join(" ")),
        ]);
        write(&whole, &seen, metadata)?;
        std::fs::remove_dir_all(&parts)?;
        self.open(&whole)
    }

    /// What an earlier run has seen, if it looked with the same networks in the same way.
    pub(crate) fn open(&self, path: &Path) -> Result<Found> {
        let metadata = Archive::open(path)?.metadata();
        let before = metadata.get("conditions").with_context(|| {
            format!(
                "{} is not what a run of this program has seen",
                path.display()
            )
        })?;
        let before: Json =
            serde_json::from_str(before).with_context(|| path.display().to_string())?;
        // Other networks may have looked as well.
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
            "{} was seen in another way:\n{}",
            path.display(),
            found.join("\n")
        );
        let (mut seen, hashes) = read(path)?;
        for network in self.plan.protocol.networks() {
            ensure!(
                seen.contains_key(network),
                "{} has nothing of {network}",
                path.display()
            );
        }
        let count = hashes.split(' ').count();
        let wrong = seen.values().find(|features| features.len() != count);
        ensure!(wrong.is_none(), "{} is damaged", path.display());
        seen.retain(|_, features| !features.is_empty());
        Ok(Found {
            seen,
            hash: hash_of(hashes.replace(' ', "").as_bytes()),
            count,
        })
    }

    /// All that what is seen depends on besides the pictures.
    fn conditions(&self) -> Json {
        let weights: BTreeMap<_, _> = self
            .plan
            .hashes
            .iter()
            .filter(|(name, _)| *name != "prompts")
            .collect();
        json!({ "pictures": self.plan.protocol.pictures, "weights": weights })
    }

    fn look(&self, pictures: &Pictures, numbers: &[usize], part: &Path) -> Result<()> {
        let (mut prepared, mut hashes) = (Vec::new(), Vec::new());
        for (picture, hash) in pictures.get(numbers)? {
            prepared.push(self.plan.protocol.pictures.apply(picture));
            hashes.push(hash);
        }
        if let Some(folder) = &self.keep {
            for (number, picture) in numbers.iter().zip(&prepared) {
                examples_common::write_png(picture, &folder.join(format!("{number:06}.png")))?;
            }
        }
        let prompts = pictures
            .prompts()
            .map(|prompts| &prompts[numbers[0]..numbers[0] + numbers.len()]);
        let seen = self
            .plan
            .networks
            .look(&self.plan.protocol, &prepared, prompts)?;
        write(
            part,
            &seen,
            HashMap::from([("hashes".to_owned(), hashes.join(" "))]),
        )
    }
}

fn write(path: &Path, seen: &Seen, metadata: HashMap<String, String>) -> Result<()> {
    let tensors = seen.iter().map(|(name, features)| {
        let shape = [features.len(), features.width()];
        LazyTensor {
            name: name.clone(),
            shape: shape.to_vec(),
            dtype: DType::F32,
            data: Box::new(move || TensorData::new(features.values().to_vec(), shape)),
        }
    });
    Ok(write_tensors(path, tensors.collect(), metadata)?)
}

/// What was seen, and the hashes of the pictures.
fn read(path: &Path) -> Result<(Seen, String)> {
    let archive = Archive::open(path)?;
    let mut seen = Seen::new();
    for name in archive.names() {
        let data = archive.read(&name)?;
        let shape = data.shape().to_vec();
        ensure!(
            shape.len() == 2 && shape[1] > 0,
            "{}: {name} has no rows",
            path.display()
        );
        let features = Features::new(shape[1], data.iter::<f32>().collect());
        seen.insert(name, features.with_context(|| path.display().to_string())?);
    }
    let hashes = archive.metadata().remove("hashes");
    let hashes = hashes.ok_or_else(|| {
        anyhow!(
            "{} is not what a run of this program has seen",
            path.display()
        )
    })?;
    Ok((seen, hashes))
}

/// SHA-256 of bytes, as hexadecimal digits.
pub(crate) fn hash_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
