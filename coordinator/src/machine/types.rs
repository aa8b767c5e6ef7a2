//! What the machine speaks of: workers, their roles, checkpoints, how a run ends.

use std::fmt;

use polo_recipe::{
    config::Validation,
    ids::{Generation, Step},
};
use serde::{Deserialize, Serialize};

/// Milliseconds of a clock that only goes forward; its zero means nothing.
pub type NowMs = u64;

/// A worker's name, unique within a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the machine must know of the run before it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Identity of the recipe that every worker must have.
    pub recipe_identity: String,
    /// Digest of the corpus manifest that every worker must have read.
    pub corpus_digest: String,
    /// Steps of the whole run.
    pub num_steps: Step,
    /// Most members that a generation can have; further workers are its spares.
    pub max_members: usize,
    /// Chunks of a complete checkpoint.
    pub num_chunks: usize,
    /// Fewest workers that may train.
    pub min_workers: usize,
    /// Workers that are expected; with so many the run starts without waiting for more.
    pub expected_workers: usize,
    /// How long to wait for the expected workers when the fewest are there, and for company of a joiner.
    pub settle_ms: NowMs,
    /// How long to wait for `min_workers`.
    pub wait_timeout_ms: NowMs,
    /// Silence after which a worker is dead.
    pub heartbeat_timeout_ms: NowMs,
    /// Whether a spare takes the place of a member that is consistently slower than the others.
    pub evict_stragglers: bool,
    /// What is evaluated when, and which sources must not get worse.
    pub validation: Option<Validation>,
}

/// A process that wants to be a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Drawn anew by every process.
    pub incarnation: u64,
    /// Identity of its recipe.
    pub recipe_identity: String,
    /// Digest of the corpus manifest it read.
    pub corpus_digest: String,
    /// Where its data plane listens.
    pub data_address: String,
    /// For people.
    pub host: String,
    /// For people.
    pub pid: u32,
}

/// Where a process stands that opens a session; it may have had one before, with this coordinator or another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest generation that it was told of, 0 for none.
    pub generation: Generation,
    /// Step of the state it holds a part of.
    pub step: Option<Step>,
    /// It was asked to leave.
    pub is_leaving: bool,
}

/// What a worker does in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Has slots and owns chunks.
    Member,
    /// Is sent the parameters of every step, so that it can become a member at once.
    Spare,
    /// Gives its chunks to the members, and leaves after the first step.
    Leaving,
}

/// A worker's place in a generation. Its rank is its position among all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Who.
    pub worker: WorkerId,
    /// As what.
    pub role: Role,
}

/// A worker's share of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPart {
    /// Step of the checkpoint.
    pub step: Step,
    /// Digests, by chunk number, of the chunks that it stored.
    pub chunks: Vec<(u32, [u8; 32])>,
    /// Digests, by chunk number, of the chunks that it holds too, but another worker stores.
    pub witnessed: Vec<(u32, [u8; 32])>,
    /// Tokens trained up to the step: (stage, source, tokens).
    pub trained: Vec<(String, String, u64)>,
}

/// All that the manifest of a checkpoint needs from the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointDraft {
    /// Step of the checkpoint.
    pub step: Step,
    /// Digests in chunk order.
    pub chunks: Vec<[u8; 32]>,
    /// Tokens trained up to the step: (stage, source, tokens).
    pub trained: Vec<(String, String, u64)>,
    /// Chunks that later checkpoints, still without a manifest, have in the store.
    pub protected: Vec<[u8; 32]>,
}

pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step is done, and its checkpoint is stored.
    Completed {
        /// Step of the state.
        step: Step,
        /// Digest of the state, equal on all workers.
        state_digest: String,
    },
    /// Stopped on request; the checkpoint of its last step is stored.
    Stopped {
        /// Step of the state.
        step: Step,
        /// Digest of the state, equal on all workers.
        state_digest: String,
    },
    /// It cannot go on.
    Failed {
        /// What was wrong, where, and what to do.
        reason: String,
    },
}
