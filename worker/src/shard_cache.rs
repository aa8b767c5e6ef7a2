//! Token shards on the local disk, under their digests: fetched once, shared by all processes of a host.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use polo_store::{Digest, Store, StoreError};

/// Bytes asked of the store at a time.
const PIECE_BYTES: u64 = 8 << 20;

/// What can go wrong when a file is fetched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum CacheError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("shard cache {path}: {source}; check the disk and its free space")]
    Disk { path: String, source: io::Error },
    #[error("{url} is damaged: its digest is {found}, and the manifest says {expected}; prepare the corpus again")]
    Damaged { url: String, expected: Digest, found: Digest },
}

/// A folder of files named by digest. A file that is there is whole: it came by an atomic rename after its digest was
/// checked, and is never written again.
#[derive(Debug, Clone)]
pub struct ShardCache {
    folder: PathBuf,
}

impl ShardCache {
    /// A cache in `folder`, which is made when missing.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        std::fs::create_dir_all(folder).map_err(disk_error(folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The local path of `key`, fetched from `store` unless it is here. A file that is here is read and checked too, as
    /// disks forget; a damaged one is fetched again.
    pub async fn fetch(&self, store: &Store, key: &str, digest: Digest) -> Result<PathBuf, CacheError> {
        let path = self.folder.join(digest.to_string());
        if path.exists() {
            let found = digest_of(&path)?;
            if found == digest {
                return Ok(path);
            }
            tracing::warn!(path = %path.display(), %found, "a cached shard is damaged; fetching it again");
        }
        self.download(store, key, digest, &path).await?;
        Ok(path)
    }

    async fn download(&self, store: &Store, key: &str, expected: Digest, path: &Path) -> Result<(), CacheError> {
        let mut scratch = tempfile::NamedTempFile::new_in(&self.folder).map_err(disk_error(&self.folder))?;
        let mut hasher = blake3::Hasher::new();
        let num_bytes = store.size_bytes(key).await?;
        for start in (0..num_bytes).step_by(PIECE_BYTES as usize) {
            let piece = store.get_range(key, start..num_bytes.min(start + PIECE_BYTES)).await?;
            hasher.update(&piece);
            scratch.write_all(&piece).map_err(disk_error(scratch.path()))?;
        }
        let found = Digest::from(hasher.finalize());
        if found != expected {
            return Err(CacheError::Damaged { url: store.url_of(key), expected, found });
        }
        scratch.persist(path).map_err(|error| disk_error(path)(error.error))?;
        Ok(())
    }
}

fn digest_of(path: &Path) -> Result<Digest, CacheError> {
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
        Ok(hasher.finalize())
    };
    hash().map(Digest::from).map_err(disk_error(path))
}

fn disk_error(path: &Path) -> impl FnOnce(io::Error) -> CacheError + use<> {
    let path = path.display().to_string();
    |source| CacheError::Disk { path, source }
}
