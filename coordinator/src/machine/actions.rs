//! What comes out of the machine.

use std::{fmt, sync::Arc};

use polo_recipe::ids::{Generation, Rank, Step};

use super::{
    CheckpointDraft, Entry, LossCause, Outcome, Remedy, Role, Seat, SourceChange, WentBack, WorkerId, types::count,
};

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say something to a worker of this incarnation.
    Tell(WorkerId, u64, Tell),
    /// Try its data-plane address, and answer with [`super::Event::Probed`].
    Probe(WorkerId, u64, String),
    /// Write an entry to the journal, after those before it. That of a generation is answered with
    /// [`super::Event::Recorded`].
    Record(Entry),
    /// Write the manifest, and answer with [`super::Event::CheckpointStored`].
    StoreCheckpoint(CheckpointDraft),
    /// Read the manifest, which another coordinator wrote, and answer with [`super::Event::CheckpointStored`].
    ReadCheckpoint(Step),
    /// Let people know.
    Announce(Notice),
    /// The run is over.
    End(Outcome),
}

/// A worker of a generation, as its peers must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub worker: WorkerId,
    /// Where its data plane listens.
    pub data_address: String,
    /// What it does.
    pub role: Role,
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
        /// All workers of the generation, in rank order.
        peers: Arc<[Peer]>,
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
    /// What it held is with others; it may leave.
    Drained,
    /// The run has ended well.
    Release,
}

impl Tell {
    /// Whether it is the last that a session carries.
    pub fn is_farewell(&self) -> bool {
        matches!(self, Self::GivenUp(_) | Self::Refused(_) | Self::Drained | Self::Release)
    }
}

/// News for people.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A worker joined the run.
    Joined(WorkerId),
    /// A worker is back, whom a coordinator before this one knew.
    Returned(WorkerId),
    /// A process was turned away.
    TurnedAway(WorkerId, String),
    /// A worker was lost, or a generation broke without a loss; training was interrupted.
    Interrupted(Option<WorkerId>, LossCause),
    /// A worker was lost that training did not need.
    Lost(WorkerId, LossCause),
    /// A spare takes the place of a worker.
    Replaced(WorkerId, LossCause),
    /// A worker was asked to leave.
    Leaving(WorkerId),
    /// A worker that was asked to leave has left.
    Drained(WorkerId),
    /// A generation begins.
    Formed(Generation, Vec<Seat>),
    /// Training goes on from a checkpoint though workers were there.
    WentBack(WentBack),
    /// Too few workers, or the expected ones are not here yet.
    Waiting(String),
    /// A worker takes consistently longer than the others; how many times as long.
    Straggles(WorkerId, f64),
    /// Owners of a chunk disagree at a step, and nobody is outvoted.
    CopiesDiffer(Step, u32, Vec<WorkerId>),
    /// A step's numbers were not finite; from whom they came.
    NotFinite(Step, Remedy, Vec<WorkerId>),
    /// A checkpoint is stored.
    CheckpointStored(Step),
    /// A checkpoint could not be stored.
    CheckpointFailed(Step, String),
    /// A checkpoint is damaged and will not be used.
    CheckpointSkipped(Step, String),
    /// The state of this step was evaluated on held-out samples.
    Validated(Step, Vec<SourceChange>),
    /// A watched source has become worse than allowed: its losses.
    Worsened {
        /// The source.
        source: String,
        /// Mean loss per token at the baseline.
        baseline: f64,
        /// The same now.
        now: f64,
        /// When it was seen.
        step: Step,
    },
    /// A watched source is no longer worse than allowed.
    Recovered {
        /// The source.
        source: String,
        /// Mean loss per token at the baseline.
        baseline: f64,
        /// The same now.
        now: f64,
        /// When it was seen.
        step: Step,
    },
    /// A worker says something else of a state's losses than was said first.
    ValidationsDiffer {
        /// Who says so.
        worker: WorkerId,
        /// Step of the state.
        step: Step,
        /// Sources that differ.
        sources: Vec<String>,
    },
    /// A stop was asked for.
    Stopping,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined(worker) => write!(f, "worker {worker} joined"),
            Self::Returned(worker) => write!(f, "worker {worker} is back"),
            Self::TurnedAway(worker, reason) => write!(f, "worker {worker} was turned away: {reason}"),
            Self::Interrupted(Some(worker), cause) => write!(f, "lost worker {worker}: {cause}"),
            Self::Interrupted(None, cause) => write!(f, "interrupted: {cause}"),
            Self::Lost(worker, cause) => write!(f, "worker {worker}, which was not training, is gone: {cause}"),
            Self::Replaced(worker, cause) => write!(f, "a spare takes the place of worker {worker}: {cause}"),
            Self::Leaving(worker) => write!(f, "worker {worker} is to leave"),
            Self::Drained(worker) => write!(f, "worker {worker} has left"),
            Self::Formed(generation, seats) => write!(f, "generation {generation}: {}", roster_in_words(seats)),
            Self::WentBack(back) => back.fmt(f),
            Self::Waiting(what) => write!(f, "waiting for {what}"),
            Self::Straggles(worker, slowdown) => {
                write!(f, "worker {worker} takes {slowdown:.1} times as long for a slot as the others")
            }
            Self::CopiesDiffer(step, chunk, owners) => {
                let owners = names(owners);
                write!(
                    f,
                    "at step {step}, {owners} disagree about chunk {chunk}: the memory or processor of one is faulty"
                )
            }
            Self::NotFinite(step, remedy, workers) => {
                write!(f, "step {step} has numbers that are not finite, from {}: {}", names(workers), in_words(*remedy))
            }
            Self::CheckpointStored(step) => write!(f, "checkpoint of step {step} stored"),
            Self::CheckpointFailed(step, error) => write!(f, "checkpoint of step {step} could not be stored: {error}"),
            Self::CheckpointSkipped(step, problem) => write!(f, "checkpoint of step {step} is skipped: {problem}"),
            Self::Validated(step, sources) => write!(f, "validation at step {step}: {}", losses_in_words(sources)),
            Self::Worsened { source, baseline, now, step } => {
                let change = change_in_words(now / baseline - 1.0);
                write!(
                    f,
                    "alarm: source {source} is worse at step {step} than allowed: loss {now:.4}, {baseline:.4} at the baseline ({change})"
                )
            }
            Self::Recovered { source, baseline, now, step } => {
                let change = change_in_words(now / baseline - 1.0);
                write!(
                    f,
                    "the alarm is over: source {source} has loss {now:.4} at step {step}, {baseline:.4} at the baseline ({change})"
                )
            }
            Self::ValidationsDiffer { worker, step, sources } => {
                write!(
                    f,
                    "worker {worker} has other losses of {} at step {step} than were reported first; the memory or processor of one machine is faulty, or one worker is of another version",
                    sources.join(", ")
                )
            }
            Self::Stopping => write!(f, "stopping at the next step boundary, with a checkpoint"),
        }
    }
}

