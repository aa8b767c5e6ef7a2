//! The state that training carries from step to step: parameters, moments, and the count of what went in.

use std::collections::{BTreeMap, BTreeSet};

use polo_proto::v1;
use polo_recipe::{
    config::Gather,
    ids::Step,
    layout::{ChunkId, ChunkSpec, Layout},
    plan::{LedgerEntry, Plan},
};
use polo_store::{Digest, StoreError, checkpoint};
use zerocopy::IntoBytes;

use crate::{
    arrival::Held,
    decision::Decision,
    flat::{Flat, ops::on_host},
    params::Params,
    reduce::Sums,
    rig::Arithmetic,
};

/// AdamW's moments of one chunk, fp32.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// First moments.
    pub exp_avg: Flat,
    /// Second moments, as long.
    pub exp_avg_sq: Flat,
}

impl Moments {
    /// Those of a chunk that was never updated.
    pub fn zeros(num_params: usize) -> Self {
        Self { exp_avg: Flat::zeros(num_params), exp_avg_sq: Flat::zeros(num_params) }
    }

    /// The same in the host's memory.
    pub fn into_host(self) -> Self {
        Self { exp_avg: self.exp_avg.into_host(), exp_avg_sq: self.exp_avg_sq.into_host() }
    }

    /// First and second, to be changed.
    pub fn vectors_mut(&mut self) -> [&mut [f32]; 2] {
        [self.exp_avg.as_mut_slice(), self.exp_avg_sq.as_mut_slice()]
    }
}

/// What one worker holds of State(k).
///
/// A chunk is held if its moments are here; then its parameters are those of `step` as well. The parameters of the other
/// chunks are those of `step` only while `params_complete`.
#[derive(Debug)]
pub struct TrainState {
    /// Completed steps; none while nothing is held.
    pub step: Option<Step>,
    /// Parameters: all, or those of chunks that are held.
    pub params: Params,
    /// Whether all of the model's are here, and those of `step`.
    pub params_complete: bool,
    /// Moments of the chunks that are held.
    pub moments: BTreeMap<ChunkId, Moments>,
    /// Whether they are kept in the host's memory wherever parameters are.
    pub offloads_moments: bool,
    /// Tokens that went in.
    pub ledger: Ledger,
    /// Gradient sums, as long as they are of use: those in `summed`.
    pub sums: Sums,
    /// Chunks whose `sums` are those of the step from `step`.
    pub summed: BTreeSet<ChunkId>,
    /// What was decided of the step to `step`, for those who have not heard of it.
    pub last_decision: Option<Decision>,
}

impl TrainState {
    /// A state that holds nothing yet.
    pub fn empty(layout: &Layout, plan: &Plan, gather: Gather) -> Self {
        Self {
            step: None,
            params: Params::empty(gather, layout),
            params_complete: false,
            moments: BTreeMap::new(),
            offloads_moments: false,
            ledger: Ledger::new(plan),
            sums: Sums::new(),
            summed: BTreeSet::new(),
            last_decision: None,
        }
    }

    /// Sets the moments that are held to zeros, as they are where an optimizer's state begins.
    pub fn zero_moments(&mut self) {
        self.moments.values_mut().flat_map(Moments::vectors_mut).for_each(|vector| vector.fill(0.0));
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        (self.step, self.params_complete) = (None, false);
        self.retain(|_| false);
        self.summed.clear();
        self.last_decision = None;
    }

    /// Becomes State(0), of the chunks in `owned`.
    pub async fn make_first(
        &mut self,
        owned: &[ChunkId],
        layout: &Layout,
        plan: &Plan,
        arithmetic: &mut dyn Arithmetic,
    ) -> Result<(), StoreError> {
        for chunk in owned.iter().map(|id| &layout.chunks[id.0 as usize]) {
            self.keep_moments(chunk.id, Moments::zeros(chunk.range.len()));
            self.params.chunk_mut(chunk);
        }
        arithmetic.initialize(layout, &mut self.params).await?;
        self.ledger = Ledger::new(plan);
        (self.step, self.params_complete) = (Some(Step(0)), self.params.gather() == Gather::Step);
        Ok(())
    }

    /// From now on holds the moments of a chunk.
    pub fn keep_moments(&mut self, chunk: ChunkId, moments: Moments) {
        let moments = if self.offloads_moments { moments.into_host() } else { moments };
        self.moments.insert(chunk, moments);
    }

    /// Lets go of chunks that are not to be kept.
    pub fn retain(&mut self, is_kept: impl Fn(ChunkId) -> bool) {
        self.moments.retain(|chunk, _| is_kept(*chunk));
        self.params.retain(is_kept);
    }

    /// What it shows to the other ranks of a generation.
    pub fn held(&self, layout: &Layout) -> Held {
        let Self { step, params_complete, moments, summed, last_decision, .. } = self;
        Held {
            step: *step,
            params_complete: *params_complete,
            has_decision: last_decision.is_some(),
            chunks: layout.chunks.iter().map(|c| moments.contains_key(&c.id)).collect(),
            summed: layout.chunks.iter().map(|c| summed.contains(&c.id)).collect(),
        }
    }

