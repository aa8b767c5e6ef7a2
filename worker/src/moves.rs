//! Moving chunks between ranks, each with its digest, many at a time.

use polo_recipe::{
    ids::Rank,
    layout::{ChunkId, Layout},
};
use polo_store::Digest;
use zerocopy::IntoBytes;

use crate::{
    arrival::Move,
    flat::{Flat, ops::copy},
    params::Params,
    plane::{DataPlane, PlaneError, Transfer},
    state::{Moments, TrainState, digest_of},
};

/// Moves that are under way at a time.
const IN_FLIGHT: usize = 16;

/// Why a chunk did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
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
    /// A rank was to give what it does not hold.
    #[error("rank {from} was to give chunk {chunk}, which it does not hold")]
    NotHeld {
        /// Number of the chunk.
        chunk: u32,
        /// The rank.
        from: Rank,
    },
}

/// A chunk that has arrived; its digest was as stated.
#[derive(Debug)]
pub struct Arrived {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its parameters, if they travelled.
    pub params: Option<Flat>,
    /// Its moments, if they travelled.
    pub moments: Option<Moments>,
}

impl Arrived {
    fn place(wanted: &Move, layout: &Layout) -> Self {
        let len = layout.chunks[wanted.chunk.0 as usize].range.len();
        let params = wanted.params.then(|| Flat::zeros(len));
        Self { chunk: wanted.chunk, params, moments: wanted.moments.then(|| Moments::zeros(len)) }
    }

    fn vectors_mut(&mut self) -> Vec<&mut [f32]> {
        let moments = self.moments.iter_mut().flat_map(|m| [&mut m.exp_avg, &mut m.exp_avg_sq]);
        self.params.iter_mut().chain(moments).map(Flat::as_mut_slice).collect()
    }

    fn digest(&self) -> Digest {
        let moments = self.moments.iter().flat_map(|m| [&m.exp_avg, &m.exp_avg_sq]);
        let vectors: Vec<_> = self.params.iter().chain(moments).map(Flat::as_slice).collect();
        digest_of(&vectors)
    }

    /// Bytes that travelled.
    pub fn num_bytes(&self) -> u64 {
        let num_vectors = u64::from(self.params.is_some()) + 2 * u64::from(self.moments.is_some());
        let len = self.params.as_ref().or(self.moments.as_ref().map(|m| &m.exp_avg)).map_or(0, |f| f.as_slice().len());
        4 * num_vectors * len as u64
    }
}

/// What a rank can give, borrowed from its state, so that another thread can give it.
pub struct Givable<'a> {
    params: &'a Params,
    moments: std::collections::BTreeMap<ChunkId, [&'a [f32]; 2]>,
}

impl<'a> Givable<'a> {
    /// All that `state` holds.
    pub fn of(state: &'a TrainState) -> Self {
        let vectors = |m: &'a Moments| [m.exp_avg.as_slice(), m.exp_avg_sq.as_slice()];
        let moments = state.moments.iter().map(|(chunk, m)| (*chunk, vectors(m))).collect();
        Self { params: &state.params, moments }
    }

    fn vectors(&self, wanted: &Move, layout: &Layout) -> Result<Vec<&'a [f32]>, MoveError> {
        let not_held = || MoveError::NotHeld { chunk: wanted.chunk.0, from: wanted.from };
        let held = self.moments.get(&wanted.chunk).ok_or_else(not_held)?;
        let params = self.params.chunk(&layout.chunks[wanted.chunk.0 as usize]).ok_or_else(not_held)?;
        let params = wanted.params.then_some(params).into_iter();
        let moments = held.iter().copied().filter(|_| wanted.moments);
        Ok(params.chain(moments).collect())
    }
}

/// The moves of some ranks, in the order in which all of them go through the list.
pub fn batches(moves: &[Move]) -> impl Iterator<Item = &[Move]> {
    moves.chunks(IN_FLIGHT)
}

/// Carries out this rank's part of a batch, and returns what has arrived.
pub async fn carry(
    plane: &mut dyn DataPlane,
    batch: &[Move],
    layout: &Layout,
    givable: &Givable<'_>,
) -> Result<Vec<Arrived>, MoveError> {
    let own = plane.rank();
    let given: Vec<_> = batch.iter().filter(|m| m.from == own).collect();
    let wanted: Vec<_> = batch.iter().filter(|m| m.to == own).collect();
    let vectors: Vec<_> = given.iter().map(|m| givable.vectors(m, layout)).collect::<Result<_, _>>()?;
    let digests: Vec<_> = vectors.iter().map(|vectors| digest_of(vectors)).collect();
    let mut stated = vec![Digest([0; 32]); wanted.len()];
    let mut arrived: Vec<_> = wanted.iter().map(|m| Arrived::place(m, layout)).collect();
    let mut group = Vec::new();
    for ((to, vectors), digest) in given.iter().map(|m| m.to).zip(&vectors).zip(&digests) {
        group.push(Transfer::Send { to, bytes: digest.as_bytes() });
        group.extend(vectors.iter().map(|vector| Transfer::Send { to, bytes: vector.as_bytes() }));
    }
    for ((from, arrived), stated) in wanted.iter().map(|m| m.from).zip(&mut arrived).zip(&mut stated) {
        group.push(Transfer::Recv { from, bytes: &mut stated.0 });
        group.extend(arrived.vectors_mut().into_iter().map(|v| Transfer::Recv { from, bytes: v.as_mut_bytes() }));
    }
    if !group.is_empty() {
        plane.exchange(&mut group).await?;
    }
    drop(group);
    for ((wanted, arrived), stated) in wanted.iter().zip(&arrived).zip(stated) {
        let found = arrived.digest();
        if found != stated {
            return Err(MoveError::Digest { chunk: wanted.chunk.0, from: wanted.from, found, stated });
        }
    }
    Ok(arrived)
}

impl TrainState {
    /// Takes a chunk that has arrived.
    pub fn install(&mut self, arrived: Arrived, layout: &Layout) {
        if let Some(params) = arrived.params {
            let chunk = &layout.chunks[arrived.chunk.0 as usize];
            copy(self.params.chunk_mut(chunk), params.as_slice());
        }
        if let Some(moments) = arrived.moments {
            self.keep_moments(arrived.chunk, moments);
        }
    }
}
