//! Removing checkpoints that are no longer wanted, and chunks that nothing needs.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use futures::{StreamExt, TryStreamExt};

use super::check::missing_chunks;
use super::{chunk_key, list_steps, manifest_key, read_manifest, stored_chunks};
use crate::{Digest, Store, StoreError};

const MAX_DELETES_IN_FLIGHT: usize = 16;

/// What [`retain`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Steps whose manifest was removed, newest first.
    pub steps: Vec<u64>,
    /// Number of chunk objects removed.
    pub num_chunks: usize,
}

/// Keeps the newest `keep` whole checkpoints and removes older manifests first, then chunks that no remaining manifest
/// names. Damaged checkpoints do not count among the kept, so that they never push out a good one.
///
/// `protected` names the chunks of every upload that is under way: a chunk is stored before its manifest exists.
pub async fn retain(store: &Store, keep: NonZeroUsize, protected: &HashSet<Digest>) -> Result<Removed, StoreError> {
    let stored = stored_chunks(store).await?;
    let (mut needed, mut all_read) = (protected.clone(), true);
    let (mut num_good, mut expired) = (0, Vec::new());
    for step in list_steps(store).await?.into_iter().rev() {
        if num_good == keep.get() {
            expired.push(step);
            continue;
        }
        match read_manifest(store, step).await {
            Ok(manifest) => {
                num_good += usize::from(missing_chunks(store, &manifest, &stored).is_empty());
                needed.extend(manifest.chunks.iter().map(|c| c.digest));
            }
            Err(StoreError::Damaged { .. }) => all_read = false,
            Err(e) => return Err(e),
        }
    }
    delete_all(store, expired.iter().map(|step| manifest_key(*step)).collect()).await?;
    // A manifest that cannot be read may name any chunk, so while it stays they all do.
    let unneeded: Vec<_> = stored.keys().filter(|d| all_read && !needed.contains(d)).map(chunk_key).collect();
    let removed = Removed { steps: expired, num_chunks: unneeded.len() };
    delete_all(store, unneeded).await?;
    Ok(removed)
}

async fn delete_all(store: &Store, keys: Vec<String>) -> Result<(), StoreError> {
    let deletes = futures::stream::iter(keys).map(|key| async move { store.delete(&key).await });
    deletes.buffer_unordered(MAX_DELETES_IN_FLIGHT).try_collect().await
}
