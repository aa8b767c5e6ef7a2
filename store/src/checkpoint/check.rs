//! Whether checkpoints are whole.

use std::collections::HashMap;

use futures::StreamExt;

use super::{Manifest, chunk_key, chunk_num_bytes, get_chunk, list_steps, read_manifest, stored_chunks};
use crate::{Digest, Entry, Store, StoreError};

const MAX_CHUNKS_IN_FLIGHT: usize = 4;

/// How much of a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest's content, and that every chunk is there with its length.
    Shallow,
    /// Every byte of every chunk too.
    Deep,
}

/// What a look at one checkpoint found.
#[derive(Debug)]
pub struct Checked {
    /// The checkpoint's step.
    pub step: u64,
    /// Its manifest, when that is whole.
    pub manifest: Option<Manifest>,
    /// Everything wrong with it; nothing when it is good.
    pub problems: Vec<StoreError>,
}

impl Checked {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Looks for every problem of the checkpoint of `step`. Fails only when the store cannot be read.
pub async fn verify(store: &Store, step: u64, depth: Depth) -> Result<Checked, StoreError> {
    let manifest = match read_manifest(store, step).await {
        Ok(manifest) => manifest,
        Err(problem) => return Ok(Checked { step, manifest: None, problems: vec![only_damage(problem)?] }),
    };
    let problems = match depth {
        Depth::Shallow => missing_chunks(store, &manifest, &stored_chunks(store).await?),
        Depth::Deep => damaged_chunks(store, &manifest).await?,
    };
    Ok(Checked { step, manifest: Some(manifest), problems })
}

/// The newest checkpoint in which nothing is wrong, and the damaged ones that are newer, newest first.
pub async fn newest_good(store: &Store, depth: Depth) -> Result<(Option<Manifest>, Vec<Checked>), StoreError> {
    let mut damaged = Vec::new();
    for step in list_steps(store).await?.into_iter().rev() {
        let checked = verify(store, step, depth).await?;
        if checked.is_good() {
            return Ok((checked.manifest, damaged));
        }
        damaged.push(checked);
    }
    Ok((None, damaged))
}

/// Chunks of `manifest` that are not in `stored` with their length.
pub(super) fn missing_chunks(store: &Store, manifest: &Manifest, stored: &HashMap<Digest, Entry>) -> Vec<StoreError> {
    let problem = |chunk: &super::Chunk| {
        let expected = chunk_num_bytes(chunk.num_params);
        let reason = match stored.get(&chunk.digest).map(|entry| entry.num_bytes) {
            Some(size) if size == expected => return None,
            Some(size) => format!("it has {size} bytes instead of {expected}"),
            None => "a checkpoint names it, but it is missing".to_owned(),
        };
        Some(StoreError::damaged(store.url_of(&chunk_key(&chunk.digest)), reason))
    };
    manifest.chunks.iter().filter_map(problem).collect()
}

async fn damaged_chunks(store: &Store, manifest: &Manifest) -> Result<Vec<StoreError>, StoreError> {
    let look = |chunk: super::Chunk| async move {
        get_chunk(store, &chunk.digest, chunk_num_bytes(chunk.num_params)).await.err()
    };
    let looks = futures::stream::iter(manifest.chunks.clone()).map(look).buffered(MAX_CHUNKS_IN_FLIGHT);
    let found: Vec<_> = looks.filter_map(std::future::ready).collect().await;
    found.into_iter().map(only_damage).collect()
}

/// Tells damage from a store that cannot be read, which says nothing about its content.
fn only_damage(error: StoreError) -> Result<StoreError, StoreError> {
    match error {
        StoreError::Damaged { .. } | StoreError::NotFound { .. } => Ok(error),
        other => Err(other),
    }
}
