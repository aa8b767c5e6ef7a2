//! Writes this worker's share of checkpoints while training goes on, and loads whole ones.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    ids::{Generation, Rank, Step},
    layout::{ChunkId, ChunkSpec, Layout},
    mistakes::{Mistake, is_back},
    plan::Plan,
};
use polo_store::{Digest, Store, StoreError, checkpoint};
use tokio::task::JoinHandle;

use crate::{desk::Desk, state::TrainState};

/// Chunks that are stored or loaded at the same time.
const IN_FLIGHT: usize = 4;

/// The run's store, as the trainer uses it.
pub struct Checkpointer {
    /// The run's store.
    pub store: Store,
    /// Where the coordinator is told of what is stored.
    pub desk: Arc<Desk>,
    /// The share that is being written.
    pub in_flight: Option<JoinHandle<Result<(), StoreError>>>,
}

/// Whose part of which checkpoint.
pub struct Share<'a> {
    /// The generation that writes.
    pub generation: Generation,
    /// Step of the state.
    pub step: Step,
    /// Who writes.
    pub rank: Rank,
    /// Owners of each chunk.
    pub owners: &'a [Vec<Rank>],
}

impl Share<'_> {
    /// The owner that stores a chunk; they take turns.
    fn storer(&self, chunk: ChunkId) -> Option<Rank> {
        let owners = &self.owners[chunk.0 as usize];
        owners.get(chunk.0 as usize % owners.len().max(1)).copied()
    }
}

impl Checkpointer {
    /// Copies this worker's share of the state and begins to store it; waits first for the share before it. If that
    /// one failed, its checkpoint is missing and training goes on.
    pub async fn begin(&mut self, state: &TrainState, share: Share<'_>, layout: &Layout, plan: &Plan) {
        if let Err(error) = self.finish().await {
            tracing::warn!(%error, "a checkpoint could not be stored; training goes on without it");
        }
        let held = || layout.chunks.iter().filter(|c| state.moments.contains_key(&c.id));
        let stored = held().filter(|c| share.storer(c.id) == Some(share.rank));
        let chunks: Vec<_> = stored.filter_map(|c| Some((c.id.0, Bytes::from(state.chunk_bytes(c)?)))).collect();
        let witnessed = held().filter(|c| share.storer(c.id) != Some(share.rank));
        let digest = |c: &ChunkSpec| Some(digest_to_wire(c.id.0, state.chunk_digest(c)?));
        let witnessed = witnessed.filter_map(digest).collect();
        let trained = state.ledger.to_wire(plan);
        let (generation, step) = (share.generation.0, share.step.0);
        let (store, desk) = (self.store.clone(), self.desk.clone());
        self.in_flight = Some(tokio::spawn(async move {
            if is_back(Mistake::ManifestBeforeChunks) {
                let digest = |(chunk, bytes): &(u32, Bytes)| digest_to_wire(*chunk, Digest::of(bytes));
                let (chunks, trained, witnessed) = (chunks.iter().map(digest).collect(), trained, witnessed);
                desk.send(Message::CheckpointPart(v1::CheckpointPart { generation, step, chunks, trained, witnessed }));
                return Ok(());
            }
            let chunks = put_chunks(&store, chunks).await?;
            let part = v1::CheckpointPart { generation, step, chunks, trained, witnessed };
            desk.send(Message::CheckpointPart(part));
            Ok(())
        }));
    }

    /// Waits until the share that was begun last is stored. The store's own limits bound the wait.
    pub async fn finish(&mut self) -> Result<(), StoreError> {
        let Some(writing) = self.in_flight.take() else { return Ok(()) };
        match writing.await {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Fills the chunks in `wanted`, and the ledger, from a checkpoint, checking every digest.
    pub async fn load(
        &self,
        state: &mut TrainState,
        step: Step,
        wanted: &[ChunkId],
        layout: &Layout,
        plan: &Plan,
    ) -> Result<(), StoreError> {
        let manifest = checkpoint::read_manifest(&self.store, step.0).await?;
        if !manifest.fits(layout) {
            let place = self.store.url_of(&format!("checkpoints/{:012}.json", step.0));
            return Err(StoreError::damaged(place, "its chunks are not cut as this model's are"));
        }
        let store = &self.store;
        let fetches = wanted.iter().map(|id| async {
            let (spec, chunk) = (&layout.chunks[id.0 as usize], &manifest.chunks[id.0 as usize]);
            let num_bytes = checkpoint::chunk_num_bytes(chunk.num_params);
            Ok::<_, StoreError>((spec, checkpoint::get_chunk(store, &chunk.digest, num_bytes).await?))
        });
        let fetches = futures::stream::iter(fetches).buffer_unordered(IN_FLIGHT);
        let loaded = fetches.try_for_each(|(spec, bytes)| {
            state.load_chunk(spec, &bytes);
            futures::future::ready(Ok(()))
        });
        loaded.await?;
        state.ledger.load(plan, &manifest.ledger);
        state.step = Some(step);
        Ok(())
    }
}

fn digest_to_wire(chunk: u32, Digest(digest): Digest) -> v1::ChunkDigest {
    v1::ChunkDigest { chunk, digest: digest.to_vec() }
}

async fn put_chunks(store: &Store, chunks: Vec<(u32, Bytes)>) -> Result<Vec<v1::ChunkDigest>, StoreError> {
    let puts = chunks
        .into_iter()
        .map(|(chunk, bytes)| async move { Ok(digest_to_wire(chunk, checkpoint::put_chunk(store, bytes).await?)) });
    futures::stream::iter(puts).buffer_unordered(IN_FLIGHT).try_collect().await
}
