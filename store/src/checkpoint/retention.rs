//! Removing checkpoints that are no longer wanted, and chunks that nothing needs.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;

use futures::{StreamExt, TryStreamExt};

use super::check::missing_chunks;
use super::{chunk_key, list_steps, manifest_key, read_manifest, stored_chunks};
use crate::{Digest, Store, StoreError};

const MAX_DELETES_IN_FLIGHT: usize = 16;

/// What [`expire`] or [`retain`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Steps whose manifest was removed, newest first.
    pub steps: Vec<u64>,
    /// Number of chunk objects removed.
    pub num_chunks: usize,
}

/// Keeps the newest `keep` whole checkpoints and removes older manifests first, then chunks that only those named.
/// Damaged checkpoints do not count among the kept, so that they never push out a good one.
///
/// Chunks that no manifest ever named stay: they may belong to an upload that is under way.
pub async fn expire(store: &Store, keep: NonZeroUsize) -> Result<Removed, StoreError> {
    let survey = survey(store, keep).await?;
    let mut named = HashSet::new();
    for step in &survey.expired {
        match read_manifest(store, *step).await {
            Ok(manifest) => named.extend(manifest.chunks.iter().map(|c| c.digest)),
            Err(StoreError::Damaged { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    survey.remove(store, |digest| named.contains(digest)).await
}

/// As [`expire`], and removes also the chunks that no manifest names, which uploads leave that were broken off.
///
/// `protected` names the chunks of every upload that is under way: a chunk is stored before its manifest exists.
pub async fn retain(store: &Store, keep: NonZeroUsize, protected: &HashSet<Digest>) -> Result<Removed, StoreError> {
    survey(store, keep).await?.remove(store, |digest| !protected.contains(digest)).await
}

/// What a run's store holds, and what of it has to stay.
struct Survey {
    stored: HashMap<Digest, u64>,
    /// Chunks of the checkpoints that stay.
    needed: HashSet<Digest>,
    /// Steps whose checkpoint goes, newest first.
    expired: Vec<u64>,
    /// Whether the manifest of every checkpoint that stays could be read.
    all_read: bool,
}

async fn survey(store: &Store, keep: NonZeroUsize) -> Result<Survey, StoreError> {
    let stored = stored_chunks(store).await?;
    let (mut needed, mut all_read) = (HashSet::new(), true);
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
    Ok(Survey { stored, needed, expired, all_read })
}

impl Survey {
    /// Removes expired manifests, then the chunks that may go as far as they are not needed.
    async fn remove(self, store: &Store, may_go: impl Fn(&Digest) -> bool) -> Result<Removed, StoreError> {
        delete_all(store, self.expired.iter().map(|step| manifest_key(*step)).collect()).await?;
        // A manifest that cannot be read may name any chunk, so while it stays they all do.
        let is_unneeded = |digest: &&Digest| self.all_read && !self.needed.contains(*digest) && may_go(digest);
        let unneeded: Vec<_> = self.stored.keys().filter(is_unneeded).map(chunk_key).collect();
        let removed = Removed { steps: self.expired, num_chunks: unneeded.len() };
        delete_all(store, unneeded).await?;
        Ok(removed)
    }
}

async fn delete_all(store: &Store, keys: Vec<String>) -> Result<(), StoreError> {
    let deletes = futures::stream::iter(keys).map(|key| async move { store.delete(&key).await });
    deletes.buffer_unordered(MAX_DELETES_IN_FLIGHT).try_collect().await
}
