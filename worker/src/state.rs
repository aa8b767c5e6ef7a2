//! The state that training carries from step to step: parameters, moments, and the count of what went in.

use polo_recipe::{
    ids::Step,
    layout::{ChunkId, ChunkSpec, Layout},
    plan::Plan,
};
use polo_store::{Digest, checkpoint};

use crate::flat::Flat;

/// State(k), whole. `step` says which k.
#[derive(Debug)]
pub struct TrainState {
    /// Completed steps; none while the state is being filled.
    pub step: Option<Step>,
    /// Parameters, `[num_params]` fp32.
    pub params: Flat,
    /// First moments, as long.
    pub exp_avg: Flat,
    /// Second moments, as long.
    pub exp_avg_sq: Flat,
    /// Tokens that went in.
    pub ledger: Ledger,
}

impl TrainState {
    /// A state of the layout's size that holds nothing yet.
    pub fn empty(layout: &Layout, plan: &Plan) -> Self {
        let zeros = || Flat::zeros(layout.num_params);
        let ledger = Ledger::new(plan);
        Self { step: None, params: zeros(), exp_avg: zeros(), exp_avg_sq: zeros(), ledger }
    }

    /// Parameters, first and second moments of a chunk, one after another.
    pub fn chunk_vectors(&self, chunk: &ChunkSpec) -> [&[u8]; 3] {
        [&self.params, &self.exp_avg, &self.exp_avg_sq].map(|flat| flat.bytes(chunk.range.clone()))
    }

    /// The stored form of a chunk.
    pub fn chunk_bytes(&self, chunk: &ChunkSpec) -> Vec<u8> {
        self.chunk_vectors(chunk).concat()
    }

    /// Takes a chunk from its stored form, whose length must be right.
    pub fn load_chunk(&mut self, chunk: &ChunkSpec, bytes: &[u8]) {
        let num_bytes = bytes.len() / 3;
        let vectors = [&mut self.params, &mut self.exp_avg, &mut self.exp_avg_sq];
        for (flat, part) in vectors.into_iter().zip(bytes.chunks_exact(num_bytes)) {
            flat.bytes_mut(chunk.range.clone()).copy_from_slice(part);
        }
    }

    /// Digest of a chunk's stored form.
    pub fn chunk_digest(&self, chunk: &ChunkSpec) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for vector in self.chunk_vectors(chunk) {
            hasher.update(vector);
        }
        hasher.finalize().into()
    }

    /// Digest of the whole state at `step`, the same that a checkpoint's manifest states.
    pub fn digest(&self, step: Step, layout: &Layout) -> Digest {
        let digests: Vec<_> = layout.chunks.iter().map(|chunk| self.chunk_digest(chunk)).collect();
        checkpoint::state_digest(step.0, &digests)
    }
}

/// Chunks whose storing falls to `rank`: every rank holds all of them, so they share the work.
pub fn stored_by(layout: &Layout, rank: usize, world: usize) -> impl Iterator<Item = &ChunkSpec> {
    layout.chunks.iter().filter(move |c| mod_world(c.id, world) == rank)
}

fn mod_world(id: ChunkId, world: usize) -> usize {
    id.0 as usize % world
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
        Self { num_sources, counts: vec![0; plan.planned_tokens().len() * num_sources] }
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
    pub fn to_entries(&self, plan: &Plan) -> Vec<checkpoint::Trained> {
        let mut entries = Vec::new();
        for (stage, planned) in plan.planned_tokens().into_iter().enumerate() {
            for source in planned.sources {
                let number = plan.sources().iter().position(|name| *name == source.name);
                let num_tokens = number.map_or(0, |n| self.counts[stage * self.num_sources + n]);
                entries.push(checkpoint::Trained { stage: planned.stage.clone(), source: source.name, num_tokens });
            }
        }
        entries
    }

    /// Takes a checkpoint's entries.
    pub fn load_entries(&mut self, plan: &Plan, entries: &[checkpoint::Trained]) {
        self.counts.fill(0);
        let stages = plan.planned_tokens();
        for entry in entries {
            let stage = stages.iter().position(|s| s.stage == entry.stage);
            let source = plan.sources().iter().position(|name| *name == entry.source);
            if let (Some(stage), Some(source)) = (stage, source) {
                self.add(stage, source, entry.num_tokens);
            }
        }
    }
}
