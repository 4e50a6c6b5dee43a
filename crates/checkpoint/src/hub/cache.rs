use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::name::{HubName, is_commit};
use crate::error::Error;
use crate::write::write_atomically;

/// The folder of one model in the cache.
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self {
            root: cache.join(&folder),
            locks: cache.join(".locks").join(&folder),
        }
    }

    /// The folder with the files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// A file of a commit, if it is complete.
    pub(super) fn file(&self, commit: &str, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(file);
        path.is_file().then_some(path)
    }

    /// The cached commit of a revision: the revision itself if it is a commit, else the one it last resolved to.
    pub(super) fn commit(&self, name: &HubName) -> Option<String> {
        let commit = match is_commit(&name.revision) {
            true => name.revision.clone(),
            false => fs::read_to_string(self.reference(&name.revision))
                .ok()?
                .trim()
                .to_owned(),
        };
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Stores the commit of a branch or tag.
    pub(super) fn set_commit(&self, name: &HubName, commit: &str) -> Result<(), Error> {
        let path = self.reference(&name.revision);
        let is_known = || fs::read_to_string(&path).is_ok_and(|known| known == commit);
        // Keeps a read-only cache usable as long as nothing changes.
        if name.revision == commit || is_known() {
            return Ok(());
        }
        write_atomically(&path, |file| file.write_all(commit.as_bytes()))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Takes the lock of a blob, which is released when the file is closed; `None` if another thread or process holds it.
    pub(super) fn try_lock(&self, etag: &str) -> io::Result<Option<File>> {
        fs::create_dir_all(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        loop {
            let mut options = File::options();
            let lock = options
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            match lock.try_lock() {
                Ok(()) if is_linked(&lock)? => return Ok(Some(lock)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Adds a blob to the files of a commit, as a relative symlink or else as a copy.
    pub(super) fn link(
        &self,
        etag: &str,
        commit: &str,
        file: &str,
        symlinks: bool,
    ) -> Result<PathBuf, Error> {
        let path = self.snapshot(commit).join(file);
        let failed = |error| Error::write(&path, error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // Removes a dangling link whose blob was deleted.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(failed)?;
        }
        let mut target = PathBuf::from("../..");
        target.extend(file.split('/').skip(1).map(|_| ".."));
        let target = target.join("blobs").join(etag);
        match symlinks && symlink(&target, &path).is_ok() {
            true => Ok(path),
            false => copy(&self.blob(etag), &path).map(|()| path.clone()),
        }
    }
}

/// Returns whether a file still has a name. Other clients delete lock files, and a deleted lock file locks nothing.
#[cfg(unix)]
fn is_linked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}

#[cfg(not(unix))]
fn is_linked(_: &File) -> io::Result<bool> {
    Ok(true)
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Fails on Windows unless developer mode is on.
#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(|error| Error::read(from, error))?;
    write_atomically(to, |file| io::copy(&mut source, file).map(|_| ()))
}

/// Deletes a file if it exists.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::write(path, error)),
        _ => Ok(()),
    }
}

/// The length of a file; 0 if it does not exist.
pub(super) fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
