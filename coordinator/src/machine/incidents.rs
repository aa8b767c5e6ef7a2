//! Interruptions and what they cost.

use std::fmt;

use polo_recipe::ids::{Generation, Step};
use serde::{Deserialize, Serialize};

use super::{NowMs, WorkerId};

/// One interruption, as status shows it and the journal keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Its place among the run's incidents, from 0.
    pub number: u32,
    /// Why.
    pub cause: LossCause,
    /// Who was lost, if anybody.
    pub worker: Option<WorkerId>,
    /// The generation that it ended.
    pub generation: Generation,
    /// The newest step at that time.
    pub step: Step,
    /// When its first sign was seen, on the clock of this process.
    #[serde(skip)]
    pub sign_ms: NowMs,
    /// When it was decided, on the same clock.
    #[serde(skip)]
    pub at_ms: NowMs,
    /// From the first sign until the next completed step; absent while it lasts.
    pub recovery_ms: Option<u64>,
    /// What that time went into.
    pub bill: Bill,
    /// The checkpoint that training went back to because no copy of so many chunks was left, if it did.
    pub went_back: Option<WentBack>,
}

/// What an interruption cost, in the order in which it was paid. A part that is not over, or was not needed, is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// From the first sign to the decision.
    pub detect_ms: Option<u64>,
    /// Until the survivors had left the generation.
    pub abort_ms: Option<u64>,
    /// Until the next generation stood.
    pub reform_ms: Option<u64>,
    /// Until the state that its first step needed had been moved.
    pub transfer_ms: Option<u64>,
    /// Until the next step was completed.
    pub redo_ms: Option<u64>,
}

/// A return to a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WentBack {
    /// Its step.
    pub to: Step,
    /// Chunks of which no copy was left.
    pub num_lost_chunks: u32,
}

impl fmt::Display for WentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, num_lost_chunks } = self;
        write!(f, "no copy of {num_lost_chunks} chunks was left, so all went back to the checkpoint of step {to}")
    }
}

/// Why a member left, or a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// Its agent answers, but it has been at the same work for so long (ms) that it must be stuck.
    Stuck {
        /// What it was doing.
        phase: String,
        /// For how long.
        phase_ms: u64,
        /// How long it may take, learnt from recent steps.
        limit_ms: u64,
    },
    /// It takes so many times as long for a slot as the median of the others.
    Straggler {
        /// In hundredths.
        slowdown_percent: u32,
    },
    /// What it holds of a chunk, or computed for it, is not what the other owners have.
    CorruptCopies {
        /// The chunk.
        chunk: u32,
        /// The step at which it was seen.
        step: Step,
    },
    /// It computed numbers that are not finite from samples that are finite elsewhere.
    BadNumbers(Step),
    /// The data plane broke though every member lives.
    PlaneLost(String),
    /// A checkpoint that was to be loaded is damaged.
    CheckpointDamaged(Step, String),
    /// The coordinator ended between writing a generation down and telling everybody of it, so that nobody can train in it.
    Untold,
    /// Workers hold different bits of this chunk at this step, and nobody is outvoted.
    StatesDiffer(Step, u32),
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
            Self::Stuck { phase, phase_ms, limit_ms } => {
                write!(f, "stuck: {phase_ms} ms at `{phase}`, where recent steps let expect at most {limit_ms} ms")
            }
            Self::Straggler { slowdown_percent } => {
                write!(f, "it takes {:.1} times as long for a slot as the others", f64::from(*slowdown_percent) / 100.0)
            }
            Self::CorruptCopies { chunk, step } => {
                write!(f, "at step {step} it has other bits of chunk {chunk} than the other owners")
            }
            Self::BadNumbers(step) => {
                write!(f, "at step {step} it computed numbers that are not finite from samples that are fine elsewhere")
            }
            Self::PlaneLost(reason) => write!(f, "the data plane broke: {reason}"),
            Self::CheckpointDamaged(step, problem) => write!(f, "checkpoint {step} is damaged: {problem}"),
            Self::Untold => write!(f, "the coordinator ended before it had told all workers of the generation"),
            Self::StatesDiffer(step, chunk) => {
                write!(
                    f,
                    "workers hold different bits of chunk {chunk} at step {step}, and it is not clear whose are right"
                )
            }
        }
    }
}
