//! Removing checkpoints that are no longer wanted, and chunks that nothing needs.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};

use super::check::missing_chunks;
use super::{chunk_key, list_steps, manifest_key, read_manifest, stored_chunks};
use crate::{Digest, Entry, Store, StoreError};

const MAX_DELETES_IN_FLIGHT: usize = 16;

/// What [`retain`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Steps whose manifest was removed, newest first.
    pub steps: Vec<u64>,
    /// Number of chunk objects removed.
    pub num_chunks: usize,
}

/// Keeps the newest `keep` whole checkpoints and removes older manifests first, then their chunks that no remaining
/// manifest names. Damaged checkpoints do not count among the kept, so that they never push out a good one.
///
/// A chunk is stored before its manifest exists. So those that no manifest ever named stay until they are `grace` older
/// than the newest chunk, and those in `protected`, which a coming manifest will name, stay in any case.
pub async fn retain(
    store: &Store,
    keep: NonZeroUsize,
    protected: &HashSet<Digest>,
    grace: Duration,
) -> Result<Removed, StoreError> {
    let stored = stored_chunks(store).await?;
    let survey = Survey::make(store, keep, &stored).await?;
    delete_all(store, survey.expired.iter().map(|step| manifest_key(*step)).collect()).await?;
    let newest = stored.values().map(|entry| entry.modified).max();
    let is_old = |entry: &Entry| newest.and_then(|newest| newest.duration_since(entry.modified).ok()) >= Some(grace);
    let is_unneeded = |(digest, entry): &(&Digest, &Entry)| {
        let is_named = survey.may_need_any || survey.needed.contains(digest) || protected.contains(digest);
        !is_named && (survey.outdated.contains(digest) || is_old(entry))
    };
    let unneeded: Vec<_> = stored.iter().filter(is_unneeded).map(|(digest, _)| chunk_key(digest)).collect();
    let removed = Removed { steps: survey.expired, num_chunks: unneeded.len() };
    delete_all(store, unneeded).await?;
    Ok(removed)
}

/// What the manifests say.
#[derive(Default)]
struct Survey {
    /// Steps of manifests that go, newest first.
    expired: Vec<u64>,
    /// Chunks of manifests that stay.
    needed: HashSet<Digest>,
    /// Chunks of manifests that go.
    outdated: HashSet<Digest>,
    /// A manifest that stays cannot be read, so it may name any chunk.
    may_need_any: bool,
}

impl Survey {
    async fn make(store: &Store, keep: NonZeroUsize, stored: &HashMap<Digest, Entry>) -> Result<Self, StoreError> {
        let (mut survey, mut num_good) = (Self::default(), 0);
        for step in list_steps(store).await?.into_iter().rev() {
            let stays = num_good < keep.get();
            match read_manifest(store, step).await {
                Ok(manifest) => {
                    num_good += usize::from(missing_chunks(store, &manifest, stored).is_empty());
                    let chunks = if stays { &mut survey.needed } else { &mut survey.outdated };
                    chunks.extend(manifest.chunks.iter().map(|c| c.digest));
                }
                Err(StoreError::Damaged { .. }) => survey.may_need_any |= stays,
                Err(e) => return Err(e),
            }
            if !stays {
                survey.expired.push(step);
            }
        }
        Ok(survey)
    }
}

async fn delete_all(store: &Store, keys: Vec<String>) -> Result<(), StoreError> {
    let deletes = futures::stream::iter(keys).map(|key| async move { store.delete(&key).await });
    deletes.buffer_unordered(MAX_DELETES_IN_FLIGHT).try_collect().await
}
