//! What goes into a step and what comes out of it.

use std::{sync::Arc, time::Duration};

use polo_recipe::{
    config::{Batch, Copies, OnNonFinite, Reduction},
    ids::{Rank, Step},
    layout::{ChunkId, Layout},
    plan::Plan,
};

use crate::{
    boundary,
    corpus::CorpusError,
    decision::{Decision, Remedy},
    desk::Desk,
    model::ModelError,
    moves::MoveError,
    optimizer::OptimizerError,
    plane::PlaneError,
    reduce::Traffic,
    room::NoRoom,
    trace::Trace,
};

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The data plane broke or was aborted.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// A chunk did not arrive at its new owner.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// The corpus.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The loader's thread.
    #[error("the loader cannot start: {0}")]
    Loader(std::io::Error),
    /// The loader ended before the step had its samples.
    #[error("the loader ended before step {0} had its samples")]
    NoBatch(Step),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The membership does not fit.
    #[error(transparent)]
    Room(#[from] NoRoom),
    /// The optimizer.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The numbers blew up, on every rank alike.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}: not finite, so the update was not made; look at the step's documents (polo samples RECIPE --step {step}), lower the learning rate, or set optimizer.on_non_finite"
    )]
    NotFinite {
        /// The step that was not taken.
        step: Step,
        /// Mean loss per token.
        loss: f64,
        /// Norm of the summed gradient.
        grad_norm: f64,
    },
    /// An update without its gradient; never, unless something here is wrong.
    #[error("step {step}: chunk {chunk} was to be updated without a sum of its gradients")]
    NoSum {
        /// The step that was not taken.
        step: Step,
        /// Number of the chunk.
        chunk: u32,
    },
    /// Owners of a chunk kept getting different sums from the same gradients.
    #[error(
        "step {step}: ranks {suspects:?} summed chunk {chunk} differently {num_times} times in a row; the memory or processor of one of them is at fault, and with two workers it cannot be told which"
    )]
    CopiesDiffer {
        /// The step that was not taken.
        step: Step,
        /// Number of the chunk.
        chunk: u32,
        /// Its owners.
        suspects: Vec<Rank>,
        /// How often.
        num_times: u32,
    },
}

/// What does not change from one membership to the next.
pub struct Setting {
    /// Where parameters lie.
    pub layout: Arc<Layout>,
    /// What is trained when.
    pub plan: Arc<Plan>,
    /// Shape of a step.
    pub batch: Batch,
    /// Largest gradient norm.
    pub max_grad_norm: f64,
    /// What is done about numbers that are not finite.
    pub on_non_finite: OnNonFinite,
    /// How gradients are summed.
    pub reduction: Reduction,
    /// How many owners a chunk has.
    pub copies: Copies,
    /// Of each of the plan's validation sets, bytes of its source's text for each of its tokens, if that is known.
    pub bytes_per_token: Vec<f64>,
    /// Where phases are shown and boundary records come from.
    pub desk: Arc<Desk>,
    /// Where it is written how long things take.
    pub trace: Trace,
}

/// What every rank knows after a step.
#[derive(Debug, Clone)]
pub struct StepDone {
    /// What became of it; equal on all ranks, and for every world.
    pub decision: Decision,
    /// What all members do next.
    pub verdict: boundary::Verdict,
    /// The most checkpoints that any member was asked for.
    pub checkpoints_wanted: u64,
    /// Moved by this rank for the step: pieces, norms and parameters, not chunks on their way to new owners.
    pub traffic: Traffic,
    /// Spent waiting for samples.
    pub data_wait: Duration,
    /// Spent computing this rank's slots.
    pub compute: Duration,
    /// How many those were.
    pub num_slots: usize,
    /// Chunks that came to this rank while it computed.
    pub moved: Moved,
}

/// Chunks that came to this rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    /// Until all were there.
    pub time: Duration,
    /// Their bytes.
    pub num_bytes: u64,
}

/// What a try to take a step came to.
pub enum Outcome {
    /// It is taken.
    Done(StepDone),
    /// It is undecided, and to be taken again in this way.
    Again(Attempt),
}

/// How a step is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// By how many places slots are passed on to other ranks.
    pub rotation: usize,
    /// Whether every chunk is summed by one rank more, if there is one, because owners disagreed.
    pub has_witnesses: bool,
    /// How often owners disagreed.
    pub num_disagreements: u32,
    /// Ranks whose numbers were not finite, in a try before.
    pub suspects: Vec<Rank>,
}

/// What ranks say of a step that went wrong, for people and for the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Loss or gradient are not finite.
    NotFinite {
        /// Mean loss per token.
        loss: f64,
        /// Norm of the summed gradient.
        grad_norm: f64,
        /// What is done about it; none if a second look at the same samples gave finite numbers.
        remedy: Option<Remedy>,
        /// Ranks whose slots gave such numbers.
        suspects: Vec<Rank>,
    },
    /// Owners of a chunk have different sums.
    CopiesDiffer {
        /// The chunk.
        chunk: ChunkId,
        /// Who is outvoted, or all owners.
        suspects: Vec<Rank>,
        /// Whether they are outvoted.
        is_certain: bool,
    },
}
