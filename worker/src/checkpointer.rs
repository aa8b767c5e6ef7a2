//! Writes this worker's share of checkpoints while training goes on, and loads whole ones.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    ids::{Generation, Step},
    layout::{ChunkSpec, Layout},
    plan::Plan,
};
use polo_store::{Digest, Store, StoreError, checkpoint};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{desk::Desk, state::TrainState};

/// Chunks that are stored or loaded at the same time.
const IN_FLIGHT: usize = 4;

/// The run's store, as the trainer uses it.
pub struct Checkpointer {
    /// The run's store.
    pub store: Store,
    /// Where the IO runs.
    pub runtime: Handle,
    /// Where the coordinator is told of what is stored.
    pub desk: Arc<Desk>,
    /// The share that is being written.
    pub in_flight: Option<JoinHandle<Result<(), StoreError>>>,
}

/// What a checkpoint holds beside the chunks, and who writes it.
pub struct Share<'a> {
    /// The generation that writes.
    pub generation: Generation,
    /// Step of the state.
    pub step: Step,
    /// The chunks that fall to this worker.
    pub chunks: Vec<&'a ChunkSpec>,
    /// Names for the ledger's counts.
    pub plan: &'a Plan,
}

impl Checkpointer {
    /// Copies this worker's share of the state and begins to store it; waits first for the share before it. If that
    /// one failed, its checkpoint is missing and training goes on.
    pub fn begin(&mut self, state: &TrainState, share: Share<'_>) {
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "a checkpoint could not be stored; training goes on without it");
        }
        let chunks: Vec<_> = share.chunks.iter().map(|c| (c.id.0, Bytes::from(state.chunk_bytes(c)))).collect();
        let trained = state.ledger.to_entries(share.plan).into_iter().map(to_wire).collect();
        let (generation, step) = (share.generation.0, share.step.0);
        let (store, desk) = (self.store.clone(), self.desk.clone());
        self.in_flight = Some(self.runtime.spawn(async move {
            let chunks = put_chunks(&store, chunks).await?;
            desk.send(Message::CheckpointPart(v1::CheckpointPart { generation, step, chunks, trained }));
            Ok(())
        }));
    }

    /// Waits until the share that was begun last is stored. The store's own limits bound the wait.
    pub fn finish(&mut self) -> Result<(), StoreError> {
        let Some(writing) = self.in_flight.take() else { return Ok(()) };
        match self.runtime.block_on(writing) {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Fills the state from a checkpoint, checking every digest.
    pub fn load(&self, state: &mut TrainState, step: Step, layout: &Layout, plan: &Plan) -> Result<(), StoreError> {
        state.step = None;
        let manifest = self.runtime.block_on(checkpoint::read_manifest(&self.store, step.0))?;
        if !manifest.fits(layout) {
            let place = self.store.url_of(&format!("checkpoints/{:012}.json", step.0));
            return Err(StoreError::damaged(place, "its chunks are not cut as this model's are"));
        }
        let store = &self.store;
        let fetches = layout.chunks.iter().zip(&manifest.chunks).map(|(spec, chunk)| async move {
            let num_bytes = checkpoint::chunk_num_bytes(chunk.num_params);
            Ok::<_, StoreError>((spec, checkpoint::get_chunk(store, &chunk.digest, num_bytes).await?))
        });
        let fetches = futures::stream::iter(fetches).buffer_unordered(IN_FLIGHT);
        self.runtime.block_on(fetches.try_for_each(|(spec, bytes)| {
            state.load_chunk(spec, &bytes);
            futures::future::ready(Ok(()))
        }))?;
        state.ledger.load_entries(plan, &manifest.trained_tokens);
        state.step = Some(step);
        Ok(())
    }
}

async fn put_chunks(store: &Store, chunks: Vec<(u32, Bytes)>) -> Result<Vec<v1::ChunkDigest>, StoreError> {
    let puts = chunks.into_iter().map(|(chunk, bytes)| async move {
        let Digest(digest) = checkpoint::put_chunk(store, bytes).await?;
        Ok(v1::ChunkDigest { chunk, digest: digest.to_vec() })
    });
    futures::stream::iter(puts).buffer_unordered(IN_FLIGHT).try_collect().await
}

fn to_wire(entry: checkpoint::Trained) -> v1::TrainedTokens {
    v1::TrainedTokens { stage: entry.stage, source: entry.source, num_tokens: entry.num_tokens }
}
