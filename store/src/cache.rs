//! Objects on the local disk, under their digests: fetched once for all processes of a machine, within a bound.
//!
//! The files tell everything, so a cache outlives its processes. `DIGEST` is an object; it came by a rename after its
//! digest had been checked. `DIGEST.xxxxxx.part` is on its way; its length is what it will have. Whoever uses a file holds
//! a lock on it, which ends with the process. What is used by nobody may be removed, the longest unused first. `lock` is
//! held while room is made.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tempfile::NamedTempFile;
use tokio::time::Instant;

use crate::cache_plan::{Kind, Plan, Seen, Want, plan};
use crate::{Digest, Store, StoreError};

/// Bytes asked of the store at a time, and how many such requests at once.
const RANGE_BYTES: u64 = 4 << 20;
const MAX_RANGES_IN_FLIGHT: usize = 4;

/// Locks are held for moments; one that is held for longer belongs to a process that has stopped.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// What can go wrong when an object is fetched into a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store does not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk does not take it, or does not give it back.
    #[error("cache {path}: {source}; check the disk, its free space and the folder's permissions")]
    Disk {
        /// The file or folder.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// The store gives other bytes than those that were asked for.
    #[error("{url} is damaged: its digest is {found}, and {expected} was asked for; put it into the store again")]
    Damaged {
        /// Address of the object.
        url: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// What is in use leaves no room for it.
    #[error(
        "cache {folder}: {url} takes {num_bytes} bytes, {in_use_bytes} are in use, and the cache may hold {max_bytes}; give it more, or ask for less at once"
    )]
    Full {
        /// The cache's folder.
        folder: String,
        /// Address of the object.
        url: String,
        /// Its length.
        num_bytes: u64,
        /// Length of what is in use by any process.
        in_use_bytes: u64,
        /// The cache's bound.
        max_bytes: u64,
    },
}

/// A bounded folder of objects named by digest. Cheap to clone; any number of processes may share the folder.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    max_bytes: u64,
}

/// An object on the local disk, whole and checked. It stays there for as long as this is held.
#[derive(Debug)]
pub struct Cached {
    path: PathBuf,
    /// Its shared lock keeps the file.
    _file: File,
}

impl Cached {
    /// Where the object lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Cached {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// A file on its way, locked, and the digest of what it has so far.
struct Part {
    file: NamedTempFile,
    hasher: blake3::Hasher,
}

impl Part {
    fn write(mut self, pieces: &[Bytes]) -> io::Result<Self> {
        for piece in pieces {
            self.hasher.update(piece);
            self.file.write_all(piece)?;
        }
        Ok(self)
    }
}

impl Cache {
    /// A cache in `folder`, which is made when missing, of `max_bytes` at most.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, CacheError> {
        std::fs::create_dir_all(folder).map_err(disk_error(folder))?;
        Ok(Self { folder: folder.to_owned(), max_bytes })
    }

    /// The object `key` of `store`, whose digest is `digest`; fetched unless it is here. What is here is read and checked
    /// too, as disks forget; what is damaged is fetched again.
    pub async fn fetch(&self, store: &Store, key: &str, digest: Digest) -> Result<Cached, CacheError> {
        let (mut want, mut is_waiting) = (None, false);
        loop {
            if let Some(cached) = self.take_up(digest).await? {
                return Ok(cached);
            }
            let num_bytes = match want {
                Some(num_bytes) => num_bytes,
                None => *want.insert(store.size_bytes(key).await?),
            };
            if let Some(part) = self.make_room(&Want { digest, num_bytes }, &store.url_of(key)).await? {
                if let Some(cached) = self.download(store, key, part, &Want { digest, num_bytes }).await? {
                    return Ok(cached);
                }
                continue;
            }
            if !std::mem::replace(&mut is_waiting, true) {
                tracing::info!(url = store.url_of(key), "another process is fetching it; waiting");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The file of `digest`, locked and checked; none if there is none or it is damaged, in which case it is removed.
    async fn take_up(&self, digest: Digest) -> Result<Option<Cached>, CacheError> {
        let path = self.folder.join(digest.to_string());
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(disk_error(&path))?,
        };
        let contents = file.try_clone().map_err(disk_error(&path))?;
        let Some(cached) = hold(path.clone(), file).await? else { return Ok(None) };
        let found = blocking(&path, move || digest_of(contents)).await?;
        if found == digest {
            return Ok(Some(cached));
        }
        tracing::warn!(path = %path.display(), %found, "a cached object is damaged; fetching it again");
        std::fs::remove_file(&path).or_else(absent_is_fine).map_err(disk_error(&path))?;
        Ok(None)
    }

    /// An empty file with room for what is wanted; none while another process is fetching it, or has done so meanwhile.
    async fn make_room(&self, want: &Want, url: &str) -> Result<Option<Part>, CacheError> {
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(disk_error(&lock_path))?;
        locked(&lock, File::try_lock).await.map_err(disk_error(&lock_path))?;
        let files = self.look_around().map_err(disk_error(&self.folder))?;
        if self.folder.join(want.digest.to_string()).exists() {
            return Ok(None);
        }
        match plan(&files, want, self.max_bytes, SystemTime::now()) {
            Plan::Wait => Ok(None),
            Plan::Full { in_use_bytes } => Err(CacheError::Full {
                folder: self.folder.display().to_string(),
                url: url.to_owned(),
                num_bytes: want.num_bytes,
                in_use_bytes,
                max_bytes: self.max_bytes,
            }),
            Plan::Fetch { remove } => {
                for name in remove {
                    let path = self.folder.join(name);
                    std::fs::remove_file(&path).or_else(absent_is_fine).map_err(disk_error(&path))?;
                }
                self.reserve(want).map(Some).map_err(disk_error(&self.folder))
            }
        }
    }

    fn look_around(&self) -> io::Result<Vec<Seen>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some((kind, name)) = entry.file_name().into_string().ok().and_then(|n| Some((Kind::of_name(&n)?, n)))
            else {
                continue;
            };
            match see(&entry.path(), kind, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                seen => files.push(seen?),
            }
        }
        Ok(files)
    }

