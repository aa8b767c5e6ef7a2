//! Checkpoints of a run: content-addressed chunks first, one manifest last.
//!
//! ```text
//! recipe.toml                     the resolved recipe (see `run`)
//! chunks/<digest>                 params | exp_avg | exp_avg_sq of one chunk, fp32 little-endian
//! checkpoints/<step, 12 digits>.json
//! ```
//!
//! A checkpoint exists when its manifest exists. [`put_chunk`] each chunk, then [`put_manifest`]; [`newest_good`] to
//! resume, then [`get_chunk`] for each chunk; [`retain`] removes what is no longer wanted.

mod check;
mod manifest;
mod params;
mod retention;

use std::collections::HashMap;

use bytes::Bytes;
use polo_recipe::mistakes::{Mistake, is_back};

use crate::{Digest, Entry, Store, StoreError};

pub use check::{Checked, Depth, newest_good, verify};
pub use manifest::{Chunk, Manifest, state_digest};
pub use params::ParamReader;
pub use retention::{Removed, retain};

/// Vectors in a chunk object: parameters and AdamW's two moments.
pub const NUM_VECTORS: u64 = 3;

/// Length of the object of a chunk of `num_params` parameters.
pub fn chunk_num_bytes(num_params: u64) -> u64 {
    num_params * NUM_VECTORS * size_of::<f32>() as u64
}

fn chunk_key(digest: &Digest) -> String {
    format!("chunks/{digest}")
}

fn manifest_key(step: u64) -> String {
    format!("checkpoints/{step:012}.json")
}

/// Stores a chunk under its digest, unless a whole one is there already.
///
/// The one that is there is read, not trusted: a redone step makes the same chunks again and so mends damaged ones.
pub async fn put_chunk(store: &Store, bytes: Bytes) -> Result<Digest, StoreError> {
    let digest = Digest::of(&bytes);
    let key = chunk_key(&digest);
    let is_whole = store.exists(&key).await? && store.get(&key).await? == bytes;
    if !is_whole {
        store.put(&key, bytes).await?;
    }
    Ok(digest)
}

/// Reads a chunk of `num_bytes` back; bytes of another length or digest, and a missing chunk, are
/// [`StoreError::Damaged`].
pub async fn get_chunk(store: &Store, digest: &Digest, num_bytes: u64) -> Result<Bytes, StoreError> {
    let key = chunk_key(digest);
    let damaged = |reason: String| StoreError::damaged(store.url_of(&key), reason);
    let bytes = match store.get(&key).await {
        Err(e) if e.is_not_found() => return Err(damaged("a checkpoint names it, but it is missing".into())),
        other => other?,
    };
    if bytes.len() as u64 != num_bytes {
        return Err(damaged(format!("it has {} bytes instead of {num_bytes}", bytes.len())));
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(damaged(format!("its content has the digest {found}")));
    }
    Ok(bytes)
}

/// Makes the checkpoint exist: writes `manifest`, create-only, after a look that every chunk is there.
///
/// Writing an equal manifest again is fine, and a damaged one is replaced. Another whole manifest for the same step is
/// [`StoreError::ConflictingCheckpoint`]; an absent chunk is [`StoreError::Damaged`], and nothing is written.
pub async fn put_manifest(store: &Store, manifest: &Manifest) -> Result<(), StoreError> {
    let missing = check::missing_chunks(store, manifest, &stored_chunks(store).await?).into_iter().next();
    if let Some(problem) = missing.filter(|_| !is_back(Mistake::ManifestBeforeChunks)) {
        return Err(problem);
    }
    let (key, bytes) = (manifest_key(manifest.step), manifest.encode());
    if store.put_if_absent(&key, bytes.clone()).await? {
        return Ok(());
    }
    match read_manifest(store, manifest.step).await {
        Ok(stored) if stored == *manifest => Ok(()),
        Ok(_) => Err(StoreError::ConflictingCheckpoint { url: store.url_of(&key), step: manifest.step }),
        Err(StoreError::Damaged { .. }) => store.put(&key, bytes).await,
        Err(e) => Err(e),
    }
}

/// Steps that have a manifest, good or not, in order.
pub async fn list_steps(store: &Store) -> Result<Vec<u64>, StoreError> {
    let step = |key: &str| {
        let digits = key.strip_prefix("checkpoints/")?.strip_suffix(".json")?;
        let step = digits.parse().ok()?;
        (key == manifest_key(step)).then_some(step)
    };
    let mut steps: Vec<u64> = store.list("checkpoints").await?.iter().filter_map(|e| step(&e.key)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The manifest of `step`. A missing one is [`StoreError::NotFound`], one with any byte changed
/// [`StoreError::Damaged`].
pub async fn read_manifest(store: &Store, step: u64) -> Result<Manifest, StoreError> {
    let key = manifest_key(step);
    let bytes = store.get(&key).await?;
    let manifest = Manifest::decode(&bytes).map_err(|reason| StoreError::damaged(store.url_of(&key), reason))?;
    if manifest.step != step {
        return Err(StoreError::damaged(store.url_of(&key), format!("it is the manifest of step {}", manifest.step)));
    }
    Ok(manifest)
}

/// Every stored chunk as it was listed.
async fn stored_chunks(store: &Store) -> Result<HashMap<Digest, Entry>, StoreError> {
    let chunk = |entry: Entry| Some((entry.key.strip_prefix("chunks/")?.parse().ok()?, entry));
    Ok(store.list("chunks").await?.into_iter().filter_map(chunk).collect())
}
