//! The folder of a run's snapshots.

use std::path::{Path, PathBuf};

use swiftbrush_checkpoint::Error as FileError;

use crate::{Error, Recipe};

/// The path of the snapshot at a step of the run in `folder`: `snapshots/step-00000500.safetensors`.
pub fn snapshot_path(folder: impl AsRef<Path>, step: u64) -> PathBuf {
    let folder = folder.as_ref();
    folder
        .join(SNAPSHOTS)
        .join(format!("{PREFIX}{step:08}{SUFFIX}"))
}

/// Name of the folder of snapshots.
pub(crate) const SNAPSHOTS: &str = "snapshots";
const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";

/// Steps of all snapshots of the run in `folder`, in ascending order.
///
/// # Errors
///
/// If the folder cannot be read, or contains a snapshot of an earlier version.
pub fn snapshot_steps(folder: impl AsRef<Path>) -> Result<Vec<u64>, Error> {
    let folder = folder.as_ref();
    let old = folder.join("snapshot.safetensors");
    if old.is_file() {
        return Err(Error::Snapshot {
            path: old,
            reason:
                "it was written by an earlier version, which kept one snapshot: finish the run \
                     with that version, or start again in another folder"
                    .to_owned(),
        });
    }
    let names = names(folder)?;
    let mut steps: Vec<u64> = names
        .iter()
        .filter_map(|name| {
            name.strip_prefix(PREFIX)?
                .strip_suffix(SUFFIX)?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let path = folder.join(SNAPSHOTS);
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let io = |cause| FileError::read(&path, cause);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Removes the snapshots that a recipe does not keep.
pub(crate) fn remove_old(folder: &Path, recipe: &Recipe) -> Result<(), Error> {
    let steps = snapshot_steps(folder)?;
    let n_old = steps.len().saturating_sub(recipe.keep_last);
    let is_kept =
        |step: &u64| recipe.keep_every > 0 && *step > 0 && step.is_multiple_of(recipe.keep_every);
    for step in steps[..n_old].iter().filter(|step| !is_kept(step)) {
        remove(&snapshot_path(folder, *step))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = std::fs::remove_file(path);
    Ok(removed.map_err(|cause| FileError::write(path, cause))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_snapshots_and_every_nth_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::create_dir(folder.join("snapshots")).unwrap();
        let mut recipe = Recipe::full();
        (recipe.keep_last, recipe.keep_every) = (2, 6);
        for step in [2, 4, 6, 8, 10, 12, 14] {
            std::fs::write(snapshot_path(folder, step), "").unwrap();
            remove_old(folder, &recipe).unwrap();
        }
        assert_eq!(snapshot_steps(folder).unwrap(), [6, 12, 14]);
        recipe.keep_every = 0;
        remove_old(folder, &recipe).unwrap();
        assert_eq!(snapshot_steps(folder).unwrap(), [12, 14]);
    }

    #[test]
    fn a_snapshot_of_an_earlier_version_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("snapshot.safetensors"), "").unwrap();
        let error = snapshot_steps(folder.path()).unwrap_err().to_string();
        assert!(error.contains("earlier version"), "{error}");
    }
}
