//! What goes into the machine and what comes out of it.

use std::fmt;

use polo_recipe::ids::{Generation, Rank, Step};

/// Milliseconds of a clock that only goes forward; its zero means nothing.
pub type NowMs = u64;

/// A worker's name, unique within a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Most ranks that a generation can have.
    pub num_slots: usize,
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
}

/// A process that wants to be a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// What a member said, or what happened around it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new session began.
    Hello(WorkerId, Introduction),
    /// A session ended without a goodbye.
    StreamBroken(WorkerId, u64),
    /// A member of this incarnation said something.
    Said(WorkerId, u64, Said),
    /// Whether the member's process still listens.
    Probed(WorkerId, u64, Alive),
    /// The journal holds (or could not take) the entry of a generation.
    GenerationRecorded(Generation, Result<(), String>),
    /// The manifest of this step's checkpoint is stored (or not).
    CheckpointStored(Step, Result<(), String>),
    /// A person wants the run to stop at the next boundary.
    StopRequested,
    /// A person wants a checkpoint at the next boundary.
    CheckpointRequested,
    /// Time passed.
    Tick,
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alive {
    /// The process accepted and kept the connection.
    Yes,
    /// The process refused or dropped it.
    No,
}

/// What a member says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It lives, and what it is doing.
    Heartbeat {
        /// Step of the state it holds.
        step: Step,
        /// What it is doing.
        phase: String,
    },
    /// It completed a step.
    StepDone {
        /// The generation that did it.
        generation: Generation,
        /// Completed steps, this one included.
        step: Step,
    },
    /// Its data plane broke.
    PlaneLost {
        /// The generation that it belonged to.
        generation: Generation,
        /// Ranks that did not answer.
        suspects: Vec<Rank>,
        /// In words.
        reason: String,
        /// The suspects were waited for in vain, though no connection to them broke.
        timed_out: bool,
    },
    /// It stored its share of a checkpoint.
    CheckpointPart(CheckpointPart),
    /// A checkpoint that it was told to load is damaged.
    CheckpointDamaged {
        /// The generation that was to load it.
        generation: Generation,
        /// The checkpoint.
        step: Step,
        /// What is wrong with it.
        problem: String,
    },
    /// It took its last step.
    Finished {
        /// The generation that it finished in.
        generation: Generation,
        /// Step of its state.
        step: Step,
        /// Digest of its state.
        state_digest: String,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
        /// Whether every other worker would fail in the same way.
        ends_run: bool,
    },
}

/// A worker's share of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPart {
    /// Step of the checkpoint.
    pub step: Step,
    /// Digests by chunk number.
    pub chunks: Vec<(u32, [u8; 32])>,
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

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say something to a worker of this incarnation.
    Tell(WorkerId, u64, Tell),
    /// Try its data-plane address, and answer with [`Event::Probed`].
    Probe(WorkerId, u64, String),
    /// Write the generation's entry to the journal, and answer with [`Event::GenerationRecorded`].
    RecordGeneration(Generation, Vec<WorkerId>),
    /// Write the manifest, and answer with [`Event::CheckpointStored`].
    StoreCheckpoint(CheckpointDraft),
    /// Let people know.
    Announce(Notice),
    /// The run is over.
    End(Outcome),
}

/// What the coordinator says to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Tell {
    /// It belongs to the run.
    Welcome,
    /// Its place in a generation.
    Generation {
        /// The generation.
        generation: Generation,
        /// Its rank.
        rank: Rank,
        /// Members and their data-plane addresses, in rank order.
        peers: Vec<(WorkerId, String)>,
        /// Newest checkpoint.
        checkpoint: Option<Step>,
    },
    /// Drop every generation up to this one.
    Abort(Generation, String),
    /// Stop at the next step boundary.
    Stop,
    /// Write a checkpoint at the next step boundary.
    Checkpoint,
    /// It was counted out, and may come back as a new incarnation.
    GivenUp(String),
    /// It may not take part.
    Refused(String),
    /// The run has ended well.
    Release,
}

/// Why a member left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LossCause {
    /// Its process is gone: the stream broke and nothing listens at its address.
    ProcessGone,
    /// It was silent for too long (ms).
    HeartbeatLapsed(NowMs),
    /// It said that it cannot go on.
    Failed(String),
    /// A newer process took its name.
    Replaced,
    /// Its session lives, but other workers waited for it in vain so many times in a row; the last time in words.
    Unanswering(u32, String),
    /// The data plane broke though every member lives.
    PlaneLost(String),
    /// A checkpoint that was to be loaded is damaged.
    CheckpointDamaged(Step, String),
}

impl fmt::Display for LossCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessGone => write!(f, "its process is gone"),
            Self::HeartbeatLapsed(ms) => write!(f, "silent for {ms} ms"),
            Self::Failed(reason) => write!(f, "it failed: {reason}"),
            Self::Replaced => write!(f, "a newer process took its name"),
            Self::Unanswering(times, reason) => {
                write!(f, "other workers waited for it {times} times in a row in vain, the last time: {reason}")
            }
            Self::PlaneLost(reason) => write!(f, "the data plane broke: {reason}"),
            Self::CheckpointDamaged(step, problem) => write!(f, "checkpoint {step} is damaged: {problem}"),
        }
    }
}

/// News for people.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A worker joined the run.
    Joined(WorkerId),
    /// A process was turned away.
    TurnedAway(WorkerId, String),
    /// A worker left the run, or a generation ended without a loss.
    Interrupted(Option<WorkerId>, LossCause),
    /// A generation begins.
    Formed(Generation, Vec<WorkerId>),
    /// Too few workers, or the expected ones are not here yet.
    Waiting(String),
    /// A checkpoint is stored.
    CheckpointStored(Step),
    /// A checkpoint could not be stored.
    CheckpointFailed(Step, String),
    /// A checkpoint is damaged and will not be used.
    CheckpointSkipped(Step, String),
    /// A stop was asked for.
    Stopping,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined(worker) => write!(f, "worker {worker} joined"),
            Self::TurnedAway(worker, reason) => write!(f, "worker {worker} was turned away: {reason}"),
            Self::Interrupted(Some(worker), cause) => write!(f, "lost worker {worker}: {cause}"),
            Self::Interrupted(None, cause) => write!(f, "interrupted: {cause}"),
            Self::Formed(generation, members) => {
                let names: Vec<_> = members.iter().map(|w| w.0.as_str()).collect();
                write!(f, "generation {generation}: {} ({})", count(names.len(), "worker"), names.join(", "))
            }
            Self::Waiting(what) => write!(f, "waiting for {what}"),
            Self::CheckpointStored(step) => write!(f, "checkpoint of step {step} stored"),
            Self::CheckpointFailed(step, error) => write!(f, "checkpoint of step {step} could not be stored: {error}"),
            Self::CheckpointSkipped(step, problem) => write!(f, "checkpoint of step {step} is skipped: {problem}"),
            Self::Stopping => write!(f, "stopping at the next step boundary, with a checkpoint"),
        }
    }
}

pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
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
