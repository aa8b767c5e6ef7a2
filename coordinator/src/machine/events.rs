//! What goes into the machine.

use polo_recipe::ids::{Generation, Rank, Step};

use super::{CheckpointPart, Evaluation, Introduction, RecordError, Standing, WorkerId};

/// What a worker or a person said, or what became of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new session began.
    Hello(WorkerId, Introduction, Standing),
    /// A session ended without a goodbye.
    StreamBroken(WorkerId, u64),
    /// A member of this incarnation said something.
    Said(WorkerId, u64, Said),
    /// Whether the member's process still listens.
    Probed(WorkerId, u64, Alive),
    /// The journal holds (or could not take) the entry of a generation.
    Recorded(Generation, Result<(), RecordError>),
    /// The manifest of this step's checkpoint is in the store, with this digest of the state (or it is not).
    CheckpointStored(Step, Result<String, String>),
    /// A person wants the run to stop at the next boundary.
    StopRequested,
    /// A person wants a checkpoint at the next boundary.
    CheckpointRequested,
    /// A person wants this worker to hand back what it holds and leave.
    DrainRequested(WorkerId),
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
        /// For how long.
        phase_ms: u64,
    },
    /// It completed a step.
    StepDone(StepDone),
    /// It holds, with the others, a whole state, and begins to train.
    Arrived(Arrival),
    /// It was asked (by a signal, say) to leave.
    Leaving,
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
    /// Owners of a chunk disagree about its gradient.
    CopiesDiffer {
        /// The generation.
        generation: Generation,
        /// The step that was not taken.
        step: Step,
        /// The chunk.
        chunk: u32,
        /// The ranks that are outvoted, or all owners where there is no majority.
        suspects: Vec<Rank>,
        /// Whether the suspects are outvoted.
        is_certain: bool,
    },
    /// A step's loss or gradient was not finite.
    NumericalTrouble {
        /// The generation.
        generation: Generation,
        /// The step.
        step: Step,
        /// What the workers do about it.
        remedy: Remedy,
        /// Ranks whose slots gave the numbers.
        suspects: Vec<Rank>,
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
    /// It evaluated, with the others, a state on held-out samples.
    Validated(Evaluation),
    /// It took its last step.
    Finished {
        /// The generation that it finished in.
        generation: Generation,
        /// Step of its state.
        step: Step,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
        /// Whether every other worker would fail in the same way.
        ends_run: bool,
    },
}

/// A step that a member completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepDone {
    /// The generation that did it.
    pub generation: Generation,
    /// Completed steps, this one included.
    pub step: Step,
    /// How long it took.
    pub step_ms: u64,
    /// Of that, spent computing this member's slots.
    pub compute_ms: u64,
    /// How many those were.
    pub num_slots: u32,
}

/// How a member came to the state that it begins to train from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The generation.
    pub generation: Generation,
    /// Step of the state.
    pub step: Step,
    /// Whether the state is a checkpoint's.
    pub is_from_checkpoint: bool,
    /// Chunks of which no copy was left.
    pub num_lost_chunks: u32,
    /// Until its torch thread had left the generation before.
    pub abort_ms: u64,
    /// Until what had to be moved before the first step was there.
    pub transfer_ms: u64,
}

/// What the recipe has the workers do about numbers that are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The run stops.
    Stop,
    /// The step is skipped.
    Skip,
    /// Other workers compute the same samples.
    Recheck,
    /// Other workers got finite numbers from the same samples: the suspects' machines are at fault.
    Blame,
}
