use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};
use ureq::http::StatusCode;

use super::cache::{Repository, len, remove};
use super::client::{Client, Contents, Failure};
use super::error::HubError;
use super::event::{Download, Event, Watch, send};
use super::options::Hub;
use super::session::{TICK, pause};
use crate::error::Error;
use crate::write::sha256;

/// Number of bytes between two events.
const BUFFER_LEN: usize = 1 << 17;
/// Number of hexadecimal digits of a SHA-256 (the ETag of large files) and of a SHA-1 (the ETag of files in git).
const SHA256_LEN: usize = 64;
const SHA1_LEN: usize = 40;

/// The download of one file into the cache.
pub(super) struct Transfer<'a, 'w> {
    pub(super) hub: &'a Hub,
    pub(super) client: &'a Client,
    pub(super) repository: &'a Repository,
    pub(super) id: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    /// Name of the blob.
    pub(super) etag: String,
    /// Number of bytes, once the server has reported it.
    pub(super) size: Option<u64>,
    pub(super) watch: &'a mut Watch<'w>,
}

impl Transfer<'_, '_> {
    /// Downloads the blob unless it is cached, and links it into the snapshot.
    pub(super) fn run(mut self) -> Result<PathBuf, Error> {
        let _lock = self.lock()?;
        // Another process may have finished the download in the meantime.
        if let Some(path) = self.repository.file(self.commit, self.file) {
            return Ok(path);
        }
        if !self.has_blob()? {
            self.download()?;
            self.verify()?;
            let blob = self.repository.blob(&self.etag);
            let incomplete = self.repository.incomplete(&self.etag);
            fs::rename(incomplete, &blob).map_err(|error| Error::write(&blob, error))?;
        }
        self.repository
            .link(&self.etag, self.commit, self.file, self.hub.symlinks)
    }

