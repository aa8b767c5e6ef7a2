//! How the ranks of a new generation arrive at one state: whoever lacks it takes it from those who hold it.
//!
//! The members tell each other which step they hold. The newest one wins, for it is a pure function of the run, whoever
//! computed it; a checkpoint counts as one more holder. Chunks travel from all holders at once, each with its digest.

use polo_recipe::{
    ids::{Rank, Step},
    layout::{ChunkSpec, Layout},
};
use polo_store::Digest;

use crate::{
    boundary::Boundary,
    flat::disjoint_mut,
    plane::{DataPlane, PlaneError, Transfer, gather::all_gather},
    state::TrainState,
};
use zerocopy::IntoBytes;

/// Chunks that travel at a time.
const BATCH_CHUNKS: usize = 8;

/// Where a generation starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nobody holds anything: the initial state.
    Fresh,
    /// All load this checkpoint.
    Checkpoint(Step),
    /// Ranks that hold the newest step give it to the others.
    Peers {
        /// The step.
        step: Step,
        /// Ranks that hold it.
        holders: Vec<Rank>,
        /// Ranks that do not.
        receivers: Vec<Rank>,
    },
}

/// Where to start, when the ranks hold these steps and this checkpoint is the newest.
pub fn start(held: &[Option<Step>], checkpoint: Option<Step>) -> Start {
    let newest = held.iter().flatten().max().copied();
    match (newest, checkpoint) {
        (None, None) => Start::Fresh,
        (newest, Some(checkpoint)) if newest.is_none_or(|step| step < checkpoint) => Start::Checkpoint(checkpoint),
        (newest, _) => {
            let (holders, receivers) = (0..).map(Rank).zip(held).partition::<Vec<_>, _>(|(_, step)| **step == newest);
            let ranks = |pairs: Vec<(Rank, &Option<Step>)>| pairs.into_iter().map(|(rank, _)| rank).collect();
            Start::Peers { step: newest.unwrap_or_default(), holders: ranks(holders), receivers: ranks(receivers) }
        }
    }
}

/// Shows every rank what every rank holds and was told.
pub fn meet(
    plane: &mut dyn DataPlane,
    held: Option<Step>,
    boundary: Boundary,
) -> Result<(Vec<Option<Step>>, Vec<Boundary>), PlaneError> {
    // Steps are numbered from 0, so 0 can stand for none.
    let mut record = held.map_or(0, |step| step.0 + 1).to_le_bytes().to_vec();
    record.extend(boundary.encode());
    let gathered = all_gather(plane, &record)?;
    let records = gathered.as_chunks::<{ 8 + Boundary::NUM_BYTES }>().0.iter();
    Ok(records.map(|record| (decode_held(record), decode_boundary(record))).unzip())
}

fn decode_held(record: &[u8]) -> Option<Step> {
    let number = u64::from_le_bytes(std::array::from_fn(|i| record[i]));
    number.checked_sub(1).map(Step)
}

fn decode_boundary(record: &[u8]) -> Boundary {
    Boundary::decode(&std::array::from_fn(|i| record[8 + i]))
}

/// Why a state did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The data plane.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// A chunk is not what its sender said it was.
    #[error("chunk {chunk} came from rank {from} with digest {found}, but {stated} was stated")]
    Digest {
        /// Number of the chunk.
        chunk: u32,
        /// The sender.
        from: Rank,
        /// Digest of what came.
        found: Digest,
        /// Digest that the sender stated.
        stated: Digest,
    },
}

/// Which holder gives `chunk` to the receiver of this number: neighbours take from different holders.
fn giver(holders: &[Rank], chunk: &ChunkSpec, receiver: usize) -> Rank {
    holders[(chunk.id.0 as usize + receiver) % holders.len()]
}