    fn reserve(&self, want: &Want) -> io::Result<Part> {
        let file =
            tempfile::Builder::new().prefix(&format!("{}.", want.digest)).suffix(".part").tempfile_in(&self.folder)?;
        file.as_file().try_lock()?;
        file.as_file().set_len(want.num_bytes)?;
        Ok(Part { file, hasher: blake3::Hasher::new() })
    }

    async fn download(
        &self,
        store: &Store,
        key: &str,
        mut part: Part,
        want: &Want,
    ) -> Result<Option<Cached>, CacheError> {
        let ranges = (0..want.num_bytes).step_by(RANGE_BYTES as usize);
        let read = |start: u64| store.get_range_in_pieces(key, start..want.num_bytes.min(start + RANGE_BYTES));
        let mut ranges = stream::iter(ranges).map(read).buffered(MAX_RANGES_IN_FLIGHT);
        while let Some(pieces) = ranges.try_next().await? {
            part = blocking(&self.folder, move || part.write(&pieces)).await?;
        }
        let found = Digest::from(part.hasher.finalize());
        if found != want.digest {
            return Err(CacheError::Damaged { url: store.url_of(key), expected: want.digest, found });
        }
        let path = self.folder.join(want.digest.to_string());
        let file = part.file.persist(&path).map_err(|e| disk_error(&path)(e.error))?;
        hold(path, file).await
    }
}

/// Locks `file` against removal and marks it as used now; none if it was removed before that.
async fn hold(path: PathBuf, file: File) -> Result<Option<Cached>, CacheError> {
    locked(&file, File::try_lock_shared).await.map_err(disk_error(&path))?;
    if file.metadata().map_err(disk_error(&path))?.nlink() == 0 {
        return Ok(None);
    }
    // Another user's file cannot be marked. It is then removed earlier than it might be.
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(path = %path.display(), %error, "the time of use is not noted");
    }
    Ok(Some(Cached { path, _file: file }))
}

fn see(path: &Path, kind: Kind, name: String) -> io::Result<Seen> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let in_use = match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(e)) => return Err(e),
    };
    Ok(Seen { kind, name, num_bytes: metadata.len(), modified: metadata.modified()?, in_use })
}

/// Tries to lock until it works, for [`LOCK_LIMIT`] at most.
async fn locked(file: &File, try_lock: fn(&File) -> Result<(), TryLockError>) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match try_lock(file) {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_LIMIT => {
                let words = "another process has held its lock for too long; look for one that has stopped";
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Does `work`, which takes the disk's time, beside the tasks of this runtime.
async fn blocking<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CacheError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).flatten().map_err(disk_error(place))
}

fn digest_of(mut file: File) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(Digest::from(hasher.finalize()))
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn disk_error(path: &Path) -> impl FnOnce(io::Error) -> CacheError + use<> {
    let path = path.display().to_string();
    |source| CacheError::Disk { path, source }
}