fn in_words(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Stop => "the run stops",
        Remedy::Skip => "the step is skipped",
        Remedy::Recheck => "other workers compute the same samples",
        Remedy::Blame => "the same samples are fine elsewhere, so its machine is at fault",
    }
}

fn losses_in_words(sources: &[SourceChange]) -> String {
    let in_words = |SourceChange { now, worsening }: &SourceChange| {
        let bits = now.bits_per_byte.map(|bits| format!(", {bits:.4} bits per byte")).unwrap_or_default();
        let change = worsening.map(|by| format!(" ({})", change_in_words(by))).unwrap_or_default();
        format!("{} loss {:.4}{bits}{change}", now.source, now.loss)
    };
    sources.iter().map(in_words).collect::<Vec<_>>().join("; ")
}

fn change_in_words(worsening: f64) -> String {
    format!("{:+.2} %", worsening * 100.0)
}

fn names<'a>(workers: impl IntoIterator<Item = &'a WorkerId>) -> String {
    let names: Vec<_> = workers.into_iter().map(|w| w.0.as_str()).collect();
    names.join(", ")
}

/// Members are counted and named, the others only named.
fn roster_in_words(seats: &[Seat]) -> String {
    let with = |role: Role| seats.iter().filter(move |s| s.role == role).map(|s| &s.worker);
    let num_members = with(Role::Member).count();
    let mut words = format!("{} ({})", count(num_members, "worker"), names(with(Role::Member)));
    for (role, what) in [(Role::Spare, "spare"), (Role::Leaving, "leaving")] {
        if with(role).next().is_some() {
            words += &format!(", {what}: {}", names(with(role)));
        }
    }
    words
}