/// Moves the state from holders to receivers; every rank of the generation calls it. Returns the bytes that this rank
/// received.
pub fn transfer(
    plane: &mut dyn DataPlane,
    state: &mut TrainState,
    layout: &Layout,
    holders: &[Rank],
    receivers: &[Rank],
) -> Result<u64, SyncError> {
    let own = plane.rank();
    let receiver = receivers.iter().position(|rank| *rank == own);
    let mut num_bytes = 0;
    for batch in layout.chunks.chunks(BATCH_CHUNKS) {
        match receiver {
            Some(number) => num_bytes += receive(plane, state, batch, holders, number)?,
            None => give(plane, state, batch, holders, receivers)?,
        }
    }
    let mut ledger = state.ledger.encode();
    let mut group: Vec<_> = match receiver {
        Some(_) => vec![Transfer::Recv { from: holders[0], bytes: &mut ledger }],
        None if own == holders[0] => receivers.iter().map(|to| Transfer::Send { to: *to, bytes: &ledger }).collect(),
        None => Vec::new(),
    };
    plane.exchange(&mut group)?;
    drop(group);
    state.ledger.decode(&ledger);
    Ok(num_bytes)
}

fn give(
    plane: &mut dyn DataPlane,
    state: &TrainState,
    batch: &[ChunkSpec],
    holders: &[Rank],
    receivers: &[Rank],
) -> Result<(), PlaneError> {
    let own = plane.rank();
    let pairs = || batch.iter().flat_map(|chunk| receivers.iter().enumerate().map(move |(n, to)| (chunk, n, *to)));
    let mine: Vec<_> = pairs().filter(|(chunk, n, _)| giver(holders, chunk, *n) == own).collect();
    let digests: Vec<_> = mine.iter().map(|(chunk, ..)| state.chunk_digest(chunk)).collect();
    let mut group = Vec::new();
    for ((chunk, _, to), digest) in mine.iter().zip(&digests) {
        group.push(Transfer::Send { to: *to, bytes: digest.as_bytes() });
        group.extend(state.chunk_vectors(chunk).map(|bytes| Transfer::Send { to: *to, bytes }));
    }
    plane.exchange(&mut group)
}

fn receive(
    plane: &mut dyn DataPlane,
    state: &mut TrainState,
    batch: &[ChunkSpec],
    holders: &[Rank],
    number: usize,
) -> Result<u64, SyncError> {
    let mut stated = vec![Digest([0; 32]); batch.len()];
    let ranges = || batch.iter().map(|chunk| chunk.range.clone());
    let params = disjoint_mut(state.params.as_mut_slice(), ranges());
    let exp_avg = disjoint_mut(state.exp_avg.as_mut_slice(), ranges());
    let exp_avg_sq = disjoint_mut(state.exp_avg_sq.as_mut_slice(), ranges());
    let mut group = Vec::new();
    let vectors = params.into_iter().zip(exp_avg).zip(exp_avg_sq);
    for ((chunk, digest), ((params, exp_avg), exp_avg_sq)) in batch.iter().zip(&mut stated).zip(vectors) {
        let from = giver(holders, chunk, number);
        group.push(Transfer::Recv { from, bytes: &mut digest.0 });
        for vector in [params, exp_avg, exp_avg_sq] {
            group.push(Transfer::Recv { from, bytes: vector.as_mut_bytes() });
        }
    }
    plane.exchange(&mut group)?;
    drop(group);
    for (chunk, stated) in batch.iter().zip(stated) {
        let found = state.chunk_digest(chunk);
        if found != stated {
            return Err(SyncError::Digest { chunk: chunk.id.0, from: giver(holders, chunk, number), found, stated });
        }
    }
    Ok(batch.iter().map(|chunk| chunk.range.len() as u64 * 12).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_any_state_the_run_starts_fresh_or_from_its_checkpoint() {
        assert_eq!(start(&[None, None], None), Start::Fresh);
        assert_eq!(start(&[None, None], Some(Step(8))), Start::Checkpoint(Step(8)));
    }

    #[test]
    fn the_newest_step_wins_and_goes_to_all_who_lack_it() {
        let held = [Some(Step(9)), None, Some(Step(10)), Some(Step(10))];
        let (holders, receivers) = (vec![Rank(2), Rank(3)], vec![Rank(0), Rank(1)]);
        assert_eq!(start(&held, Some(Step(8))), Start::Peers { step: Step(10), holders, receivers });
    }

    #[test]
    fn a_checkpoint_newer_than_all_that_is_held_wins() {
        assert_eq!(start(&[Some(Step(3)), None], Some(Step(8))), Start::Checkpoint(Step(8)));
        assert!(matches!(start(&[Some(Step(8)), None], Some(Step(8))), Start::Peers { .. }));
    }
}