    /// Bytes of parameters and moments that are held here, gradients not counted.
    pub fn num_bytes(&self) -> u64 {
        let moments: usize = self.moments.values().map(|m| 2 * m.exp_avg.as_slice().len()).sum();
        4 * (self.params.len() + moments) as u64
    }

    /// Parameters, first and second moments of a chunk; none if it is not held.
    pub fn chunk_vectors(&self, chunk: &ChunkSpec) -> Option<[&[f32]; 3]> {
        let moments = self.moments.get(&chunk.id)?;
        Some([self.params.chunk(chunk)?, moments.exp_avg.as_slice(), moments.exp_avg_sq.as_slice()])
    }

    /// The stored form of a chunk that is held.
    pub fn chunk_bytes(&self, chunk: &ChunkSpec) -> Option<Vec<u8>> {
        self.chunk_vectors(chunk).map(|vectors| vectors.map(on_host).each_ref().map(|v| v.as_bytes()).concat())
    }

    /// Takes a chunk from its stored form, whose length must be right.
    pub fn load_chunk(&mut self, chunk: &ChunkSpec, bytes: &[u8]) {
        let mut moments = Moments::zeros(chunk.range.len());
        let vectors = [self.params.chunk_mut(chunk), moments.exp_avg.as_mut_slice(), moments.exp_avg_sq.as_mut_slice()];
        for (vector, part) in vectors.into_iter().zip(bytes.chunks_exact(bytes.len() / 3)) {
            vector.as_mut_bytes().copy_from_slice(part);
        }
        self.keep_moments(chunk.id, moments);
    }

    /// Digest of the stored form of a chunk that is held.
    pub fn chunk_digest(&self, chunk: &ChunkSpec) -> Option<Digest> {
        self.chunk_vectors(chunk).map(|vectors| digest_of(&vectors))
    }

    /// Digest of the whole state at `step`, the same that a checkpoint's manifest states; none if some chunk is not held.
    pub fn digest(&self, step: Step, layout: &Layout) -> Option<Digest> {
        let digests: Option<Vec<_>> = layout.chunks.iter().map(|chunk| self.chunk_digest(chunk)).collect();
        digests.map(|digests| checkpoint::state_digest(step.0, &digests))
    }
}

/// Digest of the bytes of vectors that lie one after another.
pub fn digest_of(vectors: &[&[f32]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for vector in vectors {
        hasher.update(on_host(vector).as_bytes());
    }
    hasher.finalize().into()
}

/// How many tokens of each source each stage has trained, counted as they are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    num_sources: usize,
    /// `[num_stages, num_sources]`, row-major.
    counts: Vec<u64>,
}

impl Ledger {
    /// Nothing trained yet.
    pub fn new(plan: &Plan) -> Self {
        let num_sources = plan.sources().len();
        Self { num_sources, counts: vec![0; plan.stages().len() * num_sources] }
    }

    /// Adds tokens of a source to a stage.
    pub fn add(&mut self, stage: usize, source: usize, num_tokens: u64) {
        self.counts[stage * self.num_sources + source] += num_tokens;
    }

    /// Bytes of [`Ledger::encode`].
    pub fn num_bytes(&self) -> usize {
        self.counts.len() * 8
    }

    /// The counts as little-endian numbers.
    pub fn encode(&self) -> Vec<u8> {
        self.counts.iter().flat_map(|count| count.to_le_bytes()).collect()
    }

    /// Takes [`Ledger::encode`]'s bytes.
    pub fn decode(&mut self, bytes: &[u8]) {
        for (count, bytes) in self.counts.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *count = u64::from_le_bytes(*bytes);
        }
    }

    /// What a checkpoint says of it: every stage's sources, with the tokens trained so far.
    pub fn to_wire(&self, plan: &Plan) -> Vec<v1::TrainedTokens> {
        let trained = |LedgerEntry { stage, source, .. }: LedgerEntry| {
            let num_tokens = self.place(plan, &stage, &source).map_or(0, |place| self.counts[place]);
            v1::TrainedTokens { stage, source, num_tokens }
        };
        plan.ledger(Step(0)).into_iter().map(trained).collect()
    }

    /// Takes what a checkpoint says of it.
    pub fn load(&mut self, plan: &Plan, entries: &[LedgerEntry]) {
        self.counts.fill(0);
        for LedgerEntry { stage, source, num_trained_tokens, .. } in entries {
            if let Some(place) = self.place(plan, stage, source) {
                self.counts[place] = *num_trained_tokens;
            }
        }
    }

    /// Where the count of a source in a stage is.
    fn place(&self, plan: &Plan, stage: &str, source: &str) -> Option<usize> {
        let stage = plan.stages().position(|name| name == stage)?;
        let source = plan.sources().iter().position(|name| name == source)?;
        Some(stage * self.num_sources + source)
    }
}