    /// Waits for the blob's lock; `None` on file systems without locks.
    fn lock(&mut self) -> Result<Option<File>, Error> {
        loop {
            match self.repository.try_lock(&self.etag) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Ok(None) => {
                    self.send(Event::Waiting {
                        file: self.file.to_owned(),
                    })?;
                    std::thread::sleep(TICK);
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    self.send(Event::Warning(format!(
                        "{}: the file system has no locks; do not let two processes download at once",
                        self.hub.cache.display()
                    )))?;
                    return Ok(None);
                }
                Err(error) => return Err(Error::write(&self.hub.cache, error)),
            }
        }
    }

    /// Returns whether the blob is cached with its full length.
    fn has_blob(&mut self) -> Result<bool, Error> {
        let blob = self.repository.blob(&self.etag);
        let found = match fs::metadata(&blob) {
            Ok(metadata) => metadata.len(),
            Err(_) => return Ok(false),
        };
        match self.size {
            Some(size) if size != found => {
                self.send(Event::Warning(format!(
                    "{} is damaged and will be downloaded again: expected {size} bytes, found {found}",
                    blob.display()
                )))?;
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    /// Downloads into the incomplete file, resuming after failures.
    fn download(&mut self) -> Result<(), Error> {
        let path = self.repository.incomplete(&self.etag);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| Error::write(folder, error))?;
        }
        let mut failures = 0;
        loop {
            let before = len(&path);
            let (reason, wait) = match self.attempt(&path) {
                Ok(()) => return Ok(()),
                Err(Failure::Transient(reason, wait)) => (reason, wait),
                Err(failure) => return Err(self.fatal(failure)),
            };
            // Only consecutive failures without any new byte count.
            failures = if len(&path) > before { 1 } else { failures + 1 };
            if failures > self.hub.retries {
                let file = self.file.to_owned();
                return Err(HubError::Interrupted { file, reason }.of(self.id));
            }
            let paused = pause(failures, wait, self.file, &reason, self.watch);
            paused.map_err(|error| error.of(self.id))?;
        }
    }

    /// Requests the missing bytes once.
    fn attempt(&mut self, path: &Path) -> Result<(), Failure> {
        let start = match (len(path), self.size) {
            // An empty file must still be created.
            (len, Some(size)) if len == size && len > 0 => return Ok(()),
            (len, Some(size)) if len > size => 0,
            (len, _) => len,
        };
        let contents = self.client.contents(self.id, self.commit, self.file, start);
        let contents = contents.map_err(|failure| match failure {
            Failure::Status(StatusCode::RANGE_NOT_SATISFIABLE, _) => match remove(path) {
                Ok(()) => Failure::Transient(format!("the server has no byte {start}"), None),
                Err(error) => Failure::Other(error),
            },
            failure => failure,
        })?;
        let size = match (self.size, contents.size) {
            (Some(expected), Some(found)) if expected != found => {
                return Err(self.damaged(path, bytes(expected), bytes(found)));
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => {
                let reason = format!("{} was sent without its length", self.file);
                return Err(Failure::Answer(reason));
            }
        };
        self.size = Some(size);
        self.receive(contents, size, path)
    }

    /// Appends the contents to the bytes already on disk.
    fn receive(&mut self, mut contents: Contents, size: u64, path: &Path) -> Result<(), Failure> {
        let written = |error| Failure::Other(Error::write(path, error));
        let mut options = File::options();
        let options = match contents.start {
            0 => options.write(true).create(true).truncate(true),
            _ => options.append(true),
        };
        let mut file = options.open(path).map_err(written)?;
        let mut done = contents.start;
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let count = match contents.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Transient(error.to_string(), None)),
            };
            done += count as u64;
            if done > size {
                return Err(self.damaged(path, bytes(size), "more".to_owned()));
            }
            file.write_all(&buffer[..count]).map_err(written)?;
            let file = self.file.to_owned();
            let event = Event::Progress(Download { file, done, size });
            send(self.watch, event).map_err(Failure::Hub)?;
        }
        file.sync_all().map_err(written)?;
        if done < size {
            let reason = format!("connection closed after {done} of {size} bytes");
            return Err(Failure::Transient(reason, None));
        }
        Ok(())
    }

    /// Compares the hash of the downloaded file with the ETag.
    fn verify(&mut self) -> Result<(), Error> {
        let path = self.repository.incomplete(&self.etag);
        let is_hex = self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (kind, found) = match self.etag.len() {
            SHA256_LEN if is_hex => ("SHA-256", sha256(&path)?),
            SHA1_LEN if is_hex => ("git SHA-1", git_sha1(&path)?),
            _ => {
                let message = format!(
                    "{}: only the length was verified, because the ETag is not a hash",
                    self.file
                );
                return self.send(Event::Warning(message));
            }
        };
        if found.eq_ignore_ascii_case(&self.etag) {
            return Ok(());
        }
        let failure = self.damaged(&path, format!("{kind} {}", self.etag), found);
        Err(self.fatal(failure))
    }

    /// Deletes the incomplete file, so that it is not resumed.
    fn damaged(&self, path: &Path, expected: String, found: String) -> Failure {
        match remove(path) {
            Err(error) => Failure::Other(error),
            Ok(()) => Failure::Hub(HubError::Damaged {
                file: self.file.to_owned(),
                expected,
                found,
            }),
        }
    }

    fn fatal(&self, failure: Failure) -> Error {
        let endpoint = self.hub.endpoint.clone();
        let error = match failure {
            Failure::Other(error) => return error,
            Failure::Hub(error) => error,
            Failure::Answer(reason) => HubError::Answer { endpoint, reason },
            Failure::Status(status, _) => HubError::Answer {
                endpoint,
                reason: format!("{}: status {status}", self.file),
            },
            Failure::Transient(reason, _) => HubError::Interrupted {
                file: self.file.to_owned(),
                reason,
            },
        };
        error.of(self.id)
    }

    fn send(&mut self, event: Event) -> Result<(), Error> {
        send(self.watch, event).map_err(|error| error.of(self.id))
    }
}

fn bytes(size: u64) -> String {
    format!("{size} bytes")
}

/// Git's blob hash: the SHA-1 of `blob <length>\0<contents>`.
fn git_sha1(path: &Path) -> Result<String, Error> {
    let failed = |error| Error::read(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {length}\0"));
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
